"""Lays out an agent's private configuration folder before each start."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Set
from fnmatch import fnmatch
from pathlib import Path

from filelock import FileLock

from cclocal.agents.session import ConfigDir
from cclocal.paths import make_folder, read_table, write_private

_LOCK = ".cclocal.lock"
#: The name of a folder beside the configuration folder. It holds what the last clean-up moved out.
SET_ASIDE = "-set-aside"


def prepare(config: ConfigDir) -> tuple[str, ...]:
    """Bring the folder into its defined state and move everything else out of it. Returns what was set aside.

    A hook, a plugin or a setting that a tool call planted in one session must not run in the next. Two launches at once
    do it one after the other. Raises FolderError.
    """
    lock = make_folder(config.path) / _LOCK
    if lock.is_symlink() or lock.is_dir():
        _remove(lock)
    with FileLock(lock):
        aside = _set_aside(config)
        for name, wanted in config.seed.items():
            _seed(config.path / name, wanted, config.known)
        for name in config.folders:
            make_folder(config.path / name)
        for name, target in config.links.items():
            if target:
                (config.path / name).symlink_to(target)
    return aside


def _set_aside(config: ConfigDir) -> tuple[str, ...]:
    """Empty the folder of everything that is neither kept, seeded nor ours."""
    kept = {*config.keeps, *config.seed, _LOCK}
    # a link, or a folder in the place of a file, is never what belongs there
    found = [
        path
        for path in config.path.iterdir()
        if not _stays(path.name, kept, config) or path.is_symlink() or (path.name in config.seed and path.is_dir())
    ]
    ours = {*config.renewed, *(path.name for path in found if path.name in config.links and path.is_symlink())}
    planted = [path for path in found if path.name not in ours]
    shelf = config.path.with_name(config.path.name + SET_ASIDE)
    if planted:
        _remove(shelf)
        make_folder(shelf)
    for path in found:
        if path in planted:
            path.replace(shelf / path.name)
        else:
            _remove(path)
    # the lock file of an agent that was killed is moved too, but the user need not be told
    return tuple(sorted(path.name for path in planted if path.suffix != ".lock"))


def _stays(name: str, kept: Set[str], config: ConfigDir) -> bool:
    return name in kept or any(fnmatch(name, pattern) for pattern in config.kept_patterns)


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _seed(path: Path, wanted: Mapping[str, object], known: frozenset[str]) -> None:
    """Rewrite a file of the agent's: the wanted keys, and plain values of the known ones."""
    now = read_table(path)
    kept = {key: value for key, value in now.items() if key in known and isinstance(value, str | int | bool)}
    merged = {**kept, **wanted}
    if merged != now:
        write_private(path, json.dumps(merged, indent=2))
