"""Raises a Mac's GPU memory limit while any session needs it, and restores it even if processes are killed.

The kernel counts: every session's keeper (and its twin) holds the writing end of one FIFO. One process of root sets the
new limit and reads that FIFO; when the last writer is gone, the read ends and the process restores the old limit. So a
password is asked for once, at the start. Only two whole numbers and literal paths reach root.

If root's process is killed too, the next start notices it: `left_raised`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cclocal.errors import CclocalError
from cclocal.paths import Env, make_folder, read_table, write_private
from cclocal.server.keeper import boot_id

NAME = "iogpu.wired_limit_mb"
#: $0 = old, $1 = FIFO, $2 = new, $3 = sysctl. The holder stays in the background while sudo returns at once; it must
#: outlive the terminal. After a restore other sessions find no reader on the FIFO, and raise again. If the launcher
#: dies before it opens the FIFO, the holder is woken once after a while, so that it does not wait for ever.
_HOLDER = f"""
PATH=/usr/bin:/bin
trap "" HUP INT QUIT TERM TSTP
[ -p "$1" ] || exit 1
"$3" {NAME}="$2" >/dev/null || exit 1
( cat "$1" >/dev/null; "$3" {NAME}="$0" ) </dev/null >/dev/null 2>&1 &
( sleep 5; [ -p "$1" ] && : <>"$1" ) </dev/null >/dev/null 2>&1 &
"""
#: Seconds after which a holder that is ending no longer reads.
_SETTLE_S = 0.05
_READER_LIMIT_S = 5.0
_RESTORE_LIMIT_S = 1.0


class DeniedError(CclocalError):
    """The limit could not be raised: no password, no terminal, or macOS refused."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The programs of macOS that are used, by their full paths."""

    sysctl: str
    sudo: str


def current_mib(tools: Tools) -> int:
    """The limit now in MiB; 0 = the system's own share."""
    done = subprocess.run([tools.sysctl, "-n", NAME], capture_output=True, text=True, check=False)
    return int(done.stdout.strip() or 0) if done.stdout.strip().isdigit() else 0


def raise_limit(
    limit_mib: int, tools: Tools, env: Env, *, can_ask: bool, waiting: Callable[[], None] = lambda: None
) -> int | None:
    """Raise the limit. Returns the descriptor that keeps it raised; None if it is as high already by other means.

    Raises DeniedError. sudo itself asks for the password, on the terminal; without a terminal only a sudo that needs no
    password works. `waiting` is called if another session is being asked at this moment.
    """
    try:
        with _lock(env, waiting):
            return _raise(limit_mib, tools, env, can_ask=can_ask)
    except OSError as error:
        raise DeniedError(f"The wired limit was not raised: {error.strerror or error}.") from None


def _raise(limit_mib: int, tools: Tools, env: Env, *, can_ask: bool) -> int | None:
    fifo, path = env.folders.state / "wired.fifo", env.folders.state / "wired.json"
    if not fifo.is_fifo():
        fifo.unlink(missing_ok=True)
        os.mkfifo(fifo, 0o600)
    held = _join(fifo)
    now, record = current_mib(tools), _record(env)
    ours = _is_ours(record, now)
    if held is None and ours:
        now, ours = _after_a_restore(record, tools)
    if held is not None and now >= limit_mib:
        return held
    if held is None and not ours and now >= limit_mib:
        return None
    # the first old value is the one to restore, however often the limit was raised since
    old, new = int(record["old"] if ours else now), max(int(limit_mib), now)
    # written first: if this is killed later, the next start restores the limit
    write_private(path, json.dumps({"old": old, "new": new, "boot": boot_id()}))
    try:
        _start_holder(old, new, fifo, tools, can_ask=can_ask)
    except DeniedError:
        if ours:
            write_private(path, json.dumps(dict(record)))
        else:
            path.unlink(missing_ok=True)
        raise
    deadline = time.monotonic() + _READER_LIMIT_S
    while held is None and time.monotonic() < deadline:
        held = _join(fifo)
        time.sleep(0.01)
    if held is None:
        raise DeniedError(
            f"The wired limit was set to {limit_mib} MiB, but no process restores it.", hint=restore_line(old, tools)
        )
    return held


def join(tools: Tools, env: Env) -> int | None:
    """A descriptor that keeps the limit that another session raised; None if none did.

    Every session that plans with a raised limit must hold it, because it ends with the sessions that do. A limit that
    is being restored at this moment is waited for, so that a plan is made with the limit that stays.
    """
    record = _record(env)
    if not record:
        return None
    held = _join(env.folders.state / "wired.fifo")
    if held is None and _is_ours(record, current_mib(tools)):
        _after_a_restore(record, tools)
    return held


def _is_ours(record: Mapping[str, Any], now_mib: int) -> bool:
    return record.get("boot") == boot_id() and record.get("new") == now_mib


def _after_a_restore(record: Mapping[str, Any], tools: Tools) -> tuple[int, bool]:
    """(the limit, whether it is still the raised one), after waiting for a restore that may be going on."""
    deadline = time.monotonic() + _RESTORE_LIMIT_S
    while (now := current_mib(tools)) == record["new"] and time.monotonic() < deadline:
        time.sleep(0.02)
    return now, now == record["new"]


def _start_holder(old: int, new: int, fifo: Path, tools: Tools, *, can_ask: bool) -> None:
    words = [tools.sudo, *(() if can_ask else ("-n",)), "/bin/sh", "-c", _HOLDER, str(old), str(fifo), str(new)]
    try:
        sudo = subprocess.Popen([*words, tools.sysctl], stdin=None if can_ask else subprocess.DEVNULL)
    except OSError as error:
        raise DeniedError(f"sudo does not run: {error.strerror}.") from None
    try:
        status = sudo.wait()
    except KeyboardInterrupt:
        # it got the same Ctrl-C, and belongs to root: we cannot kill it, only wait
        with contextlib.suppress(subprocess.TimeoutExpired):
            sudo.wait(_READER_LIMIT_S)
        raise
    if status != 0:
        raise DeniedError("The wired limit was not raised: sudo or macOS refused.")


def _join(fifo: Path) -> int | None:
    """The writing end of the FIFO, if a process reads it that will go on reading."""
    try:
        fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.close(fd)
            return None
        # a reader that has just seen the end of the last session is ending: then a second open fails
        time.sleep(_SETTLE_S)
        try:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            os.close(fd)
            raise
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT):
            return None
        raise
    return fd


@contextmanager
def _lock(env: Env, waiting: Callable[[], None]) -> Iterator[None]:
    make_folder(env.folders.state)
    with (env.folders.state / "wired.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _record(env: Env) -> Mapping[str, Any]:
    found = read_table(env.folders.state / "wired.json")
    return found if all(isinstance(found.get(key), int) for key in ("old", "new")) else {}


def left_raised(tools: Tools, env: Env) -> str | None:
    """The command that restores the limit, if everything that should have done so is gone; else None."""
    record = _record(env)
    if not record:
        return None
    with (env.folders.state / "wired.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # another session is raising it at this moment
            return None
        held = _join(env.folders.state / "wired.fifo")
        if held is not None:
            os.close(held)
            return None
        if not _is_ours(record, current_mib(tools)) or not _after_a_restore(record, tools)[1]:
            # after a restart the system's own limit counts again; another value was set by another program
            (env.folders.state / "wired.json").unlink(missing_ok=True)
            return None
    return restore_line(record["old"], tools)


def restore_line(old_mib: int, tools: Tools) -> str:
    """The command that restores the limit."""
    return f"sudo {tools.sysctl} {NAME}={old_mib}"
