"""Supervises one server and stops it when the watched process exits, for any reason including SIGKILL.

Run as `python -I -S keeper.py FD`, standard library only, in a session of its own. FD is a socket to the launcher:
one JSON line with the session comes in, JSON lines about the server go out.

    launcher ──exec──▶ agent        the keeper watches this pid: exec keeps it, so nothing is handed over
       └─ keeper                    a pidfd (Linux) or kqueue (macOS); stops the server's whole group
            ├─ server               waits behind a gate until its guards are in place
            └─ twin                 an `sh` on a pipe that only the keeper holds: EOF = the keeper was killed

If any one of them is killed, the server is gone within its grace period; docs/trust.md has the matrix and the one gap
(keeper and twin killed together without PDEATHSIG), in which the next start finds the server by its identity.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

LINUX = sys.platform == "linux"
MARKER = "CCLOCAL_SESSION"
LOG_WAS_CUT = "[keeper] the log was too long; what follows is its end"
#: Seconds between two looks at the log's size.
TICK_S = 5.0
#: Seconds between two looks at a process where the kernel offers no pidfd.
POLL_S = 0.2
SHOW_CURSOR = b"\x1b[?25h"
_SHIELDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGPIPE, signal.SIGTTOU)

# $0 = the server's process group, $1 = seconds of grace, $2 = the session's marker. Written for dash and bash:
# `kill -TERM -- -PGID` is an error in dash. /proc exists on Linux only; elsewhere the next start ends strays.
TWIN = """
read go && exit 0
kill -TERM -$0 2>/dev/null
n=0
while kill -0 -$0 2>/dev/null && [ $n -lt $(($1 * 10)) ]; do sleep .1; n=$((n + 1)); done
kill -KILL -$0 2>/dev/null
for e in /proc/[0-9]*/environ; do
  grep -qs "$2" "$e" || continue
  p=${e#/proc/}
  kill -KILL "${p%/environ}" 2>/dev/null
done
"""
GATE = 'read go || exit 125; exec "$@" </dev/null'


def start_of(pid: int) -> str | None:
    """When a process started, in the system's own units: with pid and boot its identity. None if it is gone."""
    if LINUX:
        try:
            # bytes: a name may be cut in the middle of a character
            with open(f"/proc/{pid}/stat", "rb") as stat:
                state, *rest = stat.read().rsplit(b")", 1)[1].decode().split()
        except OSError:
            return None
        return None if state in "ZX" else rest[18]
    # the same words in every locale and time zone
    return _answer("/bin/ps", "-o", "lstart=", "-p", str(pid)) or None


def _answer(*argv: str) -> str:
    """What a program of the system prints (macOS)."""
    env = {"LC_ALL": "C", "TZ": "UTC"}
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False).stdout.strip()


def boot_id() -> str:
    """Which boot of the machine this is."""
    if LINUX:
        with open("/proc/sys/kernel/random/boot_id") as boot:
            return boot.read().strip()
    return _answer("/usr/sbin/sysctl", "-n", "kern.bootsessionuuid")


def machine_id() -> str:
    """Which machine this is: systemd's machine id, or the host name where there is none."""
    with contextlib.suppress(OSError), open("/etc/machine-id") as file:
        if text := file.read().strip():
            return text
    return os.uname().nodename


def pid_namespace() -> str:
    """The namespace that process ids of this process belong to (Linux); empty elsewhere."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def strays(session: str) -> Iterator[int]:
    """Processes that carry the session's marker in their environment (Linux; only the user's own are readable)."""
    wanted = f"{MARKER}={session}".encode()
    for name in os.listdir("/proc") if LINUX else ():
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as environ:
                if wanted in environ.read().split(b"\0"):
                    yield int(name)


class _Poll:
    """Waits for processes to end and for descriptors to become readable: pidfd and poll, on Linux.

    Where pidfd_open is missing (Linux before 5.3) or forbidden (a strict seccomp filter), processes are looked at.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self._pids: dict[int, int] = {}
        self._looked_at: dict[int, str] = {}

    def add_pid(self, pid: int) -> None:
        """Raises ProcessLookupError if the process is gone already."""
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise
        except (OSError, AttributeError):
            start = start_of(pid)
            if start is None:
                raise ProcessLookupError from None
            self._looked_at[pid] = start
            return
        self._pids[fd] = pid
        self._poll.register(fd, select.POLLIN)

    def add_fd(self, fd: int) -> None:
        self._poll.register(fd, select.POLLIN)

    def drop_fd(self, fd: int) -> None:
        self._poll.unregister(fd)

    def wait(self, timeout_s: float) -> tuple[set[int], set[int]]:
        """(processes that ended, descriptors with something to read). Each process is reported once."""
        timeout_s = min(timeout_s, POLL_S) if self._looked_at else timeout_s
        ready = {fd for fd, _ in self._poll.poll(max(0.0, timeout_s) * 1000)}
        over = ready & self._pids.keys()
        ended = {self._pids.pop(fd) for fd in over}
        for fd in over:
            self._poll.unregister(fd)
            os.close(fd)
        gone = {pid for pid, start in self._looked_at.items() if start_of(pid) != start}
        for pid in gone:
            del self._looked_at[pid]
        return ended | gone, ready - over


