"""Lay out an agent's private configuration folder as the plan says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

from cclocal.agents import Home
from cclocal.paths import make_folder, read_table, write_private

_LOCK = ".cclocal.lock"


#: Beside the configuration folder: what was taken out of it before the last start that found something.
SET_ASIDE = "-set-aside"


def prepare(home: Home) -> tuple[str, ...]:
    """Make the folder as it is meant to be, whatever an earlier session put there. Returns what was set aside.

    A hook, a plugin or a setting that a tool call planted in one session must not run in the next. Two launches at once
    do it one after the other. Raises FolderError.
    """
    make_folder(home.path)
    with FileLock(home.path / _LOCK):
        aside = _set_aside(home)
        for name, wanted in home.seed.items():
            _seed(home.path / name, wanted, home.known)
        for name, target in home.links.items():
            _link(home.path / name, target)
    return aside


def _set_aside(home: Home) -> tuple[str, ...]:
    """Empty the folder of everything that is neither kept, seeded nor ours."""
    kept = {*home.keeps, *home.seed, _LOCK}
    found = [path for path in home.path.iterdir() if path.name not in kept]
    planted = [path for path in found if path.name not in home.renewed and not path.is_symlink()]
    shelf = home.path.with_name(home.path.name + SET_ASIDE)
    if planted:
        shutil.rmtree(shelf, ignore_errors=True)
        make_folder(shelf)
    for path in found:
        if path in planted:
            path.replace(shelf / path.name)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return tuple(sorted(path.name for path in planted))


def _seed(path: Path, wanted: Mapping[str, object], known: frozenset[str]) -> None:
    """Write a file of the agent's anew: the wanted keys, and plain values of the known ones."""
    now = read_table(path)
    kept = {key: value for key, value in now.items() if key in known and isinstance(value, str | int | bool)}
    merged = {**kept, **wanted}
    if merged != now:
        write_private(path, json.dumps(merged, indent=2))


def _link(path: Path, target: Path | None) -> None:
    if target:
        path.symlink_to(target)
