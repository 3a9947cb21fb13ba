"""What engines really allocated: it corrects the next plan, and `cclocal plan --last` shows it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cclocal.errors import FolderError
from cclocal.memory.buffers import read_buffers
from cclocal.paths import Env, read_table, write_private
from cclocal.planning.memory import correction_key
from cclocal.planning.plan import Plan
from cclocal.units import GIB

#: A larger difference is no correction: the plan was about something else.
MOST_BYTES = 8 * GIB
#: Engines and architectures that are remembered; the oldest go first.
_KEPT = 50


def _path(env: Env) -> Path:
    return env.folders.state / "memory.json"


def corrections(env: Env) -> Mapping[str, int]:
    """Bytes that earlier starts used beyond their plan (negative: below it), by `correction_key`."""
    known = read_table(_path(env)).get("corrections")
    rows = known.items() if isinstance(known, dict) else ()
    return {key: size for key, size in rows if isinstance(size, int) and abs(size) <= MOST_BYTES}


def last(env: Env) -> dict[str, Any] | None:
    """The last start's plan and what its engine allocated; None if none was recorded."""
    found = read_table(_path(env)).get("last")
    is_complete = isinstance(found, dict) and {"model", "engine", "plan", "allocated", "log"} <= found.keys()
    return found if is_complete else None


def learn(plan: Plan, log: Path, env: Env) -> None:
    """Compare the buffers in a started server's log with its plan, and remember the difference.

    Only compute buffers are estimated by a formula; caches and weights follow from the header.
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
    kept = dict(list(corrections(env).items())[-_KEPT:])
    key = correction_key(plan.engine, fit.shape, fit.config)
    kept.pop(key, None)
    if abs(difference) <= MOST_BYTES:
        kept[key] = difference
    report = {
        "model": plan.model.id,
        "engine": f"{plan.engine.form} {plan.engine.version}",
        "plan": fit.as_json(),
        "allocated": asdict(buffers),
        "log": str(log),
    }
    with contextlib.suppress(FolderError):
        # a full disk must not prevent a start
        write_private(_path(env), json.dumps({"corrections": kept, "last": report}, indent=1))
