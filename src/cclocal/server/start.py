"""Start a server through its keeper, and become the agent."""

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
from typing import Any

from cclocal.command import SERVER_NAMES, SERVER_PREFIXES, Command, SessionFile, Stop
from cclocal.errors import AgentMissingError, ServerDiedError
from cclocal.server import keeper

LOG_CAP_BYTES = 16 * 2**20


@dataclass(slots=True)
class Held:
    """A server in its keeper's hands, as long as the launcher is still the launcher."""

    id: str
    folder: Path
    log: Path
    control: socket.socket
    keeper_pid: int
    server_pid: int = 0
    server_exit: int | None = None
    failure: str | None = None
    _buffer: bytes = field(default=b"", repr=False)
    _ended: bool = False

    def poll(self, timeout_s: float = 0.0) -> int | None:
        """The server's exit status if it ended, after waiting at most `timeout_s` for news of it.

        Raises ServerDiedError if the keeper was killed, which takes the server with it.
        """
        while self.server_exit is None:
            if self._ended:
                raise ServerDiedError("The server's keeper was killed, and took the server with it.", log=str(self.log))
            if not select.select([self.control], [], [], timeout_s)[0]:
                break
            self._read()
            timeout_s = 0.0
        return self.server_exit

    def end(self) -> None:
        """Have the server ended, and return when it is gone."""
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
            self.server_pid = news.get("server", self.server_pid)
            self.server_exit = news.get("server_exit", self.server_exit)
            self.failure = news.get("failure", self.failure)

    def wait_for_start(self) -> None:
        """Return when the server's process exists. Raises ServerDiedError if the keeper cannot start it."""
        while not self.server_pid and not self._ended:
            self._read()
        if not self.server_pid:
            raise ServerDiedError(f"The server could not be started: {self.failure or 'its keeper was killed'}.")


def ask(argv: Sequence[str], environ: Mapping[str, str], limit_s: float = 20.0) -> subprocess.CompletedProcess[str]:
    """What a small program answers, run with a server's environment. Raises OSError or SubprocessError."""
    command = Command(tuple(argv), keep=frozenset(SERVER_NAMES), keep_prefixes=SERVER_PREFIXES)
    return subprocess.run(
        list(argv),
        env=command.environ(environ),
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        timeout=limit_s,
        check=False,
    )


def new_session_id() -> str:
    return secrets.token_hex(4)


def new_key() -> str:
    """A key for one session: random, url-safe, never the user's."""
    return f"cclocal-{secrets.token_urlsafe(24)}"


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def hold(
    server: Command,
    files: tuple[SessionFile, ...],
    stop: Stop,
    *,
    session_id: str,
    folder: Path,
    log: Path,
    about: Mapping[str, Any],
    report: str,
    draws: bool,
    environ: Mapping[str, str],
    held_open: int | None = None,
) -> Held:
    """Start a server in the hands of a keeper that ends it when this process ends, whatever this process becomes.

    `draws`: the agent will take over the terminal, which must be sane after it. `report` is what the keeper says if
    the server died under the agent; {how} and {last} stand for the exit status and the log's last lines.
    `held_open` is a descriptor that must stay open as long as the session does; it is the keeper's from now on.
    """
    ours, theirs = socket.socketpair()
    session = {
        "launcher": os.getpid(),
        "id": session_id,
        "folder": str(folder),
        "files": {f.name: f.content for f in files},
        "argv": list(server.argv),
        "env": server.environ(environ),
        "log": str(log),
        "log_cap_bytes": LOG_CAP_BYTES,
        "stop": [list(step) for step in stop.steps],
        "shell": environ.get("CCLOCAL_TEST_SHELL", "/bin/sh"),
        "pdeathsig": environ.get("CCLOCAL_TEST_PDEATHSIG") != "0",
        "tty": _terminal() if draws and environ.get("TERM") != "dumb" else None,
        "about": dict(about),
        "report": report,
        "held_open": held_open,
    }
    with theirs, log.open("ab") as out:
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
    # the keeper outlives us as we are; whoever we become inherits it
    process.returncode = 0
    ours.sendall(json.dumps(session).encode() + b"\n")
    held = Held(session_id, folder, log, ours, process.pid)
    held.wait_for_start()
    return held


def become(command: Command, environ: Mapping[str, str], held: Held | None = None) -> None:
    """Replace this process by the agent: signals, exit status, job control and terminal are then its own.

    Raises ServerDiedError if the keeper was killed in this very moment, AgentMissingError if the agent cannot run.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if held:
        try:
            held.control.send(b"exec\n")
        except OSError:
            held.poll()
    # Python ignores these, and an ignored signal stays ignored through exec
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(command.argv[0], list(command.argv), command.environ(environ))
    except OSError as error:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        raise AgentMissingError(f"{command.argv[0]} does not run: {error.strerror}.") from None


def _terminal() -> str | None:
    """The terminal the agent will draw on, if both ends of it are one."""
    if not (os.isatty(0) and os.isatty(1)):
        return None
    with contextlib.suppress(OSError):
        return os.ttyname(1)
    return None