class _Kqueue:
    """The same on macOS, where the kernel reports a process's end by NOTE_EXIT. Not run in our tests."""

    def __init__(self) -> None:
        self._queue = select.kqueue()  # type: ignore[attr-defined,unused-ignore]

    def _change(self, ident: int, kind: int, flags: int, notes: int = 0) -> None:
        event = select.kevent(ident, kind, flags, notes)  # type: ignore[attr-defined,unused-ignore]
        self._queue.control([event], 0)

    def add_pid(self, pid: int) -> None:
        """Raises ProcessLookupError if the process is gone already."""
        self._change(pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD, select.KQ_NOTE_EXIT)  # type: ignore[attr-defined,unused-ignore]

    def add_fd(self, fd: int) -> None:
        self._change(fd, select.KQ_FILTER_READ, select.KQ_EV_ADD)  # type: ignore[attr-defined,unused-ignore]

    def drop_fd(self, fd: int) -> None:
        self._change(fd, select.KQ_FILTER_READ, select.KQ_EV_DELETE)  # type: ignore[attr-defined,unused-ignore]

    def wait(self, timeout_s: float) -> tuple[set[int], set[int]]:
        """(processes that ended, descriptors with something to read). Each process is reported once."""
        events = self._queue.control(None, 8, max(0.0, timeout_s))
        read = select.KQ_FILTER_READ  # type: ignore[attr-defined,unused-ignore]
        return {e.ident for e in events if e.filter != read}, {e.ident for e in events if e.filter == read}


