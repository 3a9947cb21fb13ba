"""The story of attaching: an agent on a server that runs already, one of our own `--server` or any other. The server is
never stopped.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from cclocal import http
from cclocal.agents import Agent
from cclocal.agents.session import AgentSession
from cclocal.backends import BACKENDS
from cclocal.command import Binding, CommandAndFiles, Endpoint
from cclocal.discovery.look import look_around
from cclocal.errors import NotReadyError, ServerDiedError, UsageError
from cclocal.facts import Facts
from cclocal.paths import Env, make_folder, read_table, write_private
from cclocal.planning.choose import agent_session, check_agent, choose_agent, level_of
from cclocal.planning.plan import relay_options
from cclocal.server.readiness import NotYet, check_models
from cclocal.server.registry import SessionRecord, check_proc
from cclocal.server.remote import check_url, look
from cclocal.server.request import ServerStart
from cclocal.server.start import Server, exec_agent, listen, new_binding, start_server
from cclocal.session.by_hand import check_wire
from cclocal.session.sandbox import confirm_folder, say_level, settle
from cclocal.session.serve import again, become, conversations, farewell, lay_out_config
from cclocal.session.servers import ENDPOINT, serving
from cclocal.settings import STRICT, Settings
from cclocal.ui.console import busy, say
from cclocal.wires import WIRES

#: The longest reply if none is given.
_OUT_TOKENS = 8192
#: How addresses name this machine.
_HERE = ("127.0.0.1", "localhost")


@dataclass(frozen=True, slots=True)
class Opened:
    """A session on a server that runs already: the agent's command, its relay, and what kind of server it is.

    settings: those given, with what the sandbox must allow. endpoint: of the relay.
    """

    session: AgentSession
    made: CommandAndFiles
    server: Server
    settings: Settings
    endpoint: Endpoint
    kind: str


def attach(port: int, settings: Settings, env: Env, address: str | None = None) -> NoReturn:
    """Become the agent on the server at a port of this machine."""
    servers = serving(env)
    record = _chosen([server for server in servers if server.port == str(port)], settings.model)
    if record:
        _attach_ours(record, settings, env)
    try:
        _, settings, facts = agent_of(settings, env)
        _attach_other(address or f"http://127.0.0.1:{port}", "", settings, facts)
    except NotReadyError as error:
        error.hint = error.hint or (f"cclocal attach {servers[0].port}" if servers else None)
        raise


def attach_url(settings: Settings, env: Env) -> NoReturn:
    """Become the agent on the server at `settings.url`. Raises UsageError for a wrong address or a missing key."""
    address, key, settings = _given(settings, env)
    host, _, port = address.removeprefix("http://").rpartition(":")
    if not key and host in _HERE:
        # it may be one of our own, whose key is known
        attach(int(port), settings, env, address)
    _, settings, facts = agent_of(settings, env)
    _attach_other(address, key, settings, facts)


def open_url(settings: Settings, env: Env) -> Opened:
    """The same session, for a check. Raises UsageError for a wrong address or a missing key."""
    address, key, settings = _given(settings, env)
    _, settings, facts = agent_of(settings, env)
    host, _, port = address.removeprefix("http://").rpartition(":")
    here = [server for server in serving(env) if server.port == port] if host in _HERE else []
    ours = _chosen(here, settings.model)
    served = read_table(ours.folder / ENDPOINT) if ours and not key else {}
    return open_other(served.get("url", address), served.get("key", key), settings, facts)


def _given(settings: Settings, env: Env) -> tuple[str, str, Settings]:
    """(the address of another server, its key, the settings). Raises UsageError."""
    address = check_url(settings.url or "", insecure=settings.insecure_http)
    return address, key_of(settings, env), _with_ca(settings)


def key_of(settings: Settings, env: Env) -> str:
    """The key of another server; empty if none is given. Raises UsageError for a variable that is not there."""
    name = settings.key_env
    if name and not env.environ.get(name):
        raise UsageError(f"--key-env {name}: there is no such variable, or it is empty.")
    return env.environ[name] if name else ""


def _with_ca(settings: Settings) -> Settings:
    """The settings with the path of the authority's file made absolute. Raises UsageError if it holds none."""
    if not settings.ca:
        return settings
    path = Path(settings.ca).expanduser().absolute()
    try:
        ssl.create_default_context(cafile=str(path))
    except OSError as error:
        why = "it holds no certificate (PEM)" if isinstance(error, ssl.SSLError) else error.strerror
        raise UsageError(f"--ca {settings.ca}: {why}.{settings.origin('ca')}") from None
    return replace(settings, ca=str(path))


