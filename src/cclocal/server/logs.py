"""The servers' logs: one per session, a link to the newest, the last five kept."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from cclocal.errors import UsageError
from cclocal.paths import Env, make_folder
from cclocal.server.registry import sessions

KEPT = 5


def new_log(env: Env, session_id: str) -> Path:
    """An empty log for a session, readable by the user alone; `server.log` points at it."""
    make_folder(env.folders.logs)
    log = env.folders.log_of(session_id)
    os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    fresh = env.folders.state / f".server.log.{session_id}"
    fresh.symlink_to(log.relative_to(env.folders.state))
    fresh.replace(env.folders.newest_log)
    in_use = {str(session.facts.get("log")) for session in sessions(env)}
    for old in newest_first(env)[KEPT:]:
        if str(old) not in in_use:
            with contextlib.suppress(OSError):
                old.unlink()
    return log


def newest_first(env: Env) -> list[Path]:
    """Every session's log."""
    return sorted(env.folders.logs.glob("server-*.log"), key=_age_key, reverse=True)


def session_of(log: Path) -> str:
    """The id of the session that a log belongs to."""
    return log.stem.removeprefix("server-")


def _age_key(log: Path) -> float:
    try:
        return log.stat().st_mtime
    except OSError:
        # another launch has just removed it
        return 0.0


def read(env: Env, *, follow: bool = False, poll_s: float = 0.2) -> Iterator[str]:
    """The newest server log, piece by piece; with `follow` also what is added to it, and newer logs.

    Raises UsageError if there is none yet.
    """
    if not env.folders.newest_log.exists():
        raise UsageError(f"There is no server log yet in {env.folders.state}.", hint="cclocal --tiny")
    path = env.folders.newest_log.resolve()
    file = path.open(encoding="utf-8", errors="replace")
    try:
        while True:
            if piece := file.read(65536):
                yield piece
                continue
            if not follow:
                return
            time.sleep(poll_s)
            newest = env.folders.newest_log.resolve()
            if newest != path:
                file.close()
                path, file = newest, newest.open(encoding="utf-8", errors="replace")
            elif file.tell() > path.stat().st_size:
                # the keeper cut it
                file.seek(0)
    finally:
        file.close()
