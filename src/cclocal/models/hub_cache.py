"""The Hugging Face hub's cache on this disk, by its documented layout: what is in it, and removing from it.

models--ORG--NAME/refs/main names a revision; snapshots/REVISION/FILE are its files. Nothing here uses the network.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path


def folder(environ: Mapping[str, str]) -> Path:
    """The hub's cache, found as huggingface_hub finds it: HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME, ~/.cache."""
    if direct := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(direct).expanduser()
    home = environ.get("HF_HOME")
    if not home:
        cache = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME", "~"), ".cache"))
        home = str(Path(cache, "huggingface"))
    return Path(home).expanduser() / "hub"


def folder_of(repo: str, environ: Mapping[str, str]) -> Path:
    """The folder of one repository."""
    return folder(environ) / f"models--{repo.replace('/', '--')}"


def recorded_revision(repo: str, environ: Mapping[str, str]) -> str | None:
    """The revision of the first fetch, as the cache records it."""
    try:
        return (folder_of(repo, environ) / "refs" / "main").read_text("utf-8").strip() or None
    except OSError:
        return None


def _snapshot(repo: str, environ: Mapping[str, str]) -> Path | None:
    revision = recorded_revision(repo, environ)
    return folder_of(repo, environ) / "snapshots" / revision if revision else None


def files(repo: str, wanted: tuple[str, ...], environ: Mapping[str, str]) -> dict[str, Path]:
    """Those of the files that are complete in the cache: name → path. (A file in flight has no name there yet.)"""
    snapshot = _snapshot(repo, environ)
    return {name: snapshot / name for name in wanted if (snapshot / name).is_file()} if snapshot else {}


def names(repo: str, environ: Mapping[str, str]) -> dict[str, int]:
    """The files of a repository that are in the cache, and their sizes in bytes."""
    snapshot = _snapshot(repo, environ)
    try:
        found = [path for path in snapshot.rglob("*") if path.is_file()] if snapshot else []
        return {str(path.relative_to(snapshot or path)): path.stat().st_size for path in found}
    except OSError:
        return {}


def remove(repo: str, environ: Mapping[str, str]) -> None:
    """Remove a repository from the cache, through the hub's own library: blobs may be shared."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import huggingface_hub

    cache = huggingface_hub.scan_cache_dir(folder(environ))
    # only this one: copies of a repository share the names of their revisions
    mine = frozenset(found for found in cache.repos if found.repo_id == repo and found.repo_type == "model")
    revisions = [revision.commit_hash for found in mine for revision in found.revisions]
    replace(cache, repos=mine).delete_revisions(*revisions).execute()
    left = folder_of(repo, environ)
    # an interrupted download leaves files that belong to no revision
    linked = left.is_symlink() or (left / "blobs").is_symlink()
    for dead in left.glob("blobs/*.incomplete") if not linked else ():
        dead.unlink(missing_ok=True)
    for empty in (left / "blobs", left / "refs", left / "snapshots", left / ".no_exist", left):
        with suppress(OSError):
            empty.rmdir()