def port_of(word: str, env: Env) -> int | None:
    """The port on which another terminal serves a model already."""
    return next((int(server.port) for server in serving(env) if server.model == word), None)


def _chosen(there: list[SessionRecord], model: str | None) -> SessionRecord | None:
    """The session that is meant: one running Ollama may hold several. Raises UsageError if that is not clear."""
    named = [session for session in there if session.model == model] or there
    if len({session.model for session in named}) > 1:
        models = ", ".join(session.model for session in there)
        raise UsageError(f"Which model? There are {models}.", hint=f"--model {there[0].model}")
    return next(iter(named), None)


def _attach_ours(record: SessionRecord, settings: Settings, env: Env) -> NoReturn:
    """On a server of ours: it recorded its window, its key and what it passes to the agent."""
    served = read_table(record.folder / ENDPOINT)
    settings = replace(
        settings,
        agent=settings.agent or served.get("agent"),
        out_tokens=settings.out_tokens or served["out_tokens"],
        pass_env=tuple(dict.fromkeys((*served["passed"], *settings.pass_env))),
        no_tools=settings.no_tools or not served.get("tools", True),
        lean=served.get("lean") if settings.lean is None else settings.lean,
    )
    _wait_for(record, served)
    if settings.model and settings.model not in (served["model"], record.model):
        raise UsageError(f"The server on {record.port} has {record.model}, not {settings.model}.")
    check_wire(record, choose_agent(settings))
    agent, settings, facts = agent_of(settings, env)
    if level_of(settings, facts.machine) == STRICT:
        # a sandbox reaches the server by a relay of its own
        settings = replace(settings, model=served["model"])
        served = {"log_reader": "", **served, "log": str(record.facts.get("log", ""))}
        _attach_other(served["url"], served["key"], settings, facts, served)
    session = session_on(f"{record.model} on port {record.port}", served["context_tokens"], agent, settings, facts)
    session = replace(
        session,
        log_reader=served.get("log_reader", ""),
        also=tuple(served.get("also", ())),
        sees=served.get("sees"),
    )
    # inside the server's session, with which it is removed
    folder = record.folder / f"attached-{os.getpid()}"
    endpoint = Endpoint(served["url"], served["key"], served["model"])
    _prepare(agent, session)
    say_level(session, None, settings)
    log = str(record.facts.get("log", ""))
    command, files = agent.command(session, endpoint, Binding("", endpoint.key, str(folder), "", log))
    for name, content in files.items():
        write_private(folder / name, content)
    exec_agent(command, env.environ)


def _wait_for(record: SessionRecord, served: Mapping[str, Any]) -> None:
    """Return when a server of ours that may still be loading answers. Raises ServerDiedError if it ends instead."""
    import httpx

    with (
        busy(f"{record.model}: loading in the other terminal"),
        http.client(served["url"], served["key"], limit_s=5.0) as client,
    ):
        while record.is_running and record.is_alive("server"):
            try:
                check_models(client.get("/v1/models"), served["model"])
                return
            except (httpx.TransportError, NotYet):
                time.sleep(0.1)
    raise ServerDiedError("The server in the other terminal has ended.", hint="cclocal --server")


def _attach_other(
    address: str, key: str, settings: Settings, facts: Facts, served: Mapping[str, Any] | None = None
) -> NoReturn:
    found = open_other(address, key, settings, facts, served)
    become(found.session, found.made, found.server, found.settings, facts)


