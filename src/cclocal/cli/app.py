"""The Typer application: the launch, its commands, one option per model, and corrections for mistyped words."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from cclocal.cli import attach, check, launch, models, plan, prompt, sessions
from cclocal.cli.options import Call
from cclocal.errors import UsageError
from cclocal.settings import MODELS, flags, options

#: (command, what it does), for `cclocal --help`
EXAMPLES = (
    ("cclocal --tiny -- -p 'Create the file a.txt with content: hi'", "no download"),
    ("cclocal --gemma", "Claude Code on Gemma 4, on this machine"),
    ("cclocal --gemma -- --continue", "continue this folder's last conversation"),
    ("cclocal --coder --out-tokens 16384", "room for larger files in one reply"),
    ("cclocal --model ./my.gguf", "a model file of your own"),
    ("cclocal --gemma --dry-run", "what would run, where, and why"),
    ("cclocal --server --gemma", "only the server"),
    ("cclocal 8124", "on the server that listens there; --url for another machine"),
)


class _WithoutBool:
    """Without Typer's <bool> beside switches."""

    def get_params(self, ctx: Any) -> list[Any]:
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return parameters


class _Group(_WithoutBool, TyperGroup):
    pass


class _Command(_WithoutBool, TyperCommand):
    pass


app = typer.Typer(
    name="cclocal",
    cls=_Group,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    pretty_exceptions_enable=False,
)
_COMMANDS = {
    "attach": (attach.attach, attach.EXAMPLES),
    "check": (check.check, check.EXAMPLES),
    "fetch": (models.fetch, models.FETCH_EXAMPLES),
    "list": (models.list_, models.LIST_EXAMPLES),
    "logs": (sessions.logs, sessions.LOGS_EXAMPLES),
    "plan": (plan.plan, plan.EXAMPLES),
    "prompt": (prompt.prompt, prompt.EXAMPLES),
    "rm": (models.rm, models.RM_EXAMPLES),
    "stats": (sessions.stats, sessions.STATS_EXAMPLES),
}
for _name, (_command, _examples) in _COMMANDS.items():
    _lines = [f"  [cyan]{typed}[/]    [dim]{words}[/]" for typed, words in _examples]
    app.command(_name, cls=_Command, epilog="\n".join(("[bold]Examples[/]", *_lines)))(_command)


def _epilog(call_user_file: str) -> str:
    rows = [f"  [cyan]{command}[/]\n      [dim]{words}[/]" for command, words in EXAMPLES]
    rest = f"Everything after the first “--” goes to the agent.\nLasting defaults: {call_user_file}"
    return "\n".join(("[bold]Examples[/]", *rows, "", rest))


def _parameter_name(id_: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in id_)


def add_model_flags(found: Mapping[str, tuple[str, tuple[str, ...]]]) -> dict[str, str]:
    """Give the launch one option per model, so that a new model needs no code. Returns parameter name → model id."""
    ids: dict[str, str] = {}
    made = []
    for id_, (text, names) in found.items():
        name = _parameter_name(id_)
        if name in ids or not names:
            # two ids that differ in a dash are refused when the catalog is checked
            continue
        ids[name] = id_
        option = typer.Option(*(f"--{flag}" for flag in names), rich_help_panel=MODELS, help=text, metavar="")
        annotation = Annotated[bool, option]
        made.append(
            inspect.Parameter(f"model_{name}", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        )
    fixed = inspect.signature(launch.launch).parameters.values()
    parameters = [*(p for p in fixed if p.name == "context"), *made, *(p for p in fixed if p.name != "context")]
    launch.launch.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    launch.launch.__annotations__ = {p.name: p.annotation for p in parameters}
    return ids


def run(words: list[str], call: Call, default_map: dict[str, Any]) -> int | None:
    """Run a command. Raises UsageError for words that it does not know, with the line that was probably meant."""
    app.callback(invoke_without_command=True, cls=_Group, epilog=_epilog(str(call.user_file.path)))(launch.launch)
    try:
        result = app(words, prog_name="cclocal", standalone_mode=False, obj=call, default_map=default_map)
    except typer.TyperException as error:
        raise _in_words(error.format_message().rstrip(), words, call.model_flags) from None
    return result if isinstance(result, int) else None


def _in_words(complaint: str, words: Sequence[str], model_flags: Mapping[str, str]) -> UsageError:
    """The error for what Typer complained about, with the line that was probably meant."""
    command = words[0] if words and words[0] in _COMMANDS else ""
    help_line = f"cclocal {command} -h" if command else "cclocal -h"
    if not complaint.startswith("No such"):
        return UsageError(complaint, hint=help_line)
    at = next((i for i, word in enumerate(words) if word.split("=")[0] in complaint.split("(")[0]), len(words))
    word = "".join(words[at : at + 1]).split("=")[0]
    if _parameter_name(word) in model_flags:
        return UsageError(complaint, hint=shlex.join(("cclocal", *words[:at], f"--{word}", *words[at + 1 :])))
    flag = word.removeprefix("--")
    if command == "attach" and (flag in _server_flags() or _parameter_name(flag) in model_flags):
        # the sentence that --url has for it
        return UsageError(f"cclocal {command} uses a server that runs already, so {word} does nothing.", hint=help_line)
    if command not in ("", "attach"):
        return UsageError(complaint, hint=help_line)
    meant = shlex.join(("cclocal", *words[:at], "--", *words[at:]))
    return UsageError(complaint, hint=f"{meant}    if that is for the agent; else {help_line}")


def _server_flags() -> set[str]:
    """The flags of settings that concern how a server is started."""
    return {flag for name, (_, option) in options().items() if option.scope == "server" for flag in flags(name)}