class Keeper:
    """One session: its server, its twin, its folder, and the process that it is watching."""

    def __init__(self, control: int, session: dict[str, Any]) -> None:
        self.control = control
        self.session = session
        self.watched: int = session["launcher"]
        self.folder: str = session["folder"]
        self.events = _Poll() if LINUX else _Kqueue()
        self.state: dict[str, Any] = {}
        #: the descriptor whose lock says that this session has a keeper
        self.state_lock = -1
        self.server = 0
        self.server_exit: int | None = None
        self.group_is_gone = False
        self.agent_runs = False
        self.watched_ended = False
        self.twin_pipe = -1
        self.wake, self._wake_end = os.pipe()

    def run(self) -> None:
        """Guard the session from its first moment to its last."""
        if self.session.get("held_open") is not None:
            os.set_inheritable(self.session["held_open"], False)
        for number in _SHIELDED:
            signal.signal(number, signal.SIG_IGN)
        self.events.add_pid(self.watched)
        # Only now is it certain that the pid was not reused before we opened it.
        if os.getppid() != self.watched:
            return
        if LINUX:
            _prctl(PR_SET_CHILD_SUBREAPER, 1)
        # A pipe, because a signal that arrives between two waits must not be lost.
        os.set_blocking(self._wake_end, False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(self._wake_end)
        self.events.add_fd(self.wake)
        report = b""
        try:
            try:
                self._start()
            except OSError as error:
                # no folder, no space, no process: the launcher reports it
                self._tell({"failure": f"{error.strerror or error} ({error.filename or 'keeper'})"})
                return
            self._watch()
            self._reset_terminal()
            report = self._report()
        finally:
            self._end_server()
            self._release_twin()
            import shutil

            shutil.rmtree(self.folder, ignore_errors=True)
            self._tell({"ended": True})
            # last, because writing may block
            with contextlib.suppress(OSError):
                os.write(2, report)

    # -- start --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        for name, content in self.session["files"].items():
            self._write(name, content)
        gate, go = os.pipe()
        held, self.twin_pipe = os.pipe()
        shell = self.session["shell"]
        env = {**self.session["env"], MARKER: self.session["id"]}
        argv = [shell, "-c", GATE, "gate", *self.session["argv"]]
        dies_with_us = LINUX and self.session["pdeathsig"]
        first = (lambda: _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)) if dies_with_us else None
        self.server = _spawn(argv, env, gate, first)
        self.events.add_pid(self.server)
        grace_s = sum(seconds for _, seconds in self.session["stop"])
        held_open = self.session.get("held_open")
        twin = _spawn(
            [shell, "-c", TWIN, str(self.server), str(int(grace_s) or 1), f"{MARKER}={self.session['id']}"],
            dict(os.environ),
            held,
            # the twin ends the server if the keeper is killed; a raised wired limit must last until then
            None if held_open is None else lambda: os.set_inheritable(held_open, True),
        )
        os.close(gate)
        os.close(held)
        self.state = {
            **self.session["about"],
            "id": self.session["id"],
            "boot": boot_id(),
            "machine": machine_id(),
            "pid_namespace": pid_namespace(),
            "keeper": os.getpid(),
            "keeper_start": start_of(os.getpid()),
            "server": self.server,
            "server_start": start_of(self.server),
            "twin": twin,
            "twin_start": start_of(twin),
            "watched": self.watched,
            "watched_start": start_of(self.watched),
        }
        self._write_state(self.state)
        os.write(go, b"go\n")
        os.close(go)
        self._tell({"keeper": os.getpid(), "server": self.server, "twin": twin})

    def _write(self, name: str, content: str) -> None:
        path = os.path.join(self.folder, name)
        fd = os.open(path + ".part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as out:
            out.write(content)
        os.replace(path + ".part", path)

    def _write_state(self, state: dict[str, Any]) -> None:
        """Write session.json, locked before it gets its name and for as long as this process lives.

        A session whose state file is not locked has lost its keeper. A process id could not show that to a reader in
        another pid namespace.
        """
        path = os.path.join(self.folder, "session.json")
        fd = os.open(path + ".part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, json.dumps(state, indent=1).encode())
        os.replace(path + ".part", path)
        if self.state_lock >= 0:
            os.close(self.state_lock)
        self.state_lock = fd

    # -- watch --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Until the watched process ends, we get TERM, or the launcher asks to stop."""
        self.events.add_fd(self.control)
        while True:
            ended, ready = self.events.wait(TICK_S)
            if self.server in ended:
                self._server_ended()
            if self.control in ready:
                message = b""
                with contextlib.suppress(OSError):
                    message = os.read(self.control, 64)
                if b"end" in message:
                    self.agent_runs = False
                    return
                if b"exec" in message:
                    self.agent_runs = True
                if not message:
                    # closed by exec, or by the launcher's own end, which is noticed below
                    self.events.drop_fd(self.control)
            self.watched_ended = self.watched in ended
            if self.watched_ended or self.wake in ready:
                return
            if self.server_exit is not None:
                self._let_go_of_group()
            with contextlib.suppress(OSError):
                self._cap_log()

    def _server_ended(self) -> None:
        with contextlib.suppress(ChildProcessError):
            # blocking: the end may be reported before the status is there
            self.server_exit = os.waitstatus_to_exitcode(os.waitpid(self.server, 0)[1])
        self._let_go_of_group()
        self._tell({"server_exit": self.server_exit})
        with contextlib.suppress(OSError):
            self._write_state({**self.state, "server_exit": self.server_exit})

    def _let_go_of_group(self) -> None:
        """The process group is empty and its id may be reused, so stop signalling it."""
        if not self._signal_group(0):
            self._release_twin()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.server:
                    self.server_exit = os.waitstatus_to_exitcode(status)

    def _tell(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            os.write(self.control, json.dumps(message).encode() + b"\n")

    def _cap_log(self) -> None:
        """Keep the log's end: an agent left running for weeks must not fill the disk."""
        cap = self.session["log_cap_bytes"]
        if os.fstat(1).st_size <= cap:
            return
        with open(self.session["log"], "rb") as log:
            log.seek(-cap // 4, os.SEEK_END)
            tail = log.read()
        # the server's descriptor appends, so it goes on at the new end
        os.ftruncate(1, 0)
        os.write(1, LOG_WAS_CUT.encode() + b"\n" + tail)

    def _reset_terminal(self) -> None:
        """Reset what the agent, or a launcher killed under its live line, left switched on in the terminal."""
        if self.session["tty"] and self.watched_ended:
            reset = self.session["terminal_reset"].encode() if self.agent_runs else SHOW_CURSOR
            _write_to_terminal(self.session["tty"], reset)
        if not (self.agent_runs and self.server_exit is not None):
            # A reader of the agent's stderr must not have to wait for the end of the server.
            os.dup2(1, 2)

    def _report(self) -> bytes:
        """What to print about a server that died while the agent ran."""
        if not self.agent_runs or self.server_exit is None:
            return b""
        lines = []
        with contextlib.suppress(OSError), open(self.session["log"], "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
            lines = [printable(line) for line in log.read().decode("utf-8", "replace").splitlines()]
        last = "".join(f"    {line}\n" for line in [line for line in lines if line][-3:])
        how = how_it_ended(self.server_exit)
        report = f"\n✗ The model server stopped during the session ({how}).\n{last}{self.session['advice']}"
        return report.encode("utf-8", "replace")

    # -- end ----------------------------------------------------------------------------------------------------

    def _end_server(self) -> None:
        for name, grace_s in self.session["stop"]:
            if not self._signal_group(signal.Signals[f"SIG{name}"]):
                break
            deadline = time.monotonic() + grace_s
            while self._signal_group(0) and time.monotonic() < deadline:
                time.sleep(0.01)
        # Processes that left the group are our children now (Linux) or carry our marker.
        for _ in range(20):
            left = {*_children(), *strays(self.session["id"])} - {self.state.get("twin")} if self.server else set()
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)
            self._reap()
            if not left:
                break
            time.sleep(0.02)

    def _signal_group(self, number: int) -> bool:
        """Signal the server's group; 0 only asks whether it exists. Returns whether it does."""
        if not self.server or self.group_is_gone:
            return False
        self._reap()
        try:
            os.killpg(self.server, number)
        except (ProcessLookupError, PermissionError):
            # macOS answers PermissionError for a group of zombies
            if self.server_exit is not None:
                self.group_is_gone = True
                return False
            # just started: no group yet
            with contextlib.suppress(OSError):
                os.kill(self.server, number)
        return True

    def _release_twin(self) -> None:
        if self.twin_pipe >= 0:
            with contextlib.suppress(OSError):
                os.write(self.twin_pipe, b"go\n")
            os.close(self.twin_pipe)
            self.twin_pipe = -1


def _write_to_terminal(path: str, data: bytes) -> None:
    with contextlib.suppress(OSError):
        # O_NOCTTY: it must not become our controlling terminal. O_NONBLOCK: Ctrl-S must not block us.
        fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        for _ in range(50):
            try:
                os.write(fd, data)
                break
            except BlockingIOError:
                # the shell is writing its prompt at this moment
                time.sleep(0.01)
        os.close(fd)


def printable(line: str) -> str:
    """A line of a log without control characters, which could steer a terminal."""
    return "".join(c for c in line.replace("\t", " ") if c.isprintable()).strip()


def how_it_ended(code: int) -> str:
    """An exit status in words."""
    if code >= 0:
        return f"exit {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def _prctl(option: int, value: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _children() -> list[int]:
    with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as children:
        return [int(pid) for pid in children.read().split()]
    return []


def _spawn(argv: list[str], env: dict[str, str], stdin: int, first: Callable[[], None] | None = None) -> int:
    """Start a program in a session of its own, with default signals and our log as its output."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        for number in (*_SHIELDED, signal.SIGTERM, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        if first:
            first()
        os.dup2(stdin, 0)
        os.dup2(1, 2)
        os.execve(argv[0], argv, env)
    finally:
        os._exit(127)


def main(argv: list[str]) -> None:
    """Read the session from the socket, then keep it."""
    control = int(argv[1])
    os.set_inheritable(control, False)
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(control, 65536)
        if not part:
            return
        line += part
    Keeper(control, json.loads(line)).run()


if __name__ == "__main__":
    main(sys.argv)
