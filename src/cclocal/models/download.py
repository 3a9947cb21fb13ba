"""Fetch exactly the files that a model needs, in a process of its own that can be ended when it stalls."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from cclocal.errors import CclocalError, DiskFullError, DownloadStalledError, FolderError, HubError, OfflineError
from cclocal.models import hub_cache
from cclocal.models.hub import import_hub, in_words
from cclocal.units import file_size

#: Seconds without a byte that count as a stall. Measured in received bytes, because the size of the cache folder lags.
STALL_S = 240.0
#: Left free on the disk beside the download.
SPARE_BYTES = 2 * 10**9


class Bar(Protocol):
    """Where the download's progress goes."""

    def advance(self, received_bytes: int) -> None: ...


def fetch(repo: str, files: tuple[str, ...], environ: Mapping[str, str], bar: Any) -> dict[str, Path]:
    """Fetch the files of a repo into the hub's cache, and return name → path.

    `bar(total_bytes, finished_bytes)` returns the Bar that is updated with every byte received. Raises
    DownloadStalledError (20), DiskFullError (21), OfflineError (22) or HubError (23); finished files are kept, the
    unfinished one starts again next time. There is no limit on the whole time: a download ends only if no byte
    arrives, and then it is tried once more without Xet.
    """
    stall_s = float(environ.get("CCLOCAL_TEST_STALL_S") or STALL_S)
    asked = json.dumps({"repo": repo, "files": files}) + "\n"
    for last_try in (False, True):
        env = {**environ, **({"HF_HUB_DISABLE_XET": "1"} if last_try else {})}
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "cclocal.models.download_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
        )
        assert child.stdin
        try:
            child.stdin.write(asked.encode())
            child.stdin.flush()
            found = _follow(child, bar, stall_s)
        finally:
            child.kill()
            child.wait()
            child.stdin.close()
            if child.stdout:
                child.stdout.close()
        if found is not None:
            return found
    raise DownloadStalledError(
        f"The download of {repo} stalled twice: no byte arrived for {stall_s:.0f} s.",
        hint="check the network, then start again: finished files are kept, the file in flight starts again",
    )


def _follow(child: subprocess.Popen[bytes], bar: Any, stall_s: float) -> dict[str, Path] | None:
    """Read the download process's messages until it is done; None if it stalls. Raises the error it reports."""
    assert child.stdout
    shown, buffer, heard = None, b"", time.monotonic()
    while True:
        if not select.select([child.stdout], [], [], 1.0)[0]:
            if time.monotonic() - heard > stall_s:
                return None
            continue
        part = os.read(child.stdout.fileno(), 65536)
        if not part:
            raise HubError("The download process ended without reporting an error.", hint="start it again")
        heard = time.monotonic()
        *lines, buffer = (buffer + part).split(b"\n")
        for line in lines:
            news = json.loads(line)
            if "done" in news:
                return {name: Path(path) for name, path in news["done"].items()}
            if "error" in news:
                told = news["error"]
                kind = _ERRORS.get(told["kind"], HubError)
                raise kind(told["message"], cause=told["cause"], hint=told["hint"])
            if "total_bytes" in news:
                shown = shown or bar(news["total_bytes"], news["finished_bytes"])
            elif shown and "received_bytes" in news:
                shown.advance(news["received_bytes"])
            elif "note" in news:
                bar.note(news["note"])


_ERRORS: Mapping[str, type[CclocalError]] = {
    kind.__name__: kind for kind in (DiskFullError, FolderError, HubError, OfflineError)
}


def download(
    repo: str, files: tuple[str, ...], environ: Mapping[str, str], bar: Any, tell: Callable[..., None]
) -> dict[str, Path]:
    """What `fetch` does, in the process that may be ended."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "0"
    huggingface_hub = import_hub()
    cache = hub_cache.folder(environ)
    with _alone(cache, repo, tell):
        there = hub_cache.files(repo, files, environ)
        if len(there) == len(files):
            # another process fetched it while this one waited
            return there
        _purge(hub_cache.folder_of(repo, environ), tell)
        # a repository stays at the revision that its first fetch recorded
        revision = hub_cache.recorded_revision(repo, environ)
        with in_words(repo, [name for name in files if name not in there]):
            info = huggingface_hub.HfApi().model_info(repo, files_metadata=True, revision=revision)
            sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if file.rfilename in files}
            if missing := [name for name in files if name not in sizes]:
                raise HubError(
                    f"{repo} has no file {', '.join(missing)}.", hint=f"look at https://huggingface.co/{repo}"
                )
            todo = sum(size for name, size in sizes.items() if name not in there)
            _check_disk(cache, todo)
            counter = _counting(bar(sum(sizes.values()), sum(sizes.values()) - todo))
            get = partial(huggingface_hub.hf_hub_download, repo, cache_dir=cache, revision=revision)
            return {name: Path(get(name, tqdm_class=counter)) for name in files}


@contextmanager
def _alone(cache: Path, repo: str, tell: Callable[..., None]) -> Iterator[None]:
    """One download of a repository at a time; a second one waits and shows the first one's progress."""
    from filelock import FileLock, Timeout

    locks = cache / ".locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"cclocal--{repo.replace('/', '--')}.lock")
        blobs, said = cache / f"models--{repo.replace('/', '--')}" / "blobs", False
        while True:
            try:
                lock.acquire(timeout=1.0 if said else 0.0)
                break
            except Timeout:
                arrived = sum(path.stat().st_size for path in blobs.glob("*.incomplete"))
                if not said:
                    tell(note="Another cclocal is downloading it; waiting.")
                said = True
                tell(waiting=True, arrived_bytes=arrived)
    except OSError as error:
        raise FolderError(f"The hub's cache cannot be written: {error.strerror} ({locks}).") from None
    try:
        yield
    finally:
        lock.release()


def _purge(folder: Path, tell: Callable[..., None]) -> None:
    """Remove what interrupted downloads left: huggingface_hub never continues it."""
    dead = [path for path in folder.glob("blobs/*.incomplete") if not path.is_symlink()]
    if not dead:
        return
    import psutil

    held = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            held |= {file.path for file in process.open_files()}
    gone = [path for path in dead if os.path.realpath(path) not in held]
    size = sum(path.stat().st_size for path in gone)
    for path in gone:
        path.unlink(missing_ok=True)
    if gone:
        tell(note=f"Removed {file_size(size)} that an unfinished download had left.")


def _counting(bar: Bar) -> type:
    """A tqdm that reports to our bar instead of drawing: huggingface_hub counts received bytes through it."""
    from tqdm.auto import tqdm

    class Counting(tqdm):  # type: ignore[type-arg,unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if n:
                bar.advance(int(n))
            return None

    return Counting


def _check_disk(cache: Path, todo_bytes: int) -> None:
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if todo_bytes and free < todo_bytes + SPARE_BYTES:
        raise DiskFullError(
            f"The download needs {file_size(todo_bytes)} and {file_size(SPARE_BYTES)} to spare; "
            f"{there} has {file_size(free)} free.",
            hint="free some space, or point HF_HOME at another disk",
        )
