"""The commands beside a launch: a running server, a check, the machine, the plan, the prompt, sessions."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Exit, Option

from cclocal.cli.options import ANOTHER_SERVER, WITHOUT_A_SESSION, Call, Json, complete_model, if_typed, takes
from cclocal.cli.session_commands import complete_port
from cclocal.errors import UsageError
from cclocal.settings import lasting, options

if TYPE_CHECKING:
    from cclocal.prompt_cache.breakdown import Breakdown

_MODEL_HELP = options()["model"][1].help
_TUNE = "Find the fastest kind of speculation, alone or not at all. [dim]default: after a check that passed[/]"
_Model = partial(Argument, metavar="[MODEL]", show_default=False, autocompletion=complete_model)


# -- the agent, and what it needs


@takes(*(name for name, (_, option) in options().items() if option.scope in ("agent", "window")))
def attach(
    call: Call,
    port: Annotated[
        int | None,
        Argument(metavar="PORT", help="A port of this machine.", show_default=False, autocompletion=complete_port),
    ] = None,
    model: Annotated[
        str | None, Option("--model", metavar="NAME", help="Model to use, if the server has several.")
    ] = None,
) -> None:
    """Run the agent on a running server (also: cclocal PORT), started by --server or otherwise; it is not stopped."""
    from cclocal.session.attach import attach as story
    from cclocal.session.serve import os_errors_in_words

    port = _which(port, "attach", call)
    with os_errors_in_words(call.env):
        story(port, replace(if_typed(call.settings, "ctx"), model=model), call.env)


def _which(port: int | None, command: str, call: Call) -> int:
    """The port that was typed. Raises UsageError if there is none, with what runs."""
    if port is None:
        from cclocal.session.running import show

        show(call.env, as_json=False)
        raise UsageError("Which port?", hint=f"cclocal {command} PORT")
    return port


@takes("agent")
def env(
    call: Call,
    port: Annotated[
        int | None,
        Argument(metavar="PORT", help="The port of a --server.", show_default=False, autocompletion=complete_port),
    ] = None,
    key: Annotated[bool, Option("--key", help="Print the key alone.")] = False,
    show_key: Annotated[bool, Option("--show-key", help="Print the key on a terminal too.")] = False,
    vscode: Annotated[bool, Option("--vscode", help="Settings for Claude Code's extension of VS Code.")] = False,
    as_json: Json = False,
) -> None:
    """What a plain agent, an editor or a script needs to use a server: eval "$(cclocal env PORT)"."""
    from cclocal.session import by_hand
    from cclocal.ui.console import print_json

    port = _which(port, "env", call)
    handed = by_hand.hand(port, call.settings, call.env)
    # what is written on a terminal is seen by others, and stays
    shown = show_key or not sys.stdout.isatty()
    if key:
        if not shown:
            raise UsageError("The key is not printed on a terminal.", hint=f"cclocal env {port} --key --show-key")
        print(handed.endpoint.key)
    elif as_json:
        print_json(by_hand.as_json(handed, show_key=shown))
    elif vscode:
        print(by_hand.vscode(handed, show_key=shown))
    else:
        for line in by_hand.shell_lines(handed, show_key=shown):
            print(line)


@takes(*WITHOUT_A_SESSION, *ANOTHER_SERVER)
def check(
    call: Call,
    model: Annotated[str | None, _Model(help=_MODEL_HELP, envvar="CCLOCAL_MODEL", show_envvar=False)] = None,
    tune: Annotated[bool | None, Option("--tune/--no-tune", help=_TUNE, show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Prove that a model drives the agent: real requests, real tool calls, a real file. Exit 0 only if it does."""
    from cclocal.models.resolve import canonical
    from cclocal.session.check import check as story
    from cclocal.session.check import check_url as story_of_url
    from cclocal.session.check import end
    from cclocal.session.serve import os_errors_in_words

    if call.settings.url or call.settings.ssh:
        if tune is not None:
            raise UsageError("--tune is for servers that cclocal starts.")
        with os_errors_in_words(call.env):
            # a lasting default is not a model of that server
            typed = model if model != call.env.environ.get("CCLOCAL_MODEL") else None
            name, report = story_of_url(replace(call.settings, model=typed), call.env, show=not as_json)
        if not end(name, report, as_json=as_json):
            raise Exit(1)
        return
    catalog = call.catalog()
    # the check works in a folder of its own
    program = call.settings.llama_server
    settings = replace(
        call.settings,
        model=canonical(catalog, model or catalog.default),
        llama_server=str(Path(program).expanduser().absolute()) if program and "/" in program else program,
    )
    with os_errors_in_words(call.env):
        plan, report = story(settings, catalog, call.env, show=not as_json, calibrate=tune)
    if not end(f"{plan.model.name} on {plan.variant.backend}", report, as_json=as_json):
        raise Exit(1)


