"""What is on this disk: models in the hub's cache, files that were used, saved prompts. A backend with a store of its
own lists that itself (Runtime.stored).

Every store is changed through its own interface only. A file of the user's is never removed, and no link is followed
out of a cache.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from cclocal.models import hub
from cclocal.models.catalog import Catalog
from cclocal.paths import Env, read_rows, write_private

#: The kind of saved KV caches. Prompts and conversations have a row each; server/keep.py gives the files of
#: conversations names that begin with the second word.
SAVED_PROMPTS: Literal["prompts"] = "prompts"
_CONVERSATIONS, _OF_CONVERSATIONS = "conversations", "c-"
#: The kind of a model that was built on this machine.
BUILT: Literal["built"] = "built"
#: Files outside the caches that are remembered; the oldest go first.
_KEPT_FILES = 100


@dataclass(frozen=True, slots=True)
class Stored:
    """One thing on disk.

    kind: "hub", "file" (the user's own), "built" (the tiny model), "prompts" (kept KV caches), or "backend": in the
    store of `backend`. flag: the options that start it. last_used_s: seconds since the epoch, 0 = unknown. is_ours:
    cclocal started it.
    """

    kind: Literal["hub", "file", "built", "prompts", "backend"]
    name: str
    size_bytes: int
    flag: str | None = None
    last_used_s: float = 0.0
    incomplete_bytes: int = 0
    path: str = ""
    is_ours: bool = False
    backend: str = ""

    @property
    def where(self) -> str:
        """The store it is in, as people know it."""
        names = {"backend": self.backend, SAVED_PROMPTS: "kept KV caches", BUILT: "built here"}
        return names.get(self.kind, self.kind)

    def as_json(self) -> dict[str, Any]:
        """The row for scripts; a time that is unknown is null."""
        row = {**asdict(self), "kind": self.where, "last_used_s": self.last_used_s or None}
        del row["is_ours"]
        return row


def remember(name: str, path: str | None, env: Env) -> None:
    """Note that a model was started: a repository by its name, a file by its path."""
    used = _used(env)
    used.pop(name, None)
    used[name] = {"at_s": time.time(), "path": path}
    write_private(env.folders.state / "used.json", json.dumps(dict(list(used.items())[-_KEPT_FILES:])))


def _used(env: Env) -> dict[str, dict[str, Any]]:
    return read_rows(env.folders.state / "used.json")


def start_options(catalog: Catalog) -> Mapping[str, str]:
    """By repository or tag: the options that start that model of the catalog."""
    options = {}
    for model in catalog.models.values():
        for variant in reversed(model.variants):
            # what it takes to mean this variant of several
            backend = f" --backend {variant.backend}" if variant.backend != model.variants[0].backend else ""
            usual = model.variant(variant.backend)
            quant = f" --quant {variant.quant}" if usual and usual.repo != variant.repo else ""
            options[variant.repo or variant.tag or ""] = f"--{model.id}{backend}{quant}"
    return options


def stored(catalog: Catalog, env: Env) -> Iterator[Stored]:
    """What is on disk outside of backends' own stores."""
    used = _used(env)
    yield from _in_hub(catalog, used, env)
    yield from _files(catalog, used)
    yield from _saved_prompts(env)


def _in_hub(catalog: Catalog, used: Mapping[str, Any], env: Env) -> Iterator[Stored]:
    flags = start_options(catalog)
    for repo in sorted(hub.cache(env.environ).glob("models--*")):
        blobs = repo / "blobs"
        kinds = {path.suffix for path in repo.rglob("*") if not path.is_dir()}
        # a repository that holds a model, or the beginning of one
        is_model = blobs.is_dir() and kinds & {".gguf", ".safetensors", ".incomplete"}
        if repo.is_symlink() or blobs.is_symlink() or not is_model:
            continue
        name = repo.name.removeprefix("models--").replace("--", "/")
        files = _files_in(blobs, "*")
        # an unfinished file may have the length of the whole one, and holes
        unfinished = sum(file.st_blocks * 512 for blob, file in files.items() if blob.endswith(".incomplete"))
        size = unfinished + sum(file.st_size for blob, file in files.items() if not blob.endswith(".incomplete"))
        last_read = max((file.st_atime for file in files.values()), default=0.0)
        last = float(used.get(name, {}).get("at_s") or 0) or last_read
        backend = ""
        if ".gguf" in kinds:
            backend = catalog.rules.serving("gguf")
        elif name in flags or "mlx" in name.lower():
            # other safetensors files are for other programs
            backend = catalog.rules.serving("mlx")
        yield Stored("hub", name, size, flags.get(name), last, unfinished, str(repo), name in used, backend)


def _files_in(folder: Path, pattern: str) -> dict[str, os.stat_result]:
    """What the system says of the files in a folder; what a link points at is not in it."""
    found = {}
    for path in folder.glob(pattern):
        # a download or a start at this moment may rename or remove one
        with contextlib.suppress(OSError):
            found[path.name] = path.lstat()
    return found


def _files(catalog: Catalog, used: Mapping[str, dict[str, Any]]) -> Iterator[Stored]:
    for name, row in used.items():
        if row.get("path"):
            with contextlib.suppress(OSError):
                path = Path(str(row["path"]))
                # an MLX model is a folder
                size = sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size
                backend = catalog.rules.serving("mlx" if path.is_dir() else "gguf")
                last = float(row["at_s"])
                yield Stored("file", name, size, f"--model {path}", last, 0, str(path), is_ours=True, backend=backend)


def _saved_prompts(env: Env) -> Iterator[Stored]:
    """All saved prompts as one row, and all saved conversations as another."""
    folder = env.folders.saved_prompts
    found: dict[str, list[os.stat_result]] = {}
    for name, file in (_files_in(folder, "*.bin") | _files_in(folder, "*.request")).items():
        found.setdefault(_CONVERSATIONS if name.startswith(_OF_CONVERSATIONS) else "prompts", []).append(file)
    for name, files in found.items():
        size, last = sum(file.st_size for file in files), max(file.st_mtime for file in files)
        yield Stored(SAVED_PROMPTS, name, size, "", last, path=str(folder))


def remove_saved(row: Stored) -> None:
    """Remove the saved KV caches of a row."""
    for path in Path(row.path).glob("*.*"):
        if path.name.startswith(_OF_CONVERSATIONS) == (row.name == _CONVERSATIONS):
            path.unlink(missing_ok=True)


def free_bytes(folder: Path) -> tuple[int, int]:
    """(free, total) bytes of the disk a folder is on."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    total, _, free = shutil.disk_usage(there)
    return free, total


def users_of(path: Path) -> list[str]:
    """The processes that have a file, or files below a folder, open: name and pid. macOS shows no memory maps."""
    root = os.path.realpath(path)
    found = []
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error, OSError):
            paths = [mapped.path for mapped in process.memory_maps()] if hasattr(process, "memory_maps") else []
            paths += [file.path for file in process.open_files()]
            if any(one == root or one.startswith(f"{root}{os.sep}") for one in paths):
                found.append(f"{process.info['name']} (pid {process.pid})")
    return found
