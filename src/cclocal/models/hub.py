"""Models from the Hugging Face hub: what is in its cache, and fetching exactly the files a variant needs.

The only importer of huggingface_hub, and only when something is fetched: looking into the cache uses the cache's
documented layout (models--ORG--NAME/refs/main → snapshots/REVISION/FILE).
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from cclocal.errors import CclocalError, DiskFullError, DownloadStalledError, FolderError, HubError, OfflineError
from cclocal.memory.gguf import BadHeaderError, CutHeaderError

T = TypeVar("T")

#: How much of a file is looked at before it is fetched, growing: vocabularies make headers of 6 to 16 MB.
PEEK_BYTES = (16 * 2**20, 64 * 2**20)
#: So long without a byte is a stall; counted in bytes received, never in what a folder weighs.
STALL_S = 240.0
#: Left free on the disk beside the download.
SPARE_BYTES = 2 * 10**9


class Bar(Protocol):
    """Where the download's progress goes."""

    def advance(self, received_bytes: int) -> None: ...


def cache_folder(environ: Mapping[str, str]) -> Path:
    """The hub's cache, found as huggingface_hub finds it: HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME, ~/.cache."""
    if direct := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(direct).expanduser()
    home = environ.get("HF_HOME")
    if not home:
        cache = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME", "~"), ".cache"))
        home = str(Path(cache, "huggingface"))
    return Path(home).expanduser() / "hub"


def _folder_of(repo: str, environ: Mapping[str, str]) -> Path:
    return cache_folder(environ) / f"models--{repo.replace('/', '--')}"


def recorded_revision(repo: str, environ: Mapping[str, str]) -> str | None:
    """The revision of the first fetch, as the hub's cache records it."""
    try:
        return (_folder_of(repo, environ) / "refs" / "main").read_text("utf-8").strip() or None
    except OSError:
        return None


def _snapshot(repo: str, environ: Mapping[str, str]) -> Path | None:
    revision = recorded_revision(repo, environ)
    return _folder_of(repo, environ) / "snapshots" / revision if revision else None


def cached_files(repo: str, files: tuple[str, ...], environ: Mapping[str, str]) -> dict[str, Path]:
    """Those of the files that are whole in the cache: name → path. (A file in flight has no name there yet.)"""
    snapshot = _snapshot(repo, environ)
    return {name: snapshot / name for name in files if (snapshot / name).is_file()} if snapshot else {}


def cached_names(repo: str, environ: Mapping[str, str]) -> dict[str, int]:
    """The files of a repository that are in the cache, and their sizes."""
    snapshot = _snapshot(repo, environ)
    try:
        found = [path for path in snapshot.rglob("*") if path.is_file()] if snapshot else []
        return {str(path.relative_to(snapshot or path)): path.stat().st_size for path in found}
    except OSError:
        return {}


