"""The process that downloads from the hub: one that stalls can be ended, and tried again in another way.

    python -m cclocal.models.download_worker REPO FILE…

JSON lines about its progress go to stdout. It ends when its stdin is closed, so that it goes with the launcher.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from cclocal.errors import CclocalError, DiskFullError, HubError
from cclocal.models import hub
from cclocal.models.storage import free_bytes, users_of
from cclocal.paths import cannot_write
from cclocal.units import file_size

#: Left free on the disk beside the download.
SPARE_BYTES = 2 * 10**9


def main() -> None:
    """Fetch what the arguments ask for, and report when it is there."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "0"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _, repo, *files = sys.argv
        with _alone(repo):
            _download(repo, files)
        _tell(done=True)
    except CclocalError as error:
        _tell(error=type(error).__name__, message=error.message, cause=error.cause, hint=error.hint)
    # the hub's library may be in C code, which only this ends at once
    os._exit(0)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _tell(**news: Any) -> None:
    print(json.dumps(news), flush=True)


def _download(repo: str, files: Sequence[str]) -> None:
    """Fetch the files that are not in the cache."""
    there = hub.cached(repo, files, os.environ)
    todo = [name for name in files if name not in there]
    if not todo:
        # another process fetched it while this one waited
        return
    _purge(hub.folder_of(repo, os.environ))
    huggingface_hub, cache = hub.import_hub(), hub.cache(os.environ)
    # a repository stays at the revision that its first fetch recorded
    revision = hub.recorded_revision(repo, os.environ)
    with hub.in_words(repo, todo):
        sizes = hub.file_sizes(repo, revision)
        if missing := [name for name in files if name not in sizes]:
            raise HubError(f"{repo} has no file {', '.join(missing)}.", hint=f"look at https://huggingface.co/{repo}")
        todo_bytes = sum(sizes[name] for name in todo)
        free, _ = free_bytes(cache)
        if todo_bytes and free < todo_bytes + SPARE_BYTES:
            raise DiskFullError(
                f"The download needs {file_size(todo_bytes)} and {file_size(SPARE_BYTES)} to spare; "
                f"{cache} has {file_size(free)} free.",
                hint="free some space, or point HF_HOME at another disk",
            )
        total_bytes = sum(sizes[name] for name in files)
        _tell(total_bytes=total_bytes, finished_bytes=total_bytes - todo_bytes)
        for name in todo:
            huggingface_hub.hf_hub_download(repo, name, cache_dir=cache, revision=revision, tqdm_class=_Counter)


def _alone(repo: str) -> AbstractContextManager[Any]:
    """Holds the lock by which a repository has one download at a time; waits for another one."""
    locks = hub.cache(os.environ) / ".locks"
    news = {"note": "Another cclocal is downloading it; waiting."}
    try:
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"cclocal--{repo.replace('/', '--')}.lock")
        while True:
            try:
                return lock.acquire(timeout=0.0 if news else 1.0)
            except Timeout:
                # without news, the wait would count as a stall
                _tell(**news)
                news = {}
    except OSError as error:
        raise cannot_write(f"The hub's cache cannot be written ({locks})", error) from None


def _purge(folder: Path) -> None:
    """Remove what interrupted downloads left: huggingface_hub never continues it."""
    dead = [path for path in folder.glob("blobs/*.incomplete") if not users_of(path)]
    size = sum(path.lstat().st_size for path in dead)
    for path in dead:
        path.unlink(missing_ok=True)
    if dead:
        _tell(note=f"Removed {file_size(size)} that an unfinished download had left.")


class _Counter(tqdm):  # type: ignore[type-arg,unused-ignore]
    """Reports received bytes instead of drawing: huggingface_hub counts them through a tqdm."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("name", None)
        super().__init__(*args, **{**kwargs, "disable": True})

    def update(self, n: float | None = 1) -> bool | None:
        if n:
            _tell(received_bytes=int(n))
        return None


if __name__ == "__main__":
    main()
