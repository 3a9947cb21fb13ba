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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from cclocal.command import Binding, Command
from cclocal.errors import AgentMissingError, ServerDiedError
from cclocal.paths import Env
from cclocal.programs import last_lines
from cclocal.server import keeper
from cclocal.units import MIB

LOG_CAP_BYTES = 16 * MIB


@dataclass(slots=True)
class Server:
    """Handle to a running server; valid until this process execs the agent."""

    binding: Binding
    control: socket.socket
    keeper_pid: int
    pid: int = 0
    exit_status: int | None = None
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
            raise self.died(f"The server stopped while starting ({keeper.how_it_ended(code)}).")

    def end(self) -> None:
        """Stop the server, and return when it is gone."""
        with contextlib.suppress(OSError):
            self.control.send(b"end\n")
        while not self._ended:
            self._read()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.keeper_pid, 0)
        self.control.close()

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
            self.pid = news.get("server", self.pid)
            self.exit_status = news.get("server_exit", self.exit_status)
            self.failure = news.get("failure", self.failure)

    def wait_for_start(self) -> None:
        """Return when the server's process exists. Raises ServerDiedError if the keeper cannot start it."""
        while not self.pid and not self._ended:
            self._read()
        if not self.pid:
            why = self.failure or "its keeper ended; the log has its last words"
            raise self.died(f"The server could not be started: {why}.")


def new_binding(env: Env, port: int | None) -> Binding:
    """Fresh values for one session: an id, a random key that is never the user's, a free port unless one is given."""
    session_id = secrets.token_hex(4)
    return Binding(
        port=str(port or free_port()),
        key=f"cclocal-{secrets.token_urlsafe(24)}",
        folder=str(env.folders.sessions / session_id),
        session_id=session_id,
        log=str(env.folders.log_of(session_id)),
    )


def free_port() -> int:
    """A port of 127.0.0.1 that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class ServerStart:
    """What a keeper needs to know of a session.

    about: goes into the state file. advice: printed after the exit status and the last lines of the log, if the server
    dies while the agent runs. terminal_reset: written to the terminal after an agent that took it over; empty for one
    that does not. held_open: a descriptor that must stay open as long as the session lasts.
    """

    command: Command
    files: Mapping[str, str]
    stop: Sequence[tuple[str, float]]
    about: Mapping[str, Any]
    advice: str
    terminal_reset: str = ""
    held_open: int | None = None


def start_server(start: ServerStart, binding: Binding, env: Env) -> Server:
    """Start a server under a keeper that stops it when this pid exits, also after exec.

    Raises ServerDiedError if it cannot be started.
    """
    environ, held_open = env.environ, start.held_open
    ours, theirs = socket.socketpair()
    session = {
        "launcher": os.getpid(),
        "id": binding.session_id,
        "folder": binding.folder,
        "files": dict(start.files),
        "argv": list(start.command.argv),
        "env": start.command.environ(environ),
        "log": binding.log,
        "log_cap_bytes": LOG_CAP_BYTES,
        "stop": list(start.stop),
        "shell": environ.get("CCLOCAL_TEST_SHELL", "/bin/sh"),
        "pdeathsig": environ.get("CCLOCAL_TEST_PDEATHSIG") != "0",
        "tty": _terminal() if start.terminal_reset and environ.get("TERM") != "dumb" else None,
        "terminal_reset": start.terminal_reset,
        "about": dict(start.about),
        "advice": start.advice,
        "held_open": held_open,
    }
    with theirs, Path(binding.log).open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno(), *((held_open,) if held_open is not None else ())],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=out,
            cwd="/",
            env={
                "PATH": os.defpath,
                "LC_ALL": "C.UTF-8",
                # some Pythons do not start without it
                **{name: environ[name] for name in ("HOME", "LD_LIBRARY_PATH") if name in environ},
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


def exec_agent(command: Command, environ: Mapping[str, str], server: Server | None = None) -> NoReturn:
    """Replace this process by the agent: signals, exit status, job control and terminal are then its own.

    Raises ServerDiedError if the keeper was killed at this moment, AgentMissingError if the agent cannot run.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if server:
        try:
            server.control.send(b"exec\n")
        except OSError:
            server.poll()
    # Python ignores these, and an ignored signal stays ignored through exec
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(command.argv[0], list(command.argv), command.environ(environ))
    except OSError as error:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        raise AgentMissingError(f"{command.argv[0]} does not run: {error.strerror}.") from None


def _terminal() -> str | None:
    """The terminal that the agent will draw on, if both ends of it are one."""
    with contextlib.suppress(OSError):
        return os.ttyname(1) if os.isatty(0) and os.isatty(1) else None
    return None
