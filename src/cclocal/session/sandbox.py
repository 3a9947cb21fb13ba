"""The sandbox of a session: at which level, what it shows, and the line at the start that says so."""

from __future__ import annotations

import platform
import shlex
from pathlib import Path

from cclocal.agents.session import AgentSession
from cclocal.command import Binding, Command, CommandAndFiles
from cclocal.errors import UsageError
from cclocal.facts import Facts
from cclocal.models.headers import parts as parts_of
from cclocal.paths import Env, make_folder
from cclocal.planning.choose import choose_agent, level_of
from cclocal.planning.plan import Plan
from cclocal.programs import is_mac
from cclocal.sandbox import nets
from cclocal.sandbox.look import Needs, allowed, walls_for
from cclocal.sandbox.server import enclosed
from cclocal.sandbox.walls import Sandbox, no_typing
from cclocal.server.changes import TMP
from cclocal.server.receipt import NETWORK
from cclocal.server.registry import running
from cclocal.settings import OFF, STRICT, Settings
from cclocal.ui.console import can_ask, confirm, say, show_error

#: The settings that open a strict sandbox.
_OPENS = ("allow_write", "allow_read", "allow_net", "protect")


def settle(settings: Settings, facts: Facts, *, is_harmless: bool = False) -> Settings:
    """The settings with a level that works here, before anything is started.

    Strict is the default. Where it does not work a terminal is asked whether to go on without it; a model that only
    does what it is told (`is_harmless`) starts without it. Raises SandboxError (36) where nobody can be asked or where
    strict was asked for, UsageError for options that need it.
    """
    level = level_of(settings, facts.machine)
    typed = [name for name in _OPENS if settings.sources.get(name) == "command line"]
    if typed and level != STRICT:
        flag = typed[0].replace("_", "-")
        raise UsageError(f"--{flag} opens the strict sandbox, and there is none.", hint=f"--sandbox {STRICT}")
    if level == STRICT and settings.keep_children and settings.sources.get("keep_children") == "command line":
        words = "In the strict sandbox nothing that the agent started outlives the session."
        raise UsageError(words, hint=f"--keep-children --sandbox {OFF}")
    if level != STRICT or not facts.sandbox_error:
        return settings
    error = facts.sandbox_error
    if settings.sandbox:
        raise error
    if is_harmless:
        say(f"{error.message} {' '.join(error.cause)}".rstrip(), "yellow")
    elif can_ask():
        show_error(error)
        if not confirm("Go on without a sandbox this time?", default=False):
            raise KeyboardInterrupt
    else:
        raise error
    return settings.changed({"sandbox": OFF}, "launch, because strict does not work here")


def confirm_folder(settings: Settings, facts: Facts) -> None:
    """Ask before an agent starts in the user's home or in /, where it may change any file without a strict sandbox.

    Raises UsageError where there is no terminal to ask on, KeyboardInterrupt if the user does not want it.
    """
    home = Path(facts.env.environ["HOME"]).resolve()
    if facts.cwd not in (home, Path("/")) or settings.yes or level_of(settings, facts.machine) == STRICT:
        return
    words = f"The agent would work in {facts.cwd}, and may change every file in it."
    if not can_ask():
        raise UsageError(words, hint="cd to a project's folder, or --yes")
    say(words, "yellow")
    if not confirm("Start it here?", default=False):
        raise KeyboardInterrupt


