"""What is on this disk: models in the hub's cache and in Ollama's store, files that were used; and removing them.

Every store is read as it is and changed through its own interface only: huggingface_hub's for its cache, Ollama's for
its own. A file of yours is never removed, and no link is followed out of a cache.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from cclocal import hub
from cclocal.catalog import Catalog
from cclocal.errors import UsageError
from cclocal.files import Folders, ollama_store, read_table, write_private

#: So many files outside the caches are remembered.
_KEPT_FILES = 100


@dataclass(frozen=True, slots=True)
class Stored:
    """One model on disk. kind: hub, ollama or file. flag: how cclocal starts it, if it is in the catalog."""

    kind: str
    name: str
    size_bytes: int
    flag: str | None = None
    #: seconds since the epoch; 0 = nobody knows
    last_used_s: float = 0.0
    incomplete_bytes: int = 0
    path: str = ""
    mine: bool = False

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "size_bytes": self.size_bytes,
            "flag": self.flag,
            "last_used_s": self.last_used_s or None,
            "incomplete_bytes": self.incomplete_bytes,
            "path": self.path,
        }


# -- what was used ----------------------------------------------------------------------------------------------


def remember(name: str, path: str | None, folders: Folders) -> None:
    """Note that a model was started: a repository by its name, a file by its path."""
    used = _used(folders)
    used.pop(name, None)
    used[name] = {"at_s": time.time(), "path": path}
    write_private(folders.state / "used.json", json.dumps(dict(list(used.items())[-_KEPT_FILES:])))


def _used(folders: Folders) -> dict[str, dict[str, Any]]:
    return {name: row for name, row in read_table(folders.state / "used.json").items() if isinstance(row, dict)}


# -- what is there ----------------------------------------------------------------------------------------------


def stored(shelf: Catalog, folders: Folders, environ: Mapping[str, str]) -> list[Stored]:
    """Every model cclocal can see, the largest first."""
    used = _used(folders)
    flags = {v.repo or v.tag: f"--{model.id}" for model in shelf.models.values() for v in model.variants}
    rows = [*_in_hub(flags, used, environ), *_in_ollama(flags, environ), *_files(used)]
    return sorted(rows, key=lambda row: -row.size_bytes)


def _in_hub(flags: Mapping[str | None, str], used: Mapping[str, Any], environ: Mapping[str, str]) -> Iterator[Stored]:
    folder = hub.cache_folder(environ)
    for repo in sorted(folder.glob("models--*")):
        blobs = repo / "blobs"
        if repo.is_symlink() or blobs.is_symlink() or not blobs.is_dir() or not _holds_weights(repo):
            continue
        name = repo.name.removeprefix("models--").replace("--", "/")
        sizes = {blob.name: _size(blob) for blob in (repo / "blobs").iterdir()}
        dead = sum(size for blob, size in sizes.items() if blob.endswith(".incomplete"))
        row = used.get(name, {})
        last = float(row.get("at_s") or 0) or _last_read(repo / "blobs")
        yield Stored("hub", name, sum(sizes.values()), flags.get(name), last, dead, str(repo), name in used)


def _holds_weights(repo: Path) -> bool:
    """Whether a repository holds a model, or the beginning of one."""
    names = [path.name for path in repo.rglob("*") if not path.is_dir()]
    return any(name.endswith((".gguf", ".safetensors", ".incomplete")) for name in names)


def _size(path: Path) -> int:
    try:
        # a link in there is none of the cache's bytes
        return path.lstat().st_blocks * 512 if path.name.endswith(".incomplete") else path.lstat().st_size
    except OSError:
        return 0


def _last_read(blobs: Path) -> float:
    times = [0.0]
    for blob in blobs.iterdir():
        # a download that ends at this moment changes names
        with contextlib.suppress(OSError):
            times.append(blob.lstat().st_atime)
    return max(times)


def _in_ollama(flags: Mapping[str | None, str], environ: Mapping[str, str]) -> Iterator[Stored]:
    manifests = ollama_store(environ) / "manifests"
    for manifest in sorted(manifests.glob("*/*/*/*")):
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            layers = json.loads(manifest.read_text("utf-8"))["layers"]
            host, space, model, tag = manifest.relative_to(manifests).parts
            name = f"{model}:{tag}" if space == "library" else f"{space}/{model}:{tag}"
            name = name if host == "registry.ollama.ai" else f"{host}/{name}"
            size = sum(int(layer["size"]) for layer in layers)
            yield Stored("ollama", name, size, flags.get(name), manifest.stat().st_atime, path=str(manifest))


def _files(used: Mapping[str, dict[str, Any]]) -> Iterator[Stored]:
    for name, row in used.items():
        if row.get("path"):
            with contextlib.suppress(OSError):
                size = Path(str(row["path"])).stat().st_size
                shown = str(row["path"])
                yield Stored("file", name, size, f"--model {shown}", float(row["at_s"]), path=shown, mine=True)


def free_bytes(folder: Path) -> tuple[int, int]:
    """(free, total) of the disk a folder is on."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    usage = shutil.disk_usage(there)
    return usage.free, usage.total


