"""Processes as the guards of a session see them: who they are, when they end, which belong to a session.

Standard library only, because the keeper and the relay run without any other package.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator

LINUX = sys.platform == "linux"
#: A session's id in the environment of its server, by which processes that left the server's group are found.
MARKER = "CCLOCAL_SESSION"
#: The same in the environment of its agent, by which programs are found that the agent left in the background.
AGENT_MARKER = "CCLOCAL_AGENT"
#: Seconds between two looks at a process where the kernel offers no pidfd.
POLL_S = 0.2
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


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


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal (Linux)."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as stat:
        return stat.read().rsplit(b")", 1)[1].split()[0] in b"Tt"
    return False


def _answer(*argv: str) -> str:
    """What a program of the system prints (macOS)."""
    import subprocess

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


def strays(session: str, marker: str = MARKER) -> Iterator[int]:
    """Processes that carry the session's marker in their environment (Linux; only the user's own are readable)."""
    wanted = f"{marker}={session}".encode()
    for name in os.listdir("/proc") if LINUX else ():
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as environ:
                if wanted in environ.read().split(b"\0"):
                    yield int(name)


def end_group(leader: int, start: str, grace_s: float) -> None:
    """TERM, then KILL, for the group of a process, as long as it is the one that started then; each with its grace."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + grace_s
        if start_of(leader) == start:
            with contextlib.suppress(OSError):
                os.killpg(leader, number)
        while start_of(leader) == start and time.monotonic() < deadline:
            time.sleep(0.02)


def end_strays(session: str, marker: str = MARKER, number: int = signal.SIGKILL) -> int:
    """Signal every process that carries the session's marker. Returns how many there were."""
    found = list(strays(session, marker))
    for pid in found:
        with contextlib.suppress(OSError):
            os.kill(pid, number)
    return len(found)


class Poll:
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


class Kqueue:
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


def cpu_s(session: int) -> float:
    """Seconds of processor time of all processes of a session, by its leader's pid (Linux; 0 elsewhere)."""
    ticks = 0
    for name in os.listdir("/proc") if LINUX else ():
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{int(name)}/stat", "rb") as stat:
            # after the name: state, parent, group, session, …, and user and system time as the 12th and 13th
            fields = stat.read().rsplit(b")", 1)[1].split()
            if int(fields[3]) == session:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def prctl(option: int, value: int) -> None:
    """The system call of that name (Linux)."""
    import ctypes

    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def ask_for_parent_death() -> None:
    """Have the kernel send TERM to this process when its parent ends (Linux)."""
    if LINUX:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def children() -> list[int]:
    """The child processes of this one (Linux)."""
    with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as listed:
        return [int(pid) for pid in listed.read().split()]
    return []
