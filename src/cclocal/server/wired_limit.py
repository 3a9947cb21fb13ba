"""Raises a Mac's GPU memory limit while any session needs it, and restores it even if processes are killed.

The kernel counts: every session's keeper (and its twin) holds the writing end of one FIFO. One process of root sets the
new limit and reads that FIFO; when the last writer is gone, the read ends and the process restores the old limit. So a
password is asked for once, at the start. Only two whole numbers and literal paths reach root.

If root's process is killed too, the next start notices it: `join`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cclocal.errors import CclocalError
from cclocal.paths import Env, make_folder, read_table, write_private
from cclocal.programs import ask_mac, mac_tool
from cclocal.server.process import boot_id

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


def raise_limit(limit_mib: int, env: Env, *, can_ask: bool, waiting: Callable[[], None] = lambda: None) -> int | None:
    """Raise the limit. Returns the descriptor that keeps it raised; None if it is as high already by other means.

    Raises DeniedError. sudo itself asks for the password, on the terminal; without a terminal only a sudo that needs no
    password works. `waiting` is called if another session is being asked at this moment.
    """
    try:
        with _lock(env, waiting):
            return _raise(limit_mib, env, can_ask=can_ask)
    except OSError as error:
        raise DeniedError(f"The wired limit was not raised: {error.strerror or error}.") from None


def _raise(limit_mib: int, env: Env, *, can_ask: bool) -> int | None:
    fifo, path = env.folders.state / "wired.fifo", env.folders.state / "wired.json"
    if not fifo.is_fifo():
        fifo.unlink(missing_ok=True)
        os.mkfifo(fifo, 0o600)
    held, record = _join(fifo), _record(env)
    now, ours = _limit_now(record, env, _RESTORE_LIMIT_S if held is None else 0.0)
    if now >= limit_mib and (held is not None or not ours):
        return held
    # the first old value is the one to restore, however often the limit was raised since
    old, new = int(record["old"] if ours else now), max(int(limit_mib), now)
    # written first: if this is killed later, the next start restores the limit
    write_private(path, json.dumps({"old": old, "new": new, "boot": boot_id()}))
    try:
        _start_holder(old, new, fifo, env, can_ask=can_ask)
    except DeniedError:
        write_private(path, json.dumps(dict(record)))
        raise
    deadline = time.monotonic() + _READER_LIMIT_S
    while held is None and time.monotonic() < deadline:
        held = _join(fifo)
        time.sleep(0.01)
    if held is None:
        raise DeniedError(
            f"The wired limit was set to {limit_mib} MiB, but no process restores it.", hint=restore_line(old, env)
        )
    return held


def join(env: Env) -> tuple[int | None, str | None]:
    """(a descriptor that keeps the limit that another session raised, None if none did; the command that restores the
    limit if everything that should have done so is gone, else None).

    Every session that plans with a raised limit must hold it, because it ends with the sessions that do. A limit that
    is being restored at this moment is waited for, so that a plan is made with the limit that stays.
    """
    record = _record(env)
    if not record:
        return None, None
    with _lock(env) as is_alone:
        held = _join(env.folders.state / "wired.fifo")
        if held is not None:
            return held, None
        _, is_raised = _limit_now(record, env, _RESTORE_LIMIT_S)
        if is_alone and not is_raised:
            # after a restart the system's own limit counts again; another value was set by another program
            (env.folders.state / "wired.json").unlink(missing_ok=True)
    # if another session is raising it at this moment, that one restores it
    return None, restore_line(record["old"], env) if is_alone and is_raised else None


def _limit_now(record: Mapping[str, Any], env: Env, patience_s: float) -> tuple[int, bool]:
    """(the limit in MiB, 0 = the system's own share; whether it is the one that a session of ours raised).

    A raised limit is looked at for `patience_s`, because a restore may be going on.
    """
    deadline = time.monotonic() + patience_s
    while True:
        said = ask_mac(env.environ, "sysctl", "-n", NAME)
        now = int(said) if said.isdecimal() else 0
        is_ours = record.get("boot") == boot_id() and record.get("new") == now
        if not is_ours or time.monotonic() >= deadline:
            return now, is_ours
        time.sleep(0.02)


def _start_holder(old: int, new: int, fifo: Path, env: Env, *, can_ask: bool) -> None:
    sudo_words = [mac_tool(env.environ, "sudo"), *(() if can_ask else ("-n",))]
    words = ["/bin/sh", "-c", _HOLDER, str(old), str(fifo), str(new), mac_tool(env.environ, "sysctl")]
    try:
        sudo = subprocess.Popen([*sudo_words, *words], stdin=None if can_ask else subprocess.DEVNULL)
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
    if not fifo.is_fifo():
        return None
    try:
        fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        # a reader that has just seen the end of the last session is ending: then a second open fails
        time.sleep(_SETTLE_S)
        try:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            os.close(fd)
            raise
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None
    return fd


@contextmanager
def _lock(env: Env, waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """The lock of those who raise the limit: whether it was had. Waited for only if there is a `waiting` to call."""
    make_folder(env.folders.state)
    with (env.folders.state / "wired.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                yield False
                return
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield True


def _record(env: Env) -> Mapping[str, Any]:
    found = read_table(env.folders.state / "wired.json")
    return found if all(isinstance(found.get(key), int) for key in ("old", "new")) else {}


def restore_line(old_mib: int, env: Env) -> str:
    """The command that restores the limit."""
    return f"sudo {mac_tool(env.environ, 'sysctl')} {NAME}={old_mib}"