# -- removing ---------------------------------------------------------------------------------------------------


def choose(names: Iterable[str], rows: list[Stored], shelf: Catalog) -> list[Stored]:
    """The rows that are meant by names, flags or ids; "all" is every model of the catalog's or started by cclocal.

    Raises UsageError for a name that is on no row.
    """
    chosen: list[Stored] = []
    for name in names:
        if name == "all":
            chosen += [row for row in rows if row.kind == "hub" and (row.flag or row.mine)]
            continue
        meant = {name}
        for model in shelf.models.values():
            if name.removeprefix("--") in (model.id, *model.flags):
                meant |= {v.repo or v.tag or "" for v in model.variants}
        found = [row for row in rows if row.name in meant]
        if not found:
            known = ", ".join(row.name for row in rows[:8]) or "nothing"
            raise UsageError(f"There is no {name} on this disk (there is {known}).", hint="cclocal --list")
        chosen += found
    return list(dict.fromkeys(chosen))


def users_of(row: Stored) -> list[str]:
    """The processes that have a model's files open: name and pid."""
    root = os.path.realpath(row.path)
    found = []
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error, OSError):
            paths = [mapped.path for mapped in process.memory_maps()] if hasattr(process, "memory_maps") else []
            paths += [file.path for file in process.open_files()]
            if any(path == root or path.startswith(f"{root}{os.sep}") for path in paths):
                found.append(f"{process.info['name']} (pid {process.pid})")
    return found


def check_removable(row: Stored, environ: Mapping[str, str]) -> None:
    """Raises UsageError if somebody uses a model, or if it is a file of one's own."""
    if row.kind == "file":
        raise UsageError(f"{row.path} is a file of yours, so it is yours to remove.")
    users = users_of(row) if row.kind == "hub" else _loaded_in_ollama(row, environ)
    if users:
        raise UsageError(f"{row.name} is in use by {', '.join(users)}.")


def remove(row: Stored, environ: Mapping[str, str]) -> None:
    """Take a model off the disk through its own store. Raises UsageError if that did not do it."""
    if row.kind == "ollama":
        _remove_from_ollama(row, environ)
    else:
        hub.remove(row.name, environ)
    left = Path(row.path)
    if left.is_file() or (left.is_dir() and any(path.lstat().st_size > 4096 for path in left.rglob("*"))):
        raise UsageError(f"{row.name} is still there: its store did not remove all of it.", hint=f"look at {row.path}")


def _ollama(environ: Mapping[str, str]) -> str:
    """Where Ollama answers, by its own variable and rules: a missing port is 11434, all addresses mean this machine."""
    told = (environ.get("OLLAMA_HOST") or "127.0.0.1:11434").strip()
    parts = urlsplit(told if "//" in told else f"http://{told}")
    host = parts.hostname or "127.0.0.1"
    host = "127.0.0.1" if host == "0.0.0.0" else f"[{host}]" if ":" in host else host  # noqa: S104
    return f"{parts.scheme}://{host}:{parts.port or 11434}"


def _loaded_in_ollama(row: Stored, environ: Mapping[str, str]) -> list[str]:
    """Ollama itself, if it has the model in memory."""
    import httpx

    with contextlib.suppress(httpx.HTTPError, ValueError, AttributeError, TypeError):
        with httpx.Client(trust_env=False, timeout=5.0) as client:
            loaded = client.get(f"{_ollama(environ)}/api/ps").json().get("models") or []
        if row.name in {str(one.get("name")) for one in loaded}:
            return ["Ollama, which has it in memory"]
    return []


def _remove_from_ollama(row: Stored, environ: Mapping[str, str]) -> None:
    """Through a running daemon: blobs are shared, and only Ollama knows which are still needed."""
    import httpx

    try:
        # a proxy has no business between us and a daemon of this machine
        with httpx.Client(trust_env=False, timeout=30.0) as client:
            reply = client.request("DELETE", f"{_ollama(environ)}/api/delete", json={"model": row.name})
            reply.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UsageError(
            f"Ollama did not remove {row.name}: {error}.", hint=f"ollama serve, then ollama rm {row.name}"
        ) from None
