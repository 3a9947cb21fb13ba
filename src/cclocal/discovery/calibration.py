"""What an engine really allocated, kept so that the next plan is better and `cclocal plan --last` can show it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cclocal.errors import FolderError
from cclocal.memory.buffers import read_buffers
from cclocal.paths import Folders, read_table, write_private
from cclocal.planning.memory import correction_key
from cclocal.planning.plan import Plan

#: A difference larger than this is not a correction: the plan was about something else.
MOST_BYTES = 8 * 2**30
#: So many engines and architectures are remembered.
_KEPT = 50


def _path(folders: Folders) -> Path:
    return folders.state / "memory.json"


def _read(folders: Folders) -> dict[str, Any]:
    return read_table(_path(folders))


def corrections(folders: Folders) -> Mapping[str, int]:
    """Bytes that earlier starts used beyond their plan (or below it), by engine and architecture."""
    known = _read(folders).get("corrections")
    rows = known.items() if isinstance(known, dict) else ()
    return {key: size for key, size in rows if isinstance(size, int) and abs(size) <= MOST_BYTES}


def last(folders: Folders) -> dict[str, Any] | None:
    """The last start's plan and what its engine allocated."""
    found = _read(folders).get("last")
    whole = isinstance(found, dict) and {"model", "engine", "plan", "allocated", "log"} <= found.keys()
    return found if whole else None


def learn(plan: Plan, log: Path, folders: Folders) -> None:
    """Compare a started server's own numbers with its plan's, and remember the difference.

    The compute buffers are what a formula only estimates; caches and weights follow from the header.
    """
    if plan.fit is None:
        return
    try:
        buffers = read_buffers(log.read_text("utf-8", "replace"))
    except OSError:
        return
    if buffers is None:
        return
    fit = plan.fit
    computed = fit.footprint.compute_bytes - fit.extras.correction_bytes
    difference = buffers.compute_bytes - computed
    kept = dict(list(corrections(folders).items())[-_KEPT:])
    key = correction_key(plan.engine, fit.shape, fit.serving)
    kept.pop(key, None)
    if abs(difference) <= MOST_BYTES:
        kept[key] = difference
    told = {
        "model": plan.model.id,
        "engine": f"{plan.engine.form} {plan.engine.version}",
        "plan": fit.as_json(),
        "allocated": asdict(buffers),
        "log": str(log),
    }
    with contextlib.suppress(FolderError):
        # a full disk is no reason not to start
        write_private(_path(folders), json.dumps({"corrections": kept, "last": told}, indent=1))