def open_other(
    address: str, key: str, settings: Settings, facts: Facts, served: Mapping[str, Any] | None = None
) -> Opened:
    """A session through a relay of its own, on a server that is asked for its models and its window.

    `served`: what a server of ours recorded of itself, and its log.
    """
    agent, env = choose_agent(settings), facts.env
    with busy(f"Asking {address} for its models"):
        model, found = look(address, key, WIRES[agent.WIRE], settings.model, ca=settings.ca or "")
    # with several slots the server itself reports the window of all
    served_tokens = served["context_tokens"] if served else found.context_tokens
    session = session_on(f"{model} at {address}", served_tokens, agent, settings, facts)
    session = replace(session, sees=served.get("sees") if served else found.sees)
    say(f"{model} on {found.kind} at {address}, with a context window of {session.context_tokens:,} tokens.")
    _prepare(agent, session)
    make_folder(env.folders.sessions)
    with listen(None) as listener:
        binding = new_binding(env, listener.getsockname()[1])
        # its own log would hide the one of the newest server
        binding = replace(binding, log=str(make_folder(Path(binding.folder)) / "relay.log"))
        shown = binding
        if served:
            # what the model server does shows in its log
            session = replace(session, log_reader=served["log_reader"], also=tuple(served.get("also", ())))
            shown = replace(binding, log=served["log"])
            settings = replace(settings, allow_read=(*settings.allow_read, served["log"]))
        command, files = agent.command(session, Endpoint.of_relay(binding, model), shown)
        trust = {"authorities": http.authorities(settings.ca or "")} if address.startswith("https:") else {}
        refusals = [row for backend in BACKENDS.values() for row in backend.REFUSALS]
        is_interactive = agent.is_interactive(settings.agent_args)
        to_go_on = again(address.rpartition(":")[2] if served else address, settings)
        start = ServerStart(
            files=files,
            about={
                "model": model,
                "port": int(binding.port),
                "agent": agent.NAME,
                "url": address,
                "cwd": str(session.cwd),
            },
            looks_at=session.folders,
            level=session.level,
            receipt=settings.receipt,
            relay={**relay_options(binding, Endpoint(address, key, model), refusals), **trust},
            terminal_reset=agent.TERMINAL_RESET if is_interactive else "",
            conversations=conversations(agent, session),
            farewell=farewell(to_go_on, agent, env) if is_interactive else "",
        )
        server = start_server(start, binding, listener, env)
        return Opened(session, (command, files), server, settings, Endpoint.of_relay(binding, model), found.kind)


def session_on(server: str, window: int | None, agent: Agent, settings: Settings, facts: Facts) -> AgentSession:
    """The session on a server with a window of so many tokens (None: it reports none), or with less if that is asked.

    Raises UsageError if more is asked for, or if the window is too small for the agent and its replies.
    """
    if window is None and settings.ctx is None:
        raise UsageError(f"{server} does not report its window.", hint="--ctx TOKENS, as set for that server")
    if window and settings.ctx and settings.ctx > window:
        raise UsageError(f"--ctx {settings.ctx:,} is more than the {window:,} tokens of {server}.")
    context, out_tokens = settings.ctx or window or 0, settings.out_tokens or _OUT_TOKENS
    least = agent.window(context, out_tokens, settings.prompt).least_tokens
    if context < least:
        raise UsageError(
            f"{server} has a window of {context:,} tokens; the agent needs {least:,} for replies of {out_tokens:,}. "
            "With less, earlier messages are lost silently.",
            hint="start that server with a larger context, or a smaller --out-tokens here",
        )
    return agent_session(settings, facts, context, out_tokens)


def agent_of(settings: Settings, env: Env) -> tuple[Agent, Settings, Facts]:
    """The agent, the settings with a sandbox that works, and the folder it would work in.

    Raises AgentMissingError (35) if the agent is not there, SandboxError (36).
    """
    # before the sandbox is tried, which may hang there
    check_proc()
    agent, facts = choose_agent(settings), look_around(env, settings)
    settings = settle(settings, facts)
    confirm_folder(settings, facts)
    check_agent(agent, facts, settings)
    return agent, settings, facts


def _prepare(agent: Agent, session: AgentSession) -> None:
    """Say what the user should know, and lay out the agent's folder."""
    for note in agent.notes(session):
        say(note, "yellow")
    lay_out_config(agent.config_dir(session))
