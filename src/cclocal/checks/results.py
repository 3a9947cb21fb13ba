"""What was proven here, by model, backend and engine: the badges of the menu."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cclocal.checks.rows import Row, can_work
from cclocal.paths import Folders, read_table, write_private

_KEPT = 100


def known(folders: Folders) -> Mapping[str, dict[str, Any]]:
    """Every proof there is."""
    return {name: row for name, row in read_table(folders.state / "proofs.json").items() if isinstance(row, dict)}


def keep(name: str, rows: Sequence[Row], folders: Folders) -> None:
    """Remember the outcome of a check."""
    kept = dict(list(known(folders).items())[-_KEPT:])
    kept.pop(name, None)
    told = {"at_s": time.time(), "works": can_work(list(rows)), "rows": [row.as_json() for row in rows]}
    write_private(folders.state / "proofs.json", json.dumps({**kept, name: told}))