def fetch(repo: str, files: tuple[str, ...], environ: Mapping[str, str], bar: Any) -> dict[str, Path]:
    """Fetch the files of a repo into the hub's cache, and return name → path.

    `bar(total_bytes, finished_bytes)` gives the Bar that is told of every byte received. Raises DownloadStalledError
    (20), DiskFullError (21), OfflineError (22) or HubError (23); finished files are kept, the file in flight starts
    again next time. Never a limit on the whole: only silence ends a download, and then it is tried once without Xet.
    """
    stall_s = float(environ.get("CCLOCAL_TEST_STALL_S") or STALL_S)
    asked = json.dumps({"repo": repo, "files": files}) + "\n"
    for last_try in (False, True):
        env = {**environ, **({"HF_HUB_DISABLE_XET": "1"} if last_try else {})}
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "cclocal.models.download"],
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
    """What the fetching process says, to its end; None if it fell silent. Raises what it ran into."""
    assert child.stdout
    shown, buffer, heard = None, b"", time.monotonic()
    while True:
        if not select.select([child.stdout], [], [], 1.0)[0]:
            if time.monotonic() - heard > stall_s:
                return None
            continue
        part = os.read(child.stdout.fileno(), 65536)
        if not part:
            raise HubError("The download ended without a word.", hint="start it again")
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
    """What `fetch` does, in the process that may be ended: see there."""
    # huggingface_hub asks another address about the calling program unless told not to
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "0"
    import huggingface_hub

    cache = cache_folder(environ)
    with _alone(cache, repo, tell):
        there = cached_files(repo, files, environ)
        if len(there) == len(files):
            # the one we waited for fetched it
            return there
        _purge(_folder_of(repo, environ), tell)
        # what was fetched once stays what it was: the revision is the one recorded then
        revision = recorded_revision(repo, environ)
        with _in_words(repo, [name for name in files if name not in there]):
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
    """One download of a repository at a time; who waits is told of the first one's progress."""
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
                    tell(note="Another start of cclocal is downloading it: waiting for that.")
                said = True
                tell(waiting=True, arrived_bytes=arrived)
    except OSError as error:
        raise FolderError(f"The hub's cache cannot be written: {error.strerror} ({locks}).") from None
    try:
        yield
    finally:
        lock.release()


def _purge(folder: Path, tell: Callable[..., None]) -> None:
    """Remove what downloads that were cut off left: huggingface_hub never goes on with it."""
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
        tell(note=f"Removed {size / 1e6:.1f} MB that an unfinished download had left.")


@dataclass(frozen=True, slots=True)
class Peeked(Generic[T]):
    """What was made of a file's beginning, that beginning, and the whole file's size (0 = the server did not say)."""

    value: T
    data: bytes
    size_bytes: int


def peek(repo: str, file: str, parse: Callable[[bytes], T]) -> Peeked[T]:
    """What `parse` makes of a file's beginning, of which as much is fetched as it needs.

    Raises HubError and its like, and whatever else than CutHeaderError `parse` raises.
    """
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import huggingface_hub

    with _in_words(repo):
        url = huggingface_hub.hf_hub_url(repo, file)
        token = huggingface_hub.get_token()
        login = {"authorization": f"Bearer {token}"} if token else {}
        return peek_url(huggingface_hub.get_session(), url, parse, login)


def peek_url(client: Any, url: str, parse: Callable[[bytes], T], headers: Mapping[str, str] | None = None) -> Peeked[T]:
    """The same for any address that understands ranges. `client` is an httpx client."""
    for size in PEEK_BYTES:
        wanted = {**(headers or {}), "range": f"bytes=0-{size - 1}"}
        data = bytearray()
        with client.stream("GET", url, headers=wanted, follow_redirects=True) as reply:
            reply.raise_for_status()
            whole = str(reply.headers.get("content-range", "")).rpartition("/")[2]
            total = int(whole) if whole.isdigit() else int(reply.headers.get("content-length") or 0)
            for chunk in reply.iter_bytes():
                data += chunk
                if len(data) >= size:
                    # a server that knows no ranges sends the whole file
                    break
        try:
            return Peeked(parse(bytes(data)), bytes(data), total)
        except CutHeaderError:
            if len(data) < size or size == PEEK_BYTES[-1]:
                raise
    raise AssertionError("the last size returns or raises")