def sandbox_of(
    session: AgentSession, made: CommandAndFiles, binding: Binding, settings: Settings, facts: Facts
) -> Sandbox | None:
    """The strict sandbox of a session, if it has one. Raises SandboxError (36) where it cannot protect the home."""
    if session.level != STRICT:
        return None
    command, files = made
    config = choose_agent(settings).config_dir(session)
    named = [word for word in command.argv if word.startswith("/") and Path(word).is_file()]
    # empty files of a session are for the agent to write
    shown = [*(binding.file(name) for name, text in files.items() if text), binding.log, session.log_reader, *named]
    needs = Needs(
        tmp=facts.env.folders.state / TMP / binding.session_id,
        files=[*shown, *allowed(settings, "allow_read", session.cwd, facts.env)],
        written=[binding.file(name) for name, text in files.items() if not text],
        opened=allowed(settings, "allow_write", session.cwd, facts.env),
        placeholders=[Path(path) for other in running(facts.env) for path in other.facts.get("mount_points", ())],
        # an MCP configuration starts programs in the next session too
        names=[str(Path(word).expanduser()) for word in (*_protected(settings, session), *settings.mcp)],
    )
    walls = walls_for(session, config, command, needs, facts.env)
    return Sandbox(
        facts.sandbox,
        walls,
        no_typing(platform.machine()) or b"",
        _rules(settings),
        f"{binding.folder}/{NETWORK}",
        is_mac(facts.env.environ),
    )


def server_in_sandbox(plan: Plan, binding: Binding, env: Env) -> CommandAndFiles:
    """The server's command in its sandbox, if it has one, and its files. It reads the files that its command names."""
    command, files = plan.server_command(binding)
    if not plan.engine.sandbox:
        return command, files
    model = Path(plan.request.model_file)
    named = [word for word in command.argv[len(plan.engine.command) :] if word.startswith("/") and Path(word).is_file()]
    parts = [str(model.with_name(name)) for name in parts_of(model.name)]
    reads = dict.fromkeys((*named, *parts, *(binding.file(name) for name in files)))
    writes = [str(Path(binding.socket).parent)]
    if plan.request.prompt_folder:
        make_folder(Path(plan.request.prompt_folder))
        writes.append(plan.request.prompt_folder)
    has_network = bool(plan.engine.workers)
    return enclosed(command, plan.engine.sandbox, env, reads, writes, has_network=has_network), files


def on_fewer(plan: Plan, binding: Binding, env: Env) -> dict[str, tuple[Command | None, str]]:
    """What a server is started with again when some of its workers are lost."""
    found: dict[str, tuple[Command | None, str]] = {}
    for left, context in plan.fewer.items():
        each, now = context // plan.variant.slots, plan.session.context_tokens
        words = f" The context window has {each:,} tokens now." if each < now else ""
        command = server_in_sandbox(plan.with_workers(left, context), binding, env)[0] if context else None
        found[",".join(left)] = command, words if context else " The model does not fit on what is left."
    return found


def _protected(settings: Settings, session: AgentSession) -> tuple[str, ...]:
    """The user's own protected names. Raises UsageError for one in a folder that is not there."""
    for name in settings.protect:
        if not (session.cwd / Path(name).expanduser()).parent.is_dir():
            raise UsageError(f"--protect {name}: there is no such folder.{settings.origin('protect')}")
    return settings.protect


def _rules(settings: Settings) -> tuple[str, ...]:
    """The hosts that the agent may reach. Raises UsageError for a word that names none."""
    try:
        found = nets.rules(settings.allow_net)
    except ValueError as error:
        words = f"--allow-net {error}: neither HOST:PORT nor one of {', '.join(nets.SETS)}."
        raise UsageError(f"{words}{settings.origin('allow_net')}") from None
    return (*found, nets.WEB) if settings.web else found


def say_level(session: AgentSession, sandbox: Sandbox | None, settings: Settings) -> None:
    """What holds the agent in this session, in one line; yellow if nothing of ours does."""
    for name, server in session.mcp.items():
        command = server.get("command")
        where = shlex.join(map(str, (command, *server.get("args", ())))) if command else server.get("url", "?")
        say(f"MCP server {name}: {where}")
    if sandbox:
        say(sandbox.in_words)
        return
    if session.web:
        say("web: Claude Code's WebFetch asks the servers of the pages it reads, and nobody else.")
    words = choose_agent(settings).OWN_LEVELS[session.level]
    say(f"sandbox: {session.level}. {words[0].upper()}{words[1:]}.", "yellow" if session.level == OFF else "")
