"""Saved KV caches on disk: the fixed part of an agent's prompt, evaluated once and restored in later sessions.

A state is a file NAME.bin with a note NAME.json, which is written last: a state without a note is incomplete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from cclocal.paths import Env, read_table, write_private

#: With less free disk space than this nothing is saved.
SPARE_BYTES = 4 * 10**9
#: All states together; the least recently used are removed first.
CAP_BYTES = 8 * 10**9


@dataclass(frozen=True, slots=True)
class State:
    """A saved KV cache: its file, the number of its tokens, and a digest of them."""

    path: Path
    tokens: int
    digest: str


def digest(tokens: list[int]) -> str:
    """Identifies a list of tokens."""
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def find(name: str, env: Env) -> State | None:
    """The state of that name, if its file is what was written."""
    path = env.folders.saved_prompts / f"{name}.bin"
    note = read_table(path.with_suffix(".json"))
    try:
        with path.open("rb") as file:
            is_complete = path.stat().st_size == note.get("size_bytes")
            if is_complete and hashlib.file_digest(file, "sha256").hexdigest() == note.get("sha256"):
                return State(path, int(note["tokens"]), str(note["digest"]))
    except (OSError, KeyError, ValueError, TypeError):
        return None
    return None


def part_name(name: str) -> str:
    """The file name under which a server writes a state, before it is complete."""
    return f"{name}.{os.getpid()}.part"


def keep(name: str, tokens: list[int], about: str, env: Env) -> None:
    """Keep what a server wrote under `part_name`, with a checksum. Raises OSError or FolderError."""
    folder = env.folders.saved_prompts
    part = folder / part_name(name)
    part.chmod(0o600)
    with part.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    note = {
        "size_bytes": part.stat().st_size,
        "sha256": checksum,
        "tokens": len(tokens),
        "digest": digest(tokens),
        "about": about,
    }
    part.replace(folder / f"{name}.bin")
    write_private(folder / f"{name}.json", json.dumps(note))
    make_room(env)


def used(state: State) -> None:
    """Note that a state was used: the time of its file decides which is removed first."""
    state.path.touch()


def forget(state: State) -> None:
    """Never use a state again: the server refused it, so it is damaged in a way that the checksum does not show."""
    state.path.with_suffix(".json").unlink(missing_ok=True)


def has_space(env: Env) -> bool:
    """Whether there is disk space to save another state."""
    return shutil.disk_usage(env.folders.saved_prompts).free >= SPARE_BYTES


def make_room(env: Env) -> None:
    """Remove incomplete states, and the least recently used until the others are below the cap."""
    states: list[tuple[float, int, Path]] = []
    for path in env.folders.saved_prompts.iterdir():
        with contextlib.suppress(OSError):
            if path.suffix == ".part" and not psutil.pid_exists(int(f"0{path.stem.rpartition('.')[2]}")):
                path.unlink()
            elif path.suffix == ".bin" and path.with_suffix(".json").exists():
                states.append((path.stat().st_mtime, path.stat().st_size, path))
            elif path.suffix == ".bin":
                path.unlink()
    total = 0
    for _, size, path in sorted(states, reverse=True):
        total += size
        if total > CAP_BYTES:
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