@takes("agent", "backend", "llama_server")
def doctor(
    call: Call,
    self_test: Annotated[
        bool,
        Option("--self-test", help="Start the tiny model and try the sandbox, for a bug report: under two minutes."),
    ] = False,
    as_json: Json = False,
) -> None:
    """What on this machine a launch depends on, and what would stop one: exit 1 if something would."""
    if self_test:
        from cclocal.session.self_test import run as examine
    else:
        from cclocal.session.doctor import examine
    from cclocal.ui.console import busy, print_json
    from cclocal.ui.tables import show_finding

    found = []
    with busy("testing" if self_test else "looking around") if not as_json else nullcontext():
        for finding in examine(call.settings, call.catalog(), call.env):
            found.append(finding)
            if not as_json:
                show_finding(finding, found[-2].about if len(found) > 1 else "")
    if as_json:
        print_json([asdict(finding) for finding in found])
    if any(finding.state == "problem" for finding in found):
        raise Exit(1)


@takes("agent", "lean")
def prompt(call: Call, as_json: Json = False) -> None:
    """Where the bytes and tokens of the agent's first request go, against a plain launch; “-- -p” for print mode."""
    from cclocal.prompt_cache.breakdown import break_down
    from cclocal.ui.console import busy, print_json

    with busy("Starting the agent twice, as cclocal starts it and plain"):
        found = break_down(call.settings, call.env)
    found = replace(found, blocks=tuple(sorted(found.blocks, key=lambda block: (-block.bytes, -block.plain_bytes))))
    if as_json:
        print_json(asdict(found))
    else:
        _show_prompt(found)


def _show_prompt(found: Breakdown) -> None:
    """Print a table, in which the tools that are left out are one row."""
    from rich.text import Text

    from cclocal.ui.console import output
    from cclocal.ui.tables import plain_table
    from cclocal.units import count

    def sizes(*numbers: int) -> list[str]:
        return [count(number or None) for number in numbers]

    headings = ("block", "bytes", "tokens", "plain, bytes", "fixed")
    table = plain_table(*headings, right=headings[1:], no_wrap=headings)
    left_out = [block.plain_bytes for block in found.blocks if not block.bytes]
    for block in (block for block in found.blocks if block.bytes):
        fixed = "yes" if block.same else "no"
        table.add_row(block.name, *sizes(block.bytes, block.tokens, block.plain_bytes), fixed)
    if left_out:
        table.add_row(f"{len(left_out)} other tools", *sizes(0, 0, sum(left_out)), style="dim")
    total = [sum(getattr(block, name) for block in found.blocks) for name in ("bytes", "tokens", "plain_bytes")]
    table.add_row("total", *sizes(*total), style="bold")
    notes = [
        f"\nThe first request of {found.agent} without your prompt, compared with a launch without cclocal.",
        f"Tokens: {found.counted_by}'s."
        if found.counted_by
        else "Tokens: estimated as bytes / 4; a running server of cclocal's would count them.",
        "fixed: the same bytes in every session and folder.",
    ]
    if not total[2]:
        notes.append("The plain launch sent no request within its time limit.")
    out = output()
    out.print(table)
    out.print(Text("\n".join(notes), style="dim"))


# -- lasting defaults


@takes(*lasting(), hidden=True)
def config(
    call: Call,
    action: Annotated[
        str,
        Argument(metavar="[show|path|edit|set|unset]", show_default=False, autocompletion=lambda: [*_CONFIG]),
    ] = "show",
    key: Annotated[
        str | None, Argument(help="With set and unset.", show_default=False, autocompletion=lambda: [*lasting()])
    ] = None,
    value: Annotated[list[str] | None, Argument(help="With set: several for a list.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Your lasting defaults: what differs and where it was set, where the file is, changing it."""
    from cclocal.session import config as story

    if action not in _CONFIG:
        raise UsageError(f"cclocal config has no “{action}”.", hint=f"cclocal config [{' | '.join(_CONFIG)}]")
    if (action in ("set", "unset")) != bool(key) or (action == "set") != bool(value):
        raise UsageError(f"cclocal config {_CONFIG[action]}.", hint="cclocal config -h")
    if action == "path":
        print(call.user_file.path)
    elif action == "edit":
        story.edit(call.env)
    elif action == "show":
        story.show(call.settings, call.env, as_json=as_json)
    else:
        story.change(key or "", value or [], call.env)


#: What `cclocal config` can do, and how that is typed.
_CONFIG = {
    "show": "show takes no more words",
    "path": "path takes no more words",
    "edit": "edit takes no more words",
    "set": "set takes a KEY and a VALUE",
    "unset": "unset takes a KEY",
}
