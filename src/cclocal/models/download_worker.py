"""The process that downloads from the hub: one that stalls can be ended, and tried again in another way.

    python -m cclocal.models.download_worker REPO@[REVISION] FILE…

JSON lines about its progress go to stdout. It ends when its stdin is closed, so that it goes with the launcher.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from cclocal.errors import CclocalError, DiskFullError, HubError
from cclocal.models import hub
from cclocal.models.storage import free_bytes, users_of
from cclocal.paths import cannot_write
from cclocal.units import MIB, file_size

#: Left free on the disk beside the download.
SPARE_BYTES = 2 * 10**9
#: Smaller files start again: their download takes seconds.
LEAST_BYTES = 16 * MIB


def main() -> None:
    """Fetch what the arguments ask for, and report when it is there."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "0"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _, place, *files = sys.argv
        repo, _, revision = place.partition("@")
        with _alone(repo):
            _download(repo, files, revision or None)
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


def _download(repo: str, files: Sequence[str], pinned: str | None) -> None:
    """Fetch the files that are not in the cache; at the pinned revision if none was fetched before."""
    there = hub.cached(repo, files, os.environ)
    todo = [name for name in files if name not in there]
    if not todo:
        # another process fetched it while this one waited
        return
    huggingface_hub, cache = hub.import_hub(), hub.cache(os.environ)
    # a repository stays at the revision that its first fetch recorded
    recorded = hub.recorded_revision(repo, os.environ)
    revision = recorded or pinned
    with hub.in_words(repo, todo):
        sizes = hub.file_sizes(repo, revision)
        if missing := [name for name in files if name not in sizes]:
            raise HubError(f"{repo} has no file {', '.join(missing)}.", hint=f"look at https://huggingface.co/{repo}")
        parts = {name: Part.of(repo, name, revision) for name in todo}
        _purge(hub.folder_of(repo, os.environ), [part.path for part in parts.values()])
        todo_bytes = sum(sizes[name] - parts[name].there_bytes for name in todo)
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
            parts[name].fetch()
            # with the file in its place the library only gives it its name; else it fetches it
            huggingface_hub.hf_hub_download(repo, name, cache_dir=cache, revision=revision, tqdm_class=_Counter)
    if pinned and not recorded:
        # the library records it for the newest one only
        hub.record_revision(repo, pinned, os.environ)


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


@dataclass(frozen=True, slots=True)
class Part:
    """A file in flight, which goes on where it was. huggingface_hub would start it again (2.4, read).

    blob: where the whole file belongs; its name is the file's ETag, so that a file that was changed on the hub is
    another one. Small files, and those that Xet fetches in chunks of its own, are left to the library.
    """

    url: str
    blob: Path
    size_bytes: int
    is_ours: bool

    @classmethod
    def of(cls, repo: str, name: str, revision: str | None) -> Part:
        """The part of a file of a repository. Raises the library's errors."""
        huggingface_hub = hub.import_hub()
        url = huggingface_hub.hf_hub_url(repo, name, revision=revision)
        found = huggingface_hub.get_hf_file_metadata(url)
        by_xet = found.xet_file_data is not None and not os.environ.get("HF_HUB_DISABLE_XET")
        size_bytes = found.size or 0
        is_ours = bool(found.etag) and size_bytes >= LEAST_BYTES and not by_xet
        return cls(url, hub.folder_of(repo, os.environ) / "blobs" / str(found.etag), size_bytes, is_ours)

    @property
    def path(self) -> Path:
        """The file that grows."""
        return self.blob.with_name(f"{self.blob.name}.cclocal.incomplete")

    @property
    def there_bytes(self) -> int:
        """How much of it is here already."""
        return min(self.path.stat().st_size, self.size_bytes) if self.is_ours and self.path.exists() else 0

    def fetch(self) -> None:
        """Put the whole file in its place, unless that is left to the library. Raises HubError if it is damaged."""
        if not self.is_ours or self.blob.exists():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        there_bytes = self.there_bytes
        if there_bytes:
            _tell(note=f"Going on with the download at {file_size(there_bytes)}.")
        with self.path.open("ab") as file:
            self._receive(file)
        size_bytes = self.path.stat().st_size
        if size_bytes < self.size_bytes:
            raise HubError(
                f"The hub closed the connection after {file_size(size_bytes)} of {file_size(self.size_bytes)}.",
                hint="start it again: it goes on where it stopped",
            )
        # a file that came in one go is what the hub sent; one that came in pieces may be put together wrongly
        if size_bytes > self.size_bytes or (there_bytes and hub.is_damaged(self.path, self.blob.name)):
            self.path.unlink()
            raise HubError(f"What was received of {self.url} is damaged, and was removed.", hint="start it again")
        self.path.replace(self.blob)

    def _receive(self, file: BinaryIO) -> None:
        """Append what is missing, or everything if the server sends all of it."""
        at, huggingface_hub = file.tell(), hub.import_hub()
        headers = {**huggingface_hub.utils.build_hf_headers(), "accept-encoding": "identity"}
        if at >= self.size_bytes:
            return
        if at:
            headers["range"] = f"bytes={at}-"
        session = huggingface_hub.utils.get_session()
        with session.stream("GET", self.url, headers=headers, follow_redirects=True, timeout=hub.STALL_S) as reply:
            reply.raise_for_status()
            if at and reply.status_code != 206:
                _tell(received_bytes=-at)
                file.truncate(0)
            for chunk in reply.iter_raw():
                file.write(chunk)
                file.flush()
                _tell(received_bytes=len(chunk))


def _purge(folder: Path, going_on: Sequence[Path]) -> None:
    """Remove what interrupted downloads left and nothing continues: the library's, and of files that were changed."""
    dead = [path for path in folder.glob("blobs/*.incomplete") if path not in going_on and not users_of(path)]
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
