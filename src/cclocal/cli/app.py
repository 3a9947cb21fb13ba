"""The Typer application: the commands, corrections for mistyped words, and the launch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from cclocal import __version__
from cclocal.agents.session import Asked
from cclocal.cli import commands, model_commands, session_commands
from cclocal.cli.options import ANOTHER_SERVER, Call, if_typed, takes, typed
from cclocal.config_file import COMMANDS, nearest
from cclocal.errors import UsageError
from cclocal.settings import Settings, flags, options

#: An option that starts nothing.
_Look = partial(typer.Option, rich_help_panel="Look without starting")


#: How alike a mistyped option and the one that was meant are (difflib's ratio).
_ALIKE = 0.75
#: (command, what it does), for `cclocal --help`
EXAMPLES = (
    ("cclocal tiny -p 'Create the file a.txt with content: hi'", "no download; print and end"),
    ("cclocal gemma", "Claude Code on Gemma 4, on this machine"),
    ("cclocal gemma 'fix the failing test'", "with its first prompt"),
    ("cclocal gemma --continue", "continue this folder's last conversation; --resume [ID]: another one"),
    ("cclocal coder --out-tokens 16k", "room for larger files in one reply"),
    ("cclocal ./my.gguf", "a model file of your own"),
    ("cclocal gemma --dry-run", "what would run, where, and why"),
    ("cclocal gemma --server", "only the server"),
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
    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Models too: the first word is a command or a model."""
        found = super().shell_complete(ctx, incomplete)
        # the class of an item is private to Typer
        item = type(next(iter(super().shell_complete(ctx, ""))))
        models = [name for _, names in ctx.obj.models.values() for name in names[:1]] if ctx.obj else []
        return [*found, *(item(name) for name in models if name.startswith(incomplete))]


class _Command(_WithoutBool, TyperCommand):
    pass


app = typer.Typer(
    name="cclocal",
    cls=_Group,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    pretty_exceptions_enable=False,
)
_EXAMPLES = {
    commands.attach: (
        ("cclocal attach 8132", "on the server that listens there (also: cclocal 8132)"),
        ("cclocal attach 8132 --continue", "continue this folder's last conversation"),
    ),
    commands.check: (
        ("cclocal check gemma", "real requests, real tool calls, a real file"),
        ("cclocal check gemma --kv q8_0 --json", "as it would be started with these options"),
    ),
    commands.config: (
        ("cclocal config", "what is set, and where"),
        ("cclocal config set ctx 64k", "a lasting default"),
    ),
    commands.doctor: (
        ("cclocal doctor", "what is there, what is in the way"),
        ("cclocal doctor --agent codex --json", "for another agent, for scripts"),
    ),
    commands.env: (
        ('eval "$(cclocal env 8132)"', "then a plain claude in this shell uses that server"),
        ("cclocal env 8132 --agent codex", "the same for another agent"),
    ),
    model_commands.fetch: (
        ("cclocal --fetch gemma coder", "download now, start later"),
        ("cclocal fetch owner/name:Q8_0", "any model of the hub"),
    ),
    model_commands.list_: (
        ("cclocal --list", "every model that cclocal can see"),
        ("cclocal list gemma --json", "one of them, for scripts"),
    ),
    session_commands.logs: (
        ("cclocal logs", "the newest server's log"),
        ("cclocal logs -n 20 -f", "its end, and follow it"),
    ),
    model_commands.plan: (
        ("cclocal plan", "the whole catalog on this machine"),
        ("cclocal plan gemma --ram 24 --macos 26", "one model on another machine"),
        ("cclocal plan coder --gpus 2x24,1x80", "on GPUs of several, by vLLM"),
    ),
    commands.prompt: (
        ("cclocal prompt", "of a session on a terminal"),
        ("cclocal prompt --lean -- -p", "of print mode, with the short prompt"),
    ),
    model_commands.rm: (
        ("cclocal --rm coder", "remove one, after a question"),
        ("cclocal rm all --dry-run", "what would be removed"),
    ),
    session_commands.ps: (("cclocal ps", "sessions and servers"), ("cclocal ps --json", "for scripts")),
    session_commands.stop: (
        ("cclocal stop", "the only server that runs"),
        ("cclocal stop 8132", "the one on this port"),
    ),
    session_commands.update: (
        ("cclocal update", "what is newer, and how to get it"),
        ("cclocal update --json", "for scripts"),
    ),
    session_commands.stats: (
        ("cclocal stats", "the newest session"),
        ("cclocal stats 5be0c1d2 --json", "another one, for scripts"),
        ("cclocal stats --html", "as charts, in a file for a browser"),
    ),
}
for _command, _examples in _EXAMPLES.items():
    _lines = [f"  [cyan]{example}[/]    [dim]{words}[/]" for example, words in _examples]
    _name = _command.__name__.rstrip("_")
    app.command(_name, cls=_Command, epilog="\n".join(("[bold]Examples[/]", *_lines)))(_command)


