"""The servers that `--server` holds, and what listens on a port."""

from __future__ import annotations

import socket
from dataclasses import replace

from cclocal.errors import PortError
from cclocal.paths import Env
from cclocal.server.readiness import holder_of
from cclocal.server.registry import SessionRecord, running
from cclocal.server.start import free_port
from cclocal.settings import Settings
from cclocal.ui.console import say

#: The session's file from which `cclocal attach` reads the server's address.
ENDPOINT = "endpoint.json"


def serving(env: Env) -> list[SessionRecord]:
    """The servers that `--server` holds in other terminals."""
    return [session for session in running(env) if is_server(session)]


def is_server(session: SessionRecord) -> bool:
    """Whether a session is a server that `--server` holds, without an agent of its own."""
    return (session.folder / ENDPOINT).exists()


def check_port(port: int | None, env: Env) -> None:
    """Raises PortError if the port is taken, with its holder."""
    if port is None or not is_taken(port):
        return
    for session in running(env):
        if session.port == str(port):
            raise PortError(
                f"Port {port} is in use by your own session of {session.model}.",
                hint=f"cclocal attach {port}" if is_server(session) else "another --port",
            )
    raise PortError(f"Port {port} is in use by {holder_of(port)}.", hint="another --port")


def settle_port(settings: Settings, port: int | None, env: Env) -> Settings:
    """The settings with a port that is free: another one if the usual port of `--server`, as planned, is taken.

    Raises PortError if the user asked for a port that is taken: what listens there may be what they want to reach.
    """
    try:
        check_port(port, env)
    except PortError as error:
        if settings.port is not None:
            raise
        other = free_port()
        say(f"{error.message} This server takes port {other}.", "yellow")
        return replace(settings, port=other)
    return settings


def is_taken(port: int) -> bool:
    """Whether a program listens on a port of this machine. Raises PortError for a port that is not a user's."""
    with socket.socket() as probe:
        # as servers do, so that a port in TIME_WAIT counts as free
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            raise PortError(f"Only the administrator can use port {port}.", hint="a --port above 1023") from None
        except OSError:
            return True
    return False
