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
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cclocal.errors import UsageError
from cclocal.models import hub
from cclocal.models.catalog import Catalog, Model, Variant
from cclocal.paths import Folders, is_loopback, ollama_store, ollama_url, read_table, write_private

#: The row of what is kept of prompts, by kind and name.
WARM = "warm"
#: So many files outside the caches are remembered.
_KEPT_FILES = 100


@dataclass(frozen=True, slots=True)
class Stored:
    """One thing on disk. kind: hub, ollama, file, or warm (prompts that are kept). flag: how cclocal starts it."""

    kind: str
    name: str
    size_bytes: int
    flag: str | None = None
    #: seconds since the epoch; 0 = nobody knows
    last_used_s: float = 0.0
    incomplete_bytes: int = 0
    path: str = ""
    mine: bool = False
    #: what serves it
    backend: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "backend": self.backend,
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
    borrowed = {record.stem for record in folders.borrowed.glob("*.json")}
    flags = {v.repo or v.tag: _start_of(model, v) for model in shelf.models.values() for v in reversed(model.variants)}
    rows = [
        *_in_hub(flags, used, environ),
        *_in_ollama(flags, borrowed, environ),
        *_files(used),
        *_warm(folders),
    ]
    return sorted(rows, key=lambda row: -row.size_bytes)


def _start_of(model: Model, variant: Variant) -> str:
    """What starts a variant: its model's flag, and what it takes to mean this one of several."""
    first = model.variants[0]
    backend = f" --backend {variant.backend}" if variant.backend != first.backend else ""
    usual = model.variant(variant.backend)
    quant = f" --quant {variant.quant}" if usual and usual.repo != variant.repo else ""
    return f"--{model.id}{backend}{quant}"


def _in_hub(flags: Mapping[str | None, str], used: Mapping[str, Any], environ: Mapping[str, str]) -> Iterator[Stored]:
    folder = hub.cache_folder(environ)
    for repo in sorted(folder.glob("models--*")):
        blobs = repo / "blobs"
        kinds = _kinds_of_files(repo)
        if repo.is_symlink() or blobs.is_symlink() or not blobs.is_dir() or not kinds & _WEIGHTS:
            continue
        name = repo.name.removeprefix("models--").replace("--", "/")
        sizes = {blob.name: _size(blob) for blob in (repo / "blobs").iterdir()}
        dead = sum(size for blob, size in sizes.items() if blob.endswith(".incomplete"))
        row = used.get(name, {})
        last = float(row.get("at_s") or 0) or _last_read(repo / "blobs")
        backend = "llama-server" if ".gguf" in kinds else ""
        if not backend and (name in flags or "mlx" in name.lower()):
            # other safetensors are for programs that are none of ours
            backend = "vllm-mlx"
        size, mine = sum(sizes.values()), name in used
        yield Stored("hub", name, size, flags.get(name), last, dead, str(repo), mine, backend)


#: The ends of names by which a repository holds a model, or the beginning of one.
_WEIGHTS = frozenset((".gguf", ".safetensors", ".incomplete"))


def _kinds_of_files(repo: Path) -> set[str]:
    return {path.suffix for path in repo.rglob("*") if not path.is_dir()}


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


def _in_ollama(flags: Mapping[str | None, str], borrowed: Set[str], environ: Mapping[str, str]) -> Iterator[Stored]:
    manifests = ollama_store(environ) / "manifests"
    for manifest in sorted(manifests.glob("*/*/*/*")):
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            layers = json.loads(manifest.read_text("utf-8"))["layers"]
            host, space, model, tag = manifest.relative_to(manifests).parts
            name = f"{model}:{tag}" if space == "library" else f"{space}/{model}:{tag}"
            name = name if host == "registry.ollama.ai" else f"{host}/{name}"
            if name.startswith("cclocal-") and name.partition(":")[0] in borrowed:
                # another name for a model that is in the list, for as long as a session needs it
                continue
            size = sum(int(layer["size"]) for layer in layers)
            used = manifest.stat().st_atime
            start = flags.get(name) or f"--model {name}{' --backend ollama' if '/' in name else ''}"
            yield Stored("ollama", name, size, start, used, path=str(manifest), backend="ollama")


def _files(used: Mapping[str, dict[str, Any]]) -> Iterator[Stored]:
    for name, row in used.items():
        if row.get("path"):
            with contextlib.suppress(OSError):
                path = Path(str(row["path"]))
                # an MLX model is a folder
                size = sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size
                backend = "vllm-mlx" if path.is_dir() else "llama-server"
                start = f"--model {path}"
                yield Stored("file", name, size, start, float(row["at_s"]), 0, str(path), True, backend)


def _warm(folders: Folders) -> Iterator[Stored]:
    """What is kept of prompts from session to session, as one row."""
    folder = folders.warm
    files = []
    for path in folder.glob("*.bin"):
        # a start at this moment may remove one
        with contextlib.suppress(OSError):
            files.append(path.stat())
    if files:
        size, last = sum(file.st_size for file in files), max(file.st_mtime for file in files)
        yield Stored(WARM, WARM, size, "", last, path=str(folder))


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
                # what Ollama has is not ours: it goes by its own name only
                meant |= {v.repo for v in model.variants if v.repo}
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
    users = _loaded_in_ollama(row, environ) if row.kind == "ollama" else users_of(row)
    if users:
        raise UsageError(f"{row.name} is in use by {', '.join(users)}.")


def remove(row: Stored, environ: Mapping[str, str]) -> None:
    """Take a model off the disk through its own store. Raises UsageError if that did not do it."""
    if row.kind == WARM:
        shutil.rmtree(row.path, ignore_errors=True)
    elif row.kind == "ollama":
        _remove_from_ollama(row, environ)
    else:
        hub.remove(row.name, environ)
    left = Path(row.path)
    if left.is_file() or (left.is_dir() and any(path.lstat().st_size > 4096 for path in left.rglob("*"))):
        raise UsageError(f"{row.name} is still there: its store did not remove all of it.", hint=f"look at {row.path}")


def _loaded_in_ollama(row: Stored, environ: Mapping[str, str]) -> list[str]:
    """Ollama itself, if it has the model in memory. Raises UsageError if it does not answer: only it can remove."""
    import httpx

    url = ollama_url(environ)
    if not is_loopback(url):
        raise UsageError(f"{row.name} is in the store of this machine, and OLLAMA_HOST names another.")
    try:
        # a proxy has no business between us and a daemon of this machine
        with httpx.Client(trust_env=False, timeout=5.0) as client:
            loaded = client.get(f"{url}/api/ps").json().get("models") or []
    except (httpx.HTTPError, ValueError, AttributeError) as error:
        raise UsageError(
            f"Ollama did not answer, and only it can remove {row.name}.",
            hint=f"ollama serve, then ollama rm {row.name}",
        ) from error
    names = {str(one.get("name")) for one in loaded if isinstance(one, dict)}
    return ["Ollama, which has it in memory"] if row.name in names else []


def _remove_from_ollama(row: Stored, environ: Mapping[str, str]) -> None:
    """Through a running daemon: blobs are shared, and only Ollama knows which are still needed."""
    import httpx

    try:
        with httpx.Client(trust_env=False, timeout=30.0) as client:
            reply = client.request("DELETE", f"{ollama_url(environ)}/api/delete", json={"model": row.name})
            reply.raise_for_status()
    except httpx.HTTPError as error:
        raise UsageError(f"Ollama did not remove {row.name}: {error}.", hint=f"ollama rm {row.name}") from None