def run(words: list[str], call: Call, default_map: dict[str, Any]) -> int | None:
    """Run a command. Raises UsageError for words that it does not know, with the line that was probably meant."""
    rows = [f"  [cyan]{command}[/]\n      [dim]{does}[/]" for command, does in EXAMPLES]
    rest = (
        "-p, --continue and --resume are for the agent, and so is everything after the first “--”.\n"
        f"Lasting defaults: {call.user_file.path}"
    )
    epilog = "\n".join(("[bold]Examples[/]", *rows, "", rest))
    with_options = takes(*options(), models=call.models.values())(launch)
    app.callback(invoke_without_command=True, cls=_Group, epilog=epilog)(with_options)
    try:
        result = app(words, prog_name="cclocal", standalone_mode=False, obj=call, default_map=default_map)
    except typer.TyperException as error:
        raise _in_words(error.format_message().rstrip(), words, call) from None
    return result if isinstance(result, int) else None


def _in_words(complaint: str, words: Sequence[str], call: Call) -> UsageError:
    """The error for what Typer complained about, with the line that was probably meant."""
    command = words[0] if words and words[0] in COMMANDS else ""
    help_line = f"cclocal {command} -h" if command else "cclocal -h"
    if not complaint.startswith("No such"):
        return UsageError(complaint, hint=help_line)
    at = next((i for i, word in enumerate(words) if word.split("=")[0] in complaint.split("(")[0]), len(words))
    word = "".join(words[at : at + 1]).split("=")[0]
    of_models = {name for _, names in call.models.values() for name in names}
    of_server = {flag for name, (_, option) in options().items() if option.scope == "server" for flag in flags(name)}
    if command == "attach" and word.removeprefix("--") in of_models | of_server:
        # the sentence that --url has for it
        return UsageError(f"cclocal {command} uses a server that runs already, so {word} does nothing.", hint=help_line)
    what = f"cclocal {command} has" if command else "There is"
    complaint = f"{what} no option {word}." if word else complaint
    known = {f"--{flag}" for name in options() for flag in flags(name)} | {f"--{name}" for name in of_models}
    if near := nearest(word, known, at_least=_ALIKE) if word and not command else None:
        return UsageError(f"{complaint} Did you mean {near}?")
    if command not in ("", "attach"):
        return UsageError(complaint, hint=help_line)
    meant = shlex.join(("cclocal", *words[:at], "--", *words[at:]))
    return UsageError(complaint, hint=f"{meant}    if that is for the agent; else {help_line}")


# -- a launch, and looking without starting


def launch(
    call: Call,
    dry_run: Annotated[bool, _Look("--dry-run", help="Show what would run, and why.")] = False,
    list_models: Annotated[bool, _Look("--list-models", help="Show the catalog.")] = False,
    as_json: Annotated[bool, _Look("--json", help="With --dry-run or --list-models: for scripts.")] = False,
    version: Annotated[bool, _Look("--version", help="The version.")] = False,
) -> None:
    """A coding agent on a model on your own machine: one command, tools that execute, nothing sent anywhere."""
    settings = _with_model(call.settings, call.named)
    if call.invoked:
        if given := typed(settings, "server", "agent", "window", ""):
            hint = f"cclocal {call.invoked} -h"
            raise UsageError(f"{given[0]} is an option of a launch and does nothing for “{call.invoked}”.", hint=hint)
        return
    if version:
        print(f"cclocal {__version__}")
        return
    if list_models:
        from cclocal.discovery.speeds import written
        from cclocal.ui.tables import show_catalog

        show_catalog(call.catalog(), written(call.env), as_json=as_json)
        return
    if as_json and not dry_run:
        raise UsageError("--json goes with --dry-run or --list-models.")
    if (settings.url or settings.ssh) and not _starts_a_server(settings, bool(call.named), dry_run):
        from cclocal.session.attach import attach_url
        from cclocal.session.serve import os_errors_in_words
        from cclocal.session.tunnel import attach_by_ssh

        with os_errors_in_words(call.env):
            (attach_by_ssh if settings.ssh else attach_url)(if_typed(settings, "model", "ctx"), call.env)
    unused = [name for name in ANOTHER_SERVER if name != "url" and settings.sources.get(name) == "command line"]
    if unused and not settings.url:
        raise UsageError(f"--{flags(unused[0])[0]} goes with --url or --ssh.")
    _launch(settings, call, dry_run=dry_run, as_json=as_json)


