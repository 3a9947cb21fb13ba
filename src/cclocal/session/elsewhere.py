"""A session on a server that runs already: what `attach`, a check and a tunnel share."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cclocal import http
from cclocal.agents import Agent
from cclocal.agents.session import AgentSession
from cclocal.backends import BACKENDS
from cclocal.command import Binding, CommandAndFiles, Endpoint
from cclocal.discovery.look import look_around
from cclocal.errors import UsageError
from cclocal.facts import Facts
from cclocal.paths import Env, make_folder
from cclocal.planning.choose import agent_session, check_agent, choose_agent
from cclocal.planning.plan import relay_options
from cclocal.server.registry import check_proc
from cclocal.server.remote import FIRST_TOKEN_LIMIT_S, REFUSALS, check_url, look
from cclocal.server.request import ServerStart
from cclocal.server.start import Server, listen, new_binding, start_server
from cclocal.session.sandbox import confirm_folder, settle
from cclocal.session.serve import again, conversations, farewell, lay_out_config
from cclocal.settings import Settings
from cclocal.ui.console import busy, say
from cclocal.wires import WIRES

#: The longest reply if none is given.
_OUT_TOKENS = 8192


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


def given(settings: Settings, env: Env) -> tuple[str, str, Settings]:
    """(the address of another server, its key, the settings). Raises UsageError."""
    address = check_url(settings.url or "", insecure=settings.insecure_http)
    return address, key_of(settings, env), with_ca(settings)


def key_of(settings: Settings, env: Env) -> str:
    """The key of another server; empty if none is given. Raises UsageError for a variable that is not there."""
    name = settings.key_env
    if name and not env.environ.get(name):
        raise UsageError(f"--key-env {name}: there is no such variable, or it is empty.")
    return env.environ[name] if name else ""


def with_ca(settings: Settings) -> Settings:
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


def open_other(
    address: str, key: str, settings: Settings, facts: Facts, served: Mapping[str, Any] | None = None
) -> Opened:
    """A session through a relay of its own, on a server that is asked for its models and its window.

    `served`: what a server of ours recorded of itself, and its log.
    """
    agent, env = choose_agent(settings), facts.env
    model, session, kind = find_session(address, key, agent, settings, facts, served=served)
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
        endpoint = Endpoint.of_relay(binding, model)
        made = agent.command(session, endpoint, shown)
        to_go_on = again(address.rpartition(":")[2] if served else address, settings)
        start = start_of(session, agent, binding, Endpoint(address, key, model), to_go_on, settings, env)
        trust = {"authorities": http.authorities(settings.ca or "")} if address.startswith("https:") else {}
        start = replace(start, files=made[1], relay={**start.relay, **trust})
        server = start_server(start, binding, listener, env)
        return Opened(session, made, server, settings, endpoint, kind)


def find_session(
    url: str,
    key: str,
    agent: Agent,
    settings: Settings,
    facts: Facts,
    *,
    shown: str = "",
    served: Mapping[str, Any] | None = None,
) -> tuple[str, AgentSession, str]:
    """(the model of a server, the session on it, the kind of server), which is said; the agent's folder is laid out.

    `shown`: the address in messages. `served`: what a server of ours recorded of itself. Raises what `look` raises.
    """
    where = shown or url
    with busy(f"Asking {where} for its models"):
        least_s = float(facts.env.environ.get("CCLOCAL_TEST_HANG_S") or FIRST_TOKEN_LIMIT_S)
        limit_s = max(least_s, 60.0 * (settings.wait or 0))
        wire, ca = WIRES[agent.WIRE], settings.ca or ""
        model, found = look(url, key, wire, settings.model, ca=ca, shown=where, limit_s=limit_s)
    # with several slots the server itself reports the window of all
    served_tokens = served["context_tokens"] if served else found.context_tokens
    session = session_on(f"{model} at {where}", served_tokens, agent, settings, facts)
    session = replace(session, sees=served.get("sees") if served else found.sees)
    say(f"{model} on {found.kind} at {where}, with a context window of {session.context_tokens:,} tokens.")
    prepare(agent, session)
    return model, session, found.kind


def start_of(
    session: AgentSession,
    agent: Agent,
    binding: Binding,
    server: Endpoint,
    to_go_on: str,
    settings: Settings,
    env: Env,
    *,
    shown: str = "",
) -> ServerStart:
    """What a keeper holds of a session without a server of its own: the relay to `server`. to_go_on: a command."""
    is_interactive = agent.is_interactive(settings.agent_args)
    refusals = [*(row for backend in BACKENDS.values() for row in backend.REFUSALS), *REFUSALS]
    return ServerStart(
        files={},
        about={
            "model": server.model,
            "port": int(binding.port),
            "agent": agent.NAME,
            "url": shown or server.url,
            "cwd": str(session.cwd),
        },
        looks_at=session.folders,
        level=session.level,
        receipt=settings.receipt,
        relay={**relay_options(binding, server, refusals), "wait_s": 60 * (settings.wait or 0)},
        terminal_reset=agent.TERMINAL_RESET if is_interactive else "",
        conversations=conversations(agent, session),
        farewell=farewell(to_go_on, agent, env) if is_interactive else "",
    )


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


def prepare(agent: Agent, session: AgentSession) -> None:
    """Say what the user should know, and lay out the agent's folder."""
    for note in agent.notes(session):
        say(note, "yellow")
    lay_out_config(agent.config_dir(session))
