"""The sessions of this user: the folders that their keepers made, their logs, ending those that lost their keeper."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cclocal.errors import FolderError, UsageError
from cclocal.paths import Env, make_folder, read_table
from cclocal.server.changes import TMP, left_in_tmp, remove_mount_points
from cclocal.server.process import (
    AGENT_MARKER,
    LINUX,
    boot_id,
    end_group,
    end_strays,
    is_stopped,
    machine_id,
    pid_namespace,
    start_of,
)

#: A folder younger than this may belong to a keeper that has just started.
YOUNG_S = 60.0
#: Server logs that are kept.
KEPT = 5
_POLL_S = 0.2
#: Seconds that the server of a session without a keeper is given to obey TERM.
_GRACE_S = 2.0


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """What a keeper wrote about its session; `facts` is empty if its state file cannot be read."""

    folder: Path
    facts: Mapping[str, Any]

    @property
    def model(self) -> str:
        return str(self.facts.get("model", "?"))

    @property
    def port(self) -> str:
        return str(self.facts.get("port", "?"))

    @property
    def is_running(self) -> bool:
        """Whether its keeper is there: it holds the lock on the state file, also from another pid namespace."""
        if not self.facts:
            return False
        path = self.folder / "session.json"
        while True:
            try:
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    # the keeper replaces the file; the lock on the old one says nothing
                    if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                        return False
            except FileNotFoundError:
                return False
            except OSError:
                # locked; or on a file system without locks, where nothing is known and so nothing is ended
                return True

    def is_alive(self, party: str) -> bool:
        """Whether a party (keeper, server, twin, watched) is still the process it was: pid AND start time."""
        start, pid = self.facts.get(f"{party}_start"), self.facts.get(party)
        return isinstance(pid, int) and pid > 0 and bool(start) and start_of(pid) == start


def own_folder(parent: Path) -> Path:
    """A folder of this process in `parent`. Its name identifies the process, so that a later start can clear it."""
    pid = os.getpid()
    return parent / f"{pid}-{start_of(pid)}-{_here()}"


def _here() -> str:
    """Which machine and pid namespace this is: where a pid means the same process."""
    return hashlib.sha256(f"{machine_id()} {pid_namespace()}".encode()).hexdigest()[:8]


def clear_abandoned(parent: Path) -> None:
    """Remove the folders in `parent` whose processes are gone; those of other machines and containers are left."""
    here = _here()
    for folder in parent.glob(f"*-{here}"):
        pid, _, start = folder.name.removesuffix(f"-{here}").partition("-")
        if not pid.isdecimal() or start_of(int(pid)) != start:
            shutil.rmtree(folder, ignore_errors=True)


def check_proc() -> None:
    """Raises FolderError if /proc is that of another pid namespace: then no process can be told from another one."""
    if LINUX and Path("/proc/self").readlink().name != str(os.getpid()):
        raise FolderError(
            "/proc shows the processes of another pid namespace, so cclocal could not tell which ones are its own.",
            hint="unshare --pid --fork --mount-proc …, which gives the namespace a /proc of its own",
        )


def sessions(env: Env) -> list[SessionRecord]:
    """Every session's folder, running or left behind."""
    found = sorted(env.folders.sessions.glob("*"))
    return [SessionRecord(folder, read_table(folder / "session.json")) for folder in found]


def running(env: Env) -> list[SessionRecord]:
    """The sessions whose keepers are there."""
    return [session for session in sessions(env) if session.is_running]


def end_abandoned(env: Env) -> list[SessionRecord]:
    """End what killed keepers left behind. Returns those sessions.

    A session is over if its keeper no longer holds the lock on its state file, or if this machine was restarted since.
    A process is signalled only if its pid, its start time, the boot and the pid namespace are those its keeper wrote
    down, or if it carries the session's marker in its environment. Everything else is left alone, another machine's
    sessions in a shared home among it.
    """
    boot = boot_id()
    done = []
    for session in sessions(env):
        if session.is_running and not _ended_stopped_keeper(session):
            continue
        if not session.facts:
            # the keeper is still writing it, or was killed while writing: after a minute the latter is assumed
            with contextlib.suppress(OSError):
                if time.time() - session.folder.stat().st_mtime > YOUNG_S:
                    shutil.rmtree(session.folder, ignore_errors=True)
            continue
        if session.facts.get("boot") == boot:
            _end(session)
        elif session.facts.get("machine", machine_id()) != machine_id():
            continue
        remove_mount_points(session.facts.get("mount_points", ()), str(session.folder))
        if tmp := session.facts.get("tmp"):
            left_in_tmp(str(tmp))
        shutil.rmtree(session.folder, ignore_errors=True)
        done.append(session)
    return done


