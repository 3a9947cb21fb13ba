"""Lay out an agent's private configuration folder as the plan says."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from cclocal.agents import Home
from cclocal.files import make_folder, write_private


def prepare(home: Home) -> None:
    """Make the folder, set the seeded keys, renew the links. Two launches at once do it one after the other.

    Raises FolderError. A seeded file that is no JSON is left alone but for a copy beside it.
    """
    make_folder(home.path)
    with FileLock(home.path / ".cclocal.lock"):
        for name, wanted in home.seed.items():
            _seed(home.path / name, wanted)
        for name, target in home.links.items():
            _link(home.path / name, target)


def _seed(path: Path, wanted: Mapping[str, object]) -> None:
    try:
        now = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        now = {}
    except (OSError, ValueError):
        with contextlib.suppress(OSError):
            path.replace(path.with_name(path.name + ".broken"))
        now = {}
    merged = _merge(now if isinstance(now, dict) else {}, wanted)
    if merged != now:
        write_private(path, json.dumps(merged, indent=2))


def _merge(old: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(old)
    for key, value in new.items():
        kept = result.get(key)
        result[key] = _merge(kept, value) if isinstance(kept, dict) and isinstance(value, dict) else value
    return result


def _link(path: Path, target: Path | None) -> None:
    """Point `path` at `target`. A real file in its place is the agent's or the user's, and stays."""
    if path.is_symlink():
        if target and path.readlink() == target:
            return
        path.unlink()
    if target and not path.exists():
        path.symlink_to(target)
