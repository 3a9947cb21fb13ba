"""The story of attaching: an agent on a server that runs already, one of our own `--server` or any other. The server is
never stopped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NoReturn

from cclocal import http
from cclocal.command import Binding, Endpoint
from cclocal.errors import NotReadyError, ServerDiedError, UsageError
from cclocal.facts import Facts
from cclocal.paths import Env, read_table, write_private
from cclocal.planning.choose import choose_agent, level_of
from cclocal.server.readiness import NotYet, check_models
from cclocal.server.registry import SessionRecord
from cclocal.server.start import exec_agent
from cclocal.session.by_hand import check_wire
from cclocal.session.elsewhere import Opened, agent_of, given, open_other, prepare, session_on
from cclocal.session.sandbox import say_level
from cclocal.session.serve import become
from cclocal.session.servers import ENDPOINT, serving
from cclocal.settings import STRICT, Settings
from cclocal.ui.console import busy

#: How addresses name this machine.
_HERE = ("127.0.0.1", "localhost")


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
    address, key, settings = given(settings, env)
    if not key and (port := _port_here(address)):
        # it may be one of our own, whose key is known
        attach(int(port), settings, env, address)
    _, settings, facts = agent_of(settings, env)
    _attach_other(address, key, settings, facts)


def open_url(settings: Settings, env: Env) -> Opened:
    """The same session, for a check. Raises UsageError for a wrong address or a missing key."""
    address, key, settings = given(settings, env)
    _, settings, facts = agent_of(settings, env)
    port = "" if key else _port_here(address)
    if ours := _chosen([server for server in serving(env) if server.port == port], settings.model):
        served = _recorded(ours)
        return open_other(served["url"], served["key"], settings, facts, served)
    return open_other(address, key, settings, facts)


def _port_here(address: str) -> str:
    """The port of an address of this machine; empty for another's."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    return port if host in _HERE else ""


def _recorded(record: SessionRecord) -> dict[str, Any]:
    """What a server of ours recorded of itself, and its log."""
    return {"log_reader": "", **read_table(record.folder / ENDPOINT), "log": str(record.facts.get("log", ""))}


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
    served = _recorded(record)
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
        _attach_other(served["url"], served["key"], settings, facts, served)
    session = session_on(f"{record.model} on port {record.port}", served["context_tokens"], agent, settings, facts)
    session = replace(
        session,
        log_reader=served["log_reader"],
        also=tuple(served.get("also", ())),
        sees=served.get("sees"),
    )
    # inside the server's session, with which it is removed
    folder = record.folder / f"attached-{os.getpid()}"
    endpoint = Endpoint(served["url"], served["key"], served["model"])
    prepare(agent, session)
    say_level(session, None, settings)
    command, files = agent.command(session, endpoint, Binding("", endpoint.key, str(folder), "", served["log"]))
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
