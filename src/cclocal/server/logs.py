"""The server's logs: one a session, the newest under a name that stays, the last five kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from cclocal.errors import UsageError
from cclocal.paths import Folders, make_folder

KEPT = 5


def new_log(folders: Folders, session_id: str) -> Path:
    """An empty log for a session, readable by the user alone; `server.log` points at it."""
    make_folder(folders.logs)
    log = folders.log_of(session_id)
    os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    fresh = folders.state / f".server.log.{session_id}"
    fresh.symlink_to(log.relative_to(folders.state))
    fresh.replace(folders.newest_log)
    _forget_old(folders)
    return log


def _forget_old(folders: Folders) -> None:
    """Remove all but the newest logs; one that a running session still writes is among the newest or is kept."""
    from cclocal.server.registry import sessions

    in_use = {str(session.facts.get("log")) for session in sessions(folders)}
    for log in newest_first(folders)[KEPT:]:
        if str(log) not in in_use:
            with contextlib.suppress(OSError):
                log.unlink()


def newest_first(folders: Folders) -> list[Path]:
    """Every session's log."""
    return sorted(folders.logs.glob("server-*.log"), key=_age_key, reverse=True)


def session_of(log: Path) -> str:
    """The id of the session whose log it is."""
    return log.stem.removeprefix("server-")


def _age_key(log: Path) -> float:
    try:
        return log.stat().st_mtime
    except OSError:
        # another launch has just removed it
        return 0.0


def read(folders: Folders, *, follow: bool = False, poll_s: float = 0.2) -> Iterator[str]:
    """The newest server log, piece by piece; with `follow` it goes on as the log grows, and with newer logs.

    Raises UsageError if there is none yet.
    """
    import time

    if not folders.newest_log.exists():
        raise UsageError(f"There is no server log yet in {folders.state}.", hint="cclocal --tiny")
    path = folders.newest_log.resolve()
    file = path.open(encoding="utf-8", errors="replace")
    try:
        while True:
            if piece := file.read(65536):
                yield piece
                continue
            if not follow:
                return
            time.sleep(poll_s)
            newest = folders.newest_log.resolve()
            if newest != path:
                file.close()
                path, file = newest, newest.open(encoding="utf-8", errors="replace")
            elif file.tell() > path.stat().st_size:
                # the keeper cut it
                file.seek(0)
    finally:
        file.close()
