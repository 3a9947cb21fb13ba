"""Claude Code on a server that is already there: one of our own `--server`, or anybody's. It is never stopped."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cclocal.agents import AGENTS, Session
from cclocal.agents.claude.spec import least_context_tokens
from cclocal.command import SESSION, Endpoint
from cclocal.discovery.look import look_around
from cclocal.errors import NotReadyError, ServerDiedError, UsageError
from cclocal.facts import Facts
from cclocal.paths import Folders, write_private
from cclocal.planning.plan import check_agent
from cclocal.server.readiness import NotYet, check_models
from cclocal.server.registry import SessionState, clear_abandoned, own_folder, sessions
from cclocal.server.remote import check_url, look
from cclocal.server.start import become
from cclocal.session.launch import ENDPOINT, in_the_way, say_set_aside
from cclocal.settings import Settings
from cclocal.ui import console as ui

#: The reply's length where nobody says otherwise.
_OUT_TOKENS = 8192


def attach(
    port: int, settings: Settings, folders: Folders, environ: Mapping[str, str], address: str | None = None
) -> None:
    """Become the agent on what answers at a port of this machine. Returns only by raising."""
    held = _held(folders)
    session = _chosen([session for session in held if session.port == str(port)], settings.model)
    if session is None:
        try:
            _attach_foreign(address or f"http://127.0.0.1:{port}", "", settings, folders, environ)
        except NotReadyError as error:
            error.hint = error.hint or (f"cclocal attach {held[0].port}" if held else None)
            raise
        return
    told = json.loads((session.folder / ENDPOINT).read_text("utf-8"))
    _wait_for(session, told)
    if settings.model and settings.model not in (told["model"], session.model):
        raise UsageError(f"The server on {port} has {session.model}, not {settings.model}.")
    if settings.ctx and settings.ctx > told["context_tokens"]:
        raise UsageError(f"--ctx {settings.ctx:,} is more than the {told['context_tokens']:,} tokens it serves.")
    wanted = Session(
        Endpoint(told["url"], told["key"], told["model"]),
        settings.ctx or told["context_tokens"],
        settings.out_tokens or told["out_tokens"],
        tuple(told["passed"]),
        settings.agent_args,
        bool(told.get("tools", True)) and not settings.no_tools,
        bool(told.get("lean")) if settings.lean is None else settings.lean,
        str(session.facts.get("log", "")),
    )
    # inside the server's session, with which it goes
    _become(wanted, session.folder / f"attached-{os.getpid()}", _with_agent(folders, environ))


def _held(folders: Folders) -> list[SessionState]:
    """The servers that `--server` holds in other terminals."""
    running = [session for session in sessions(folders) if session.is_running]
    return [session for session in running if (session.folder / ENDPOINT).exists()]


def _chosen(there: list[SessionState], model: str | None) -> SessionState | None:
    """The session that is meant: an Ollama that runs already may hold several. Raises UsageError if it is not clear."""
    named = [session for session in there if session.model == model] or there
    if len({session.model for session in named}) > 1:
        models = ", ".join(session.model for session in there)
        raise UsageError(f"Which model? There are {models}.", hint=f"--model {there[0].model}")
    return next(iter(named), None)


def port_of(model_id: str, folders: Folders) -> int | None:
    """The port on which another terminal serves a model already."""
    return next((int(session.port) for session in _held(folders) if session.model == model_id), None)


def _wait_for(session: SessionState, told: Mapping[str, Any]) -> None:
    """Return when a server of ours that is still loading answers. Raises ServerDiedError if it ends instead."""
    import httpx

    headers = {"authorization": f"Bearer {told['key']}", "x-api-key": told["key"]}
    with ui.busy(f"{session.model}: loading in the other terminal"), httpx.Client(trust_env=False) as client:
        while session.is_running and session.is_alive("server"):
            with contextlib.suppress(httpx.TransportError, NotYet):
                check_models(client.get(f"{told['url']}/v1/models", headers=headers), told["model"])
                return
            time.sleep(0.1)
    raise ServerDiedError("The server in the other terminal has ended.", hint="cclocal --server")


def attach_url(
    url: str,
    key_env: str | None,
    settings: Settings,
    folders: Folders,
    environ: Mapping[str, str],
    *,
    insecure: bool = False,
) -> None:
    """Become the agent on a server by its address. Returns only by raising."""
    address = check_url(url, insecure=insecure)
    if key_env and not environ.get(key_env):
        raise UsageError(f"--key-env {key_env}: there is no such variable, or it is empty.")
    host, _, port = address.removeprefix("http://").rpartition(":")
    if not key_env and host in ("127.0.0.1", "localhost"):
        # it may be one of our own, whose key we know
        attach(int(port), settings, folders, environ, address)
    _attach_foreign(address, environ[key_env] if key_env else "", settings, folders, environ)


def _attach_foreign(address: str, key: str, settings: Settings, folders: Folders, environ: Mapping[str, str]) -> None:
    # before anybody is asked to compute anything
    facts = _with_agent(folders, environ)
    with ui.busy(f"Asking {address} what it is"):
        found = look(address, key, settings.model)
    context = _context(address, found.context_tokens, settings)
    out = settings.out_tokens or _OUT_TOKENS
    if context < least_context_tokens(out):
        raise UsageError(
            f"{found.model} at {address} has a window of {context:,} tokens; the agent needs "
            f"{least_context_tokens(out):,} for replies of {out:,}. Started with less, it would forget without a word.",
            hint="start that server with a larger context, or a smaller --out-tokens here",
        )
    ui.say(f"{found.model} on {found.kind} at {address}, a window of {context:,} tokens.")
    # a server without keys takes any
    endpoint = Endpoint(address, key or "none-needed", found.model)
    wanted = Session(
        endpoint, context, out, settings.pass_env, settings.agent_args, not settings.no_tools, bool(settings.lean)
    )
    # there is no keeper where there is no server of ours
    attached = folders.state / "attached"
    clear_abandoned(attached)
    # exec keeps the process it is named after
    _become(wanted, own_folder(attached), facts)


def _context(address: str, served: int | None, settings: Settings) -> int:
    """The window to go by: the server's own, or less if that is wished."""
    if served is None and settings.ctx is None:
        raise UsageError(
            f"{address} does not tell how large its window is.", hint="--ctx TOKENS, as that server was started"
        )
    if served and settings.ctx and settings.ctx > served:
        raise UsageError(f"--ctx {settings.ctx:,} is more than the {served:,} tokens that {address} serves.")
    return settings.ctx or served or 0


def _with_agent(folders: Folders, environ: Mapping[str, str]) -> Facts:
    """The folder we are in and its agent. Raises AgentMissingError (35) if there is none to become."""
    try:
        facts = look_around(folders, environ)
    except OSError as error:
        raise in_the_way(error, folders) from None
    check_agent(AGENTS["claude"], facts)
    return facts


def _become(wanted: Session, folder: Path, facts: Facts) -> None:
    try:
        agent = AGENTS["claude"]
        for note in agent.notes(facts, wanted):
            ui.say(note, "yellow")
        say_set_aside(agent.home(facts))
        command, files = agent.command(facts, wanted)
        for file in files:
            write_private(folder / file.name, file.content)
    except OSError as error:
        raise in_the_way(error, facts.folders) from None
    become(command.bind({SESSION: str(folder)}), facts.environ)