def _ended_stopped_keeper(session: SessionRecord) -> bool:
    """Kill a keeper that was stopped (SIGSTOP) and whose agent has ended: it would hold its server for ever.

    Its relay and its twin then end the server. Returns whether it is gone.
    """
    is_here = session.facts.get("pid_namespace", "") == pid_namespace() and session.facts.get("boot") == boot_id()
    if not is_here or session.is_alive("watched") or not session.is_alive("keeper"):
        return False
    keeper = int(session.facts["keeper"])
    if not is_stopped(keeper):
        return False
    with contextlib.suppress(OSError):
        os.kill(keeper, signal.SIGKILL)
    deadline = time.monotonic() + _GRACE_S
    while session.is_running and time.monotonic() < deadline:
        time.sleep(0.02)
    return not session.is_running


def _end(session: SessionRecord) -> None:
    if session.facts.get("pid_namespace", "") == pid_namespace() and session.is_alive("server"):
        end_group(session.facts["server"], session.facts["server_start"], _GRACE_S)
    end_strays(str(session.facts.get("id", "")))
    if not session.is_alive("watched"):
        end_strays(str(session.facts.get("id", "")), AGENT_MARKER)


def new_log(env: Env, session_id: str) -> Path:
    """An empty log for a session, readable by the user alone; `server.log` points at it. Only the newest logs stay."""
    log = env.folders.log_of(session_id)
    make_folder(log.parent)
    log.touch(mode=0o600)
    fresh = env.folders.state / f".server.log.{session_id}"
    fresh.symlink_to(log.relative_to(env.folders.state))
    fresh.replace(env.folders.newest_log)
    every = sessions(env)
    in_use = {str(session.facts.get("log")) for session in every}
    for old in newest_first(env)[KEPT:]:
        if str(old) not in in_use:
            old.unlink(missing_ok=True)
    alive = {session.folder.name for session in every}
    for parent in (env.folders.changed, env.folders.state / TMP):
        for shelf in sorted(parent.glob("*"), key=_changed_at, reverse=True)[KEPT:]:
            if shelf.name not in alive:
                shutil.rmtree(shelf, ignore_errors=True)
    return log


def newest_first(env: Env) -> list[Path]:
    """Every session's server log, the newest first."""
    return sorted(env.folders.state.glob("logs/server-*.log"), key=_changed_at, reverse=True)


def _changed_at(log: Path) -> float:
    try:
        return log.stat().st_mtime
    except OSError:
        # another launch has just removed it
        return 0.0


def session_of(log: Path) -> str:
    """The id of the session that a log belongs to."""
    return log.stem.removeprefix("server-")


def log_named(session: str, command: str, env: Env) -> Path:
    """The log of a session. Raises UsageError if there is none, with what `command` can be given."""
    known = [session_of(log) for log in reversed(newest_first(env))]
    if session not in known:
        raise UsageError(f"There is no log of a session “{session}”.", hint=f"{command} [{' | '.join(known)}]")
    return env.folders.log_of(session)


def read_log(env: Env, session: str | None, *, lines: int | None, follow: bool) -> Iterator[str]:
    """The server log of a session, or the newest, piece by piece. `lines`: only so many of its last.

    With `follow` also what is added to it; of the newest also what newer ones say. Raises UsageError if there is none.
    """
    newest = log_named(session, "cclocal logs", env) if session else env.folders.newest_log
    if not newest.exists():
        raise UsageError(f"There is no server log yet in {env.folders.state}.", hint="cclocal --tiny")
    while True:
        path = newest.resolve()
        with path.open(encoding="utf-8", errors="replace") as file:
            if lines is not None:
                yield "".join(deque(file, maxlen=lines))
                lines = None
            while follow and path == newest.resolve():
                if file.tell() > path.stat().st_size:
                    # the keeper cut it
                    file.seek(0)
                yield file.read()
                time.sleep(_POLL_S)
            yield file.read()
        if not follow:
            return