def list_files(repo: str) -> dict[str, int]:
    """Every file of a repository and its size. Raises HubError and its like."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import huggingface_hub

    with _in_words(repo):
        info = huggingface_hub.HfApi().model_info(repo, files_metadata=True)
        return {file.rfilename: file.size or 0 for file in info.siblings or ()}


@contextmanager
def web(what: str) -> Iterator[Any]:
    """An HTTP client of our own, its failures in words. Raises HubError."""
    import httpx

    try:
        with httpx.Client(timeout=30.0, follow_redirects=True) as client:
            yield client
    except httpx.HTTPStatusError as error:
        raise HubError(f"The registry answered {error.response.status_code} for {what}.") from None
    except (httpx.HTTPError, ValueError) as error:
        if isinstance(error, BadHeaderError):
            raise
        raise HubError(f"The registry was not reached for {what}.", cause=[_first_line(error)]) from None


def remove(repo: str, environ: Mapping[str, str]) -> None:
    """Take a repository out of the hub's cache, through the hub's own library: blobs may be shared."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import huggingface_hub

    cache = huggingface_hub.scan_cache_dir(cache_folder(environ))
    # only this one: copies of a repository share the names of their revisions
    mine = frozenset(found for found in cache.repos if found.repo_id == repo and found.repo_type == "model")
    revisions = [revision.commit_hash for found in mine for revision in found.revisions]
    replace(cache, repos=mine).delete_revisions(*revisions).execute()
    left = _folder_of(repo, environ)
    # what a download that was cut off left behind is no revision
    linked = left.is_symlink() or (left / "blobs").is_symlink()
    for dead in left.glob("blobs/*.incomplete") if not linked else ():
        dead.unlink(missing_ok=True)
    for empty in (left / "blobs", left / "refs", left / "snapshots", left / ".no_exist", left):
        with suppress(OSError):
            empty.rmdir()


def _counting(bar: Bar) -> type:
    """A tqdm that tells our bar instead of drawing: huggingface_hub reports received bytes through it."""
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
            f"The download needs {todo_bytes / 1e9:.1f} GB and {SPARE_BYTES / 1e9:.0f} GB to spare; "
            f"{there} has {free / 1e9:.1f} GB free.",
            hint="free some space, or point HF_HOME at another disk",
        )


@contextmanager
def _in_words(repo: str, missing: Sequence[str] = ()) -> Iterator[None]:
    """The hub library's failures as ours, each with what to do; `missing` are the files that are not here."""
    from huggingface_hub import errors

    try:
        yield
    except (CclocalError, BadHeaderError):
        raise
    except errors.GatedRepoError:
        raise HubError(
            f"{repo} asks you to accept its terms first.",
            hint=f"accept them on https://huggingface.co/{repo}, then run: hf auth login",
        ) from None
    except errors.RepositoryNotFoundError:
        raise HubError(
            f"There is no repository {repo} that you can read.", hint="hf auth login, if it is private"
        ) from None
    except errors.EntryNotFoundError as error:
        raise HubError(f"{repo} does not have that file: {_first_line(error)}.") from None
    except errors.OfflineModeIsEnabled:
        raise OfflineError(
            f"{_what(repo, missing)} not on this disk, and HF_HUB_OFFLINE is set.", hint="unset HF_HUB_OFFLINE"
        ) from None
    except errors.LocalEntryNotFoundError as error:
        raise HubError(
            f"The model hub was not reached, and {_what(repo, missing)} not on this disk.",
            cause=[_first_line(error)],
            hint="check the network, and HF_ENDPOINT if you set it",
        ) from None
    except errors.HfHubHTTPError as error:
        status = int(getattr(error.response, "status_code", 0))
        hint = {401: "hf auth login", 403: "hf auth login", 429: "wait a few minutes"}.get(status, "try again later")
        raise HubError(f"The model hub answered {status} for {repo}.", cause=[_first_line(error)], hint=hint) from None
    except OSError as error:
        if error.errno == 28:
            raise DiskFullError(f"The disk is full: {error}.", hint="finished files were kept") from None
        raise HubError(f"The download of {repo} failed.", cause=[_first_line(error)]) from None
    except Exception as error:
        # the hub's HTTP library has its own hierarchy, which it does not export
        if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2"):
            raise
        raise HubError(
            f"The model hub was not reached for {repo}.",
            cause=[_first_line(error)],
            hint="check the network, and HF_ENDPOINT if you set it",
        ) from None


def _what(repo: str, missing: Sequence[str]) -> str:
    """What is missing, with its verb."""
    if not missing:
        return f"{repo} is"
    return f"{', '.join(missing)} of {repo} {'is' if len(missing) == 1 else 'are'}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
