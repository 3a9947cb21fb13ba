"""Starts a server under its keeper, and replaces this process by the agent."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from cclocal.command import ID_BYTES, Binding, Command, server_url
from cclocal.errors import AgentMissingError, ServerDiedError
from cclocal.paths import Env
from cclocal.programs import last_lines
from cclocal.sandbox.enter import enter
from cclocal.sandbox.walls import OBEYED, Sandbox
from cclocal.server import keeper
from cclocal.server.process import AGENT_MARKER, start_of
from cclocal.server.request import ServerStart
from cclocal.units import MIB, how_it_ended

LOG_CAP_BYTES = 16 * MIB
#: Seconds without a sign of life after which a server that should answer is taken for dead.
STALL_S = 240.0


@dataclass(slots=True)
class Server:
    """Handle to a running server; valid until this process execs the agent."""

    binding: Binding
    control: socket.socket
    keeper_pid: int
    pid: int = 0
    is_started: bool = False
    exit_status: int | None = None
    #: why it ended, as words to be added to how it did; empty if that is not known
    why: str = ""
    #: what the keeper reported of the server since this list was emptied
    news: list[str] = field(default_factory=list)
    failure: str | None = None
    _buffer: bytes = field(default=b"", repr=False)
    _ended: bool = False

    @property
    def log(self) -> Path:
        """Where the server writes."""
        return Path(self.binding.log)

    def poll(self, timeout_s: float = 0.0) -> int | None:
        """The server's exit status if it ended, after waiting at most `timeout_s` for the keeper's report.

        Raises ServerDiedError if the keeper was killed, which ends the server too.
        """
        while self.exit_status is None:
            if self._ended:
                raise ServerDiedError("The server's keeper was killed, which ended the server.", log=str(self.log))
            if not select.select([self.control], [], [], timeout_s)[0]:
                break
            self._read()
            timeout_s = 0.0
        return self.exit_status

    def died(self, message: str) -> ServerDiedError:
        """An error with the last lines of the server's log."""
        return ServerDiedError(message, cause=last_lines(self.log), log=str(self.log))

    def check_alive(self) -> None:
        """Raises ServerDiedError, with the last lines of its log, if the server has ended."""
        code = self.poll()
        if code is not None:
            raise self.died(f"The server stopped while starting ({how_it_ended(code)}{self.why}).")

    def end(self) -> None:
        """Stop the server, and return when it is gone."""
        with contextlib.suppress(OSError):
            self.order(end=True)
        while not self._ended:
            self._read()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.keeper_pid, 0)
        self.control.close()

    def order(self, **what: Any) -> None:
        """Send the keeper an order. Raises OSError if it was killed.

        ready: from now on a server that dies is started again. restore: requests that it then gets first. kept: the
        tokens and bytes of the state that the session begins with. exec: the agent takes this process's place. end:
        stop the server.
        """
        self.control.sendall(json.dumps(what).encode() + b"\n")

    def _read(self) -> None:
        try:
            part = self.control.recv(65536)
        except OSError:
            part = b""
        if not part:
            self._ended = True
            return
        *lines, self._buffer = (self._buffer + part).split(b"\n")
        for line in lines:
            news = json.loads(line)
            self.pid, self.is_started = news.get("server", self.pid), self.is_started or "keeper" in news
            self.exit_status, self.why = news.get("server_exit", self.exit_status), news.get("why", self.why)
            self.failure = news.get("failure", self.failure)
            self.news += [news["news"]] if "news" in news else []

    def wait_for_start(self) -> None:
        """Return when the server's process exists. Raises ServerDiedError if the keeper cannot start it."""
        while not self.is_started and not self._ended:
            self._read()
        if not self.is_started:
            why = self.failure or "its keeper ended; the log has its last words"
            raise self.died(f"The server could not be started: {why}.")