def _with_model(settings: Settings, named: tuple[str, ...]) -> Settings:
    """The settings with the model that a flag names: it beats a lasting default, but two on one line are a mistake."""
    given = [f"--{id_}" for id_ in named]
    if settings.model and settings.sources.get("model") == "command line":
        given.append(f"--model {settings.model}")
    if len(given) > 1:
        raise UsageError(f"Choose one model: {' or '.join(given)}.")
    return settings.changed({"model": named[0]}, "command line") if named else settings


def _starts_a_server(settings: Settings, is_model_flag: bool, dry_run: bool) -> bool:
    """Whether a server is started although an address is given: only if the address comes from CCLOCAL_URL.

    Raises UsageError for a typed address with options about a server that is started.
    """
    flags = typed(settings, "server") + (["--dry-run"] if dry_run else [])
    if settings.ssh and settings.server:
        # they are for the server that is started there
        flags = flags[-1:] if dry_run else []
    is_typed = bool(settings.ssh) or settings.sources.get("url") == "command line"
    if flags and is_typed:
        given = "--ssh" if settings.ssh else "--url"
        raise UsageError(f"{given} uses a server that runs already, so {flags[0]} does nothing.")
    starts = not is_typed and (is_model_flag or bool(flags))
    if starts:
        from cclocal.ui.console import say

        reason = "a model was named" if is_model_flag else f"{flags[0]} is for a server that cclocal starts"
        say(f"CCLOCAL_URL is set but not used: {reason}.", "dim")
    return starts


def _launch(settings: Settings, call: Call, *, dry_run: bool, as_json: bool) -> None:
    from cclocal.models.resolve import canonical
    from cclocal.session import launch as story
    from cclocal.session.serve import os_errors_in_words
    from cclocal.ui.console import can_ask, say

    env, catalog, seen = call.env, call.catalog(), None
    settings = replace(settings, model=settings.model and canonical(catalog, settings.model))
    if settings.model is None:
        if settings.server or settings.safe or dry_run:
            settings = settings.changed({"model": catalog.default}, "catalog")
        else:
            from cclocal.session.models import choose

            facts, limit = story.survey(settings, catalog, env)
            settings, facts = choose(catalog, settings, facts)
            seen = facts, limit
    if dry_run:
        from cclocal.discovery.look import look
        from cclocal.session import also
        from cclocal.session.steps import prepare
        from cclocal.ui.tables import show_plan

        now, others = also.share_window(*also.with_others(prepare(settings, catalog, look(env, settings, catalog))))
        show_plan(also.whole_plan(now, others), env.environ, as_json=as_json)
        return
    if settings.server and call.asked != Asked():
        words = "--server starts no agent, so there is nobody to give a prompt to."
        raise UsageError(words, hint="cclocal attach PORT 'PROMPT', in another terminal")
    if settings.safe and not can_ask():
        raise UsageError("--safe asks first, and there is no terminal to ask on.", hint="--no-safe")
    from cclocal.session import attach

    with os_errors_in_words(env):
        # options about the server or the window ask for one of their own
        port = None if typed(settings, "server", "window") else attach.port_of(settings.model or "", env)
        if port is not None:
            say(f"{settings.model} is served in another terminal already, on port {port}: using that.")
            attach.attach(port, replace(settings, ctx=None), env)
        seen = seen or story.survey(settings, catalog, env)
        if settings.server:
            story.run_server(settings, catalog, seen)
        else:
            story.launch(settings, catalog, seen)
