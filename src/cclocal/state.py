"""The sessions of this user, read from the folders their keepers made, and what to do with those nobody keeps."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cclocal.files import Folders
from cclocal.keeper import boot_id, start_of, strays


@dataclass(frozen=True, slots=True)
class SessionState:
    """What a keeper wrote about its session."""

    folder: Path
    facts: Mapping[str, Any]

    @property
    def model(self) -> str:
        return str(self.facts.get("model", "?"))

    @property
    def port(self) -> int:
        return int(self.facts.get("port", 0))

    def is_alive(self, party: str) -> bool:
        """Whether a party (keeper, server, twin, watched) is still the process it was: pid AND start time."""
        start = self.facts.get(f"{party}_start")
        return bool(start) and start_of(int(self.facts.get(party, 0))) == start


def sessions(folders: Folders) -> list[SessionState]:
    """Every session that has a state file, running or left behind."""
    found = []
    for path in sorted(folders.sessions.glob("*/session.json")):
        with contextlib.suppress(OSError, ValueError):
            facts = json.loads(path.read_text("utf-8"))
            if isinstance(facts, dict):
                found.append(SessionState(path.parent, facts))
    return found


def reclaim(folders: Folders) -> list[SessionState]:
    """End what killed keepers left behind, and return the sessions that were reclaimed.

    A process is signalled only if its pid, its start time and the boot are those its keeper wrote down, or if it
    carries the session's marker in its environment. Everything else is left alone.
    """
    boot = boot_id()
    done = []
    for session in sessions(folders):
        same_boot = session.facts.get("boot") == boot
        if same_boot and session.is_alive("keeper"):
            continue
        if same_boot:
            _end(session)
        shutil.rmtree(session.folder, ignore_errors=True)
        done.append(session)
    for folder in folders.sessions.glob("*"):
        # a keeper killed before it could write its state file; a minute, so that one at work is left alone
        with contextlib.suppress(OSError):
            if not (folder / "session.json").exists() and time.time() - folder.stat().st_mtime > 60:
                shutil.rmtree(folder, ignore_errors=True)
    return done


def _end(session: SessionState) -> None:
    server = int(session.facts.get("server", 0))
    if session.is_alive("server"):
        for number, grace_s in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server, number)
            deadline = time.monotonic() + grace_s
            while session.is_alive("server") and time.monotonic() < deadline:
                time.sleep(0.02)
    for pid in strays(str(session.facts.get("id", ""))):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