def new_binding(env: Env, port: int, *, unix_socket: bool = False) -> Binding:
    """Fresh values for one session, whose relay listens on `port`: an id, and random keys that are never the user's.

    unix_socket: the server listens on one, else on a free port.
    """
    session_id = secrets.token_hex(ID_BYTES // 2)
    folder = str(env.folders.sessions / session_id)
    url = server_url(folder, "" if unix_socket else free_port(), on_socket=unix_socket)
    return Binding(
        port=str(port),
        key=f"cclocal-{secrets.token_urlsafe(24)}",
        folder=folder,
        session_id=session_id,
        log=str(env.folders.log_of(session_id)),
        server_url=url,
        server_key=f"server-{secrets.token_urlsafe(24)}",
    )


def listen(port: int | None) -> socket.socket:
    """A socket that listens on a port of this machine; None = any free one. Raises OSError if it is taken."""
    return socket.create_server(("127.0.0.1", port or 0), backlog=128)


def free_port() -> int:
    """A port of 127.0.0.1 that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_server(start: ServerStart, binding: Binding, listener: socket.socket, env: Env) -> Server:
    """Start a server under a keeper that stops it when this pid exits, also after exec. `listener`: its relay's socket.

    Raises ServerDiedError if it cannot be started.
    """
    environ, held_open = env.environ, start.held_open
    ours, theirs = socket.socketpair()
    session = {
        "launcher": os.getpid(),
        "id": binding.session_id,
        "folder": binding.folder,
        "files": dict(start.files),
        "command": _as_table(start.command, environ),
        "less_memory": _as_table(start.less_memory, environ),
        "turns": {
            name: {
                "word": turn.word,
                "commands": {
                    "command": _as_table(turn.command, environ),
                    "less_memory": _as_table(turn.less_memory, environ),
                },
            }
            for name, turn in start.turns.items()
        },
        "workers": list(start.workers),
        "fewer": {
            left: {"command": _as_table(command, environ), "words": words}
            for left, (command, words) in start.fewer.items()
        },
        "in_sandbox": start.in_sandbox,
        "is_tunnel": start.is_tunnel,
        "socket": binding.socket,
        "listener": listener.fileno(),
        "relay": dict(start.relay),
        "log": binding.log,
        "log_cap_bytes": LOG_CAP_BYTES,
        "stop": list(start.stop),
        "stall_s": float(environ.get("CCLOCAL_TEST_HANG_S") or STALL_S),
        "shell": environ.get("CCLOCAL_TEST_SHELL", "/bin/sh"),
        "pdeathsig": environ.get("CCLOCAL_TEST_PDEATHSIG") != "0",
        "tty": _terminal() if start.terminal_reset and environ.get("TERM") != "dumb" else None,
        "terminal_reset": start.terminal_reset,
        "parent": [os.getppid(), start_of(os.getppid())],
        "about": dict(start.about),
        "advice": start.advice,
        "looks_at": [str(folder) for folder in start.looks_at],
        "obeyed": list(OBEYED),
        "level": start.level,
        "conversations": start.conversations,
        "farewell": start.farewell,
        "receipt": start.receipt,
        "shelf": str(env.folders.changed / binding.session_id),
        "held_open": held_open,
        "keeps": start.keeps and dict(start.keeps),
        "requests": start.requests and dict(start.requests),
    }
    with theirs, Path(binding.log).open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, str(theirs.fileno())],
            pass_fds=[fd for fd in (theirs.fileno(), listener.fileno(), held_open) if fd is not None],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=out,
            cwd="/",
            env={
                "PATH": os.defpath,
                "LC_ALL": "C.UTF-8",
                # some Pythons do not start without the second; the last two are for a server behind TLS
                **{
                    name: environ[name]
                    for name in ("HOME", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR")
                    if name in environ
                },
            },
        )
    # Not our child to reap: after exec it is the agent's. Keeps Popen from warning.
    process.returncode = 0
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        # a keeper that has ended already is reported by wait_for_start
        ours.sendall(json.dumps(session).encode() + b"\n")
    server = Server(binding, ours, process.pid)
    server.wait_for_start()
    return server


def _as_table(command: Command | None, environ: Mapping[str, str]) -> dict[str, Any] | None:
    return {"argv": list(command.argv), "env": command.environ(environ)} if command else None


def exec_agent(
    command: Command,
    environ: Mapping[str, str],
    server: Server | None = None,
    *,
    keep_children: bool = True,
    sandbox: Sandbox | None = None,
) -> NoReturn:
    """Replace this process by the agent: signals, exit status, job control and terminal are then its own.

    keep_children: what its commands leave in the background goes on after the session; else it carries the session's
    mark, by which the keeper ends it. sandbox: this process becomes bubblewrap, which runs the agent and passes its
    exit status on; it needs a server.

    Raises ServerDiedError if the keeper was killed at this moment, AgentMissingError if the agent cannot run.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    argv, also = list(command.argv), dict[str, str]()
    if server:
        try:
            argv, also = enter(argv, sandbox, server.control, server.binding.port) if sandbox else (argv, {})
            server.order(exec=True)
        except OSError:
            server.poll()
    # Python ignores these, and an ignored signal stays ignored through exec
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        marks = {AGENT_MARKER: server.binding.session_id} if server and not keep_children else {}
        os.execve(argv[0], argv, {**command.environ(environ), **marks, **also})
    except OSError as error:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        raise AgentMissingError(f"{argv[0]} does not run: {error.strerror}.") from None


def _terminal() -> str | None:
    """The terminal that the agent will draw on, if both ends of it are one."""
    with contextlib.suppress(OSError):
        return os.ttyname(1) if os.isatty(0) and os.isatty(1) else None
    return None
