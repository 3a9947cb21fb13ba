"""The Hugging Face hub: its cache on this disk, questions to it, and downloads. The only importer of huggingface_hub,
and only when something is asked.

The cache's documented layout: models--ORG--NAME/refs/main names a revision; snapshots/REVISION/FILE are its files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from cclocal import errors
from cclocal.errors import CclocalError, DiskFullError, HubError, OfflineError
from cclocal.memory.gguf import BadHeaderError, CutHeaderError
from cclocal.paths import DISK_FULL
from cclocal.units import MIB, how_it_ended

T = TypeVar("T")

#: Seconds without a byte that count as a stall. Measured in received bytes, because the size of the cache folder lags.
STALL_S = 240.0
#: How much of a file is read before it is fetched, growing: vocabularies make headers of 6 to 16 MB.
PEEK_BYTES = (16 * MIB, 64 * MIB)


def import_hub() -> Any:
    """huggingface_hub, which by default reports the calling program to another address."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import huggingface_hub

    return huggingface_hub


def cache(environ: Mapping[str, str]) -> Path:
    """The hub's cache, found as huggingface_hub finds it: HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME, ~/.cache."""
    if direct := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(direct).expanduser()
    base = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "~"), ".cache")
    return Path(environ.get("HF_HOME") or Path(base, "huggingface")).expanduser() / "hub"


def folder_of(repo: str, environ: Mapping[str, str]) -> Path:
    """The folder of one repository."""
    return cache(environ) / f"models--{repo.replace('/', '--')}"


def recorded_revision(repo: str, environ: Mapping[str, str]) -> str | None:
    """The revision of the first fetch, as the cache records it."""
    try:
        return (folder_of(repo, environ) / "refs" / "main").read_text("utf-8").strip() or None
    except OSError:
        return None


def _snapshot(repo: str, environ: Mapping[str, str]) -> Path:
    """The folder of the files at that revision; if none was fetched, one that is not there."""
    return folder_of(repo, environ) / "snapshots" / (recorded_revision(repo, environ) or "none")


def cached(repo: str, wanted: Iterable[str], environ: Mapping[str, str]) -> dict[str, Path]:
    """Those of the files that are complete in the cache: name → path. (A file in flight has no name there yet.)"""
    snapshot = _snapshot(repo, environ)
    return {name: snapshot / name for name in wanted if (snapshot / name).is_file()}


def cached_sizes(repo: str, environ: Mapping[str, str]) -> dict[str, int]:
    """The files of a repository that are in the cache, and their sizes in bytes."""
    snapshot = _snapshot(repo, environ)
    try:
        return {str(path.relative_to(snapshot)): path.stat().st_size for path in snapshot.rglob("*") if path.is_file()}
    except OSError:
        return {}


def is_damaged(file: Path, etag: str) -> bool:
    """Whether a file is not what the hub sent, by its ETag, which for large files is their checksum."""
    if not re.fullmatch(r"[0-9a-f]{64}", etag):
        return False
    return sha256_of(file) != etag


def sha256_of(file: Path) -> str:
    """A file's checksum, as 64 digits."""
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def remove_damaged(repo: str, files: Iterable[str], environ: Mapping[str, str]) -> list[str]:
    """Remove those of a repository's files that are damaged, so that only they are fetched again: their names."""
    blobs = {name: path.resolve() for name, path in cached(repo, files, environ).items()}
    damaged = [name for name, blob in blobs.items() if is_damaged(blob, blob.name)]
    for name in damaged:
        (_snapshot(repo, environ) / name).unlink()
        blobs[name].unlink()
    return damaged


def remove(repo: str, environ: Mapping[str, str]) -> None:
    """Remove a repository from the cache, through the hub's own library: blobs may be shared."""
    scanned = import_hub().scan_cache_dir(cache(environ))
    # only this one: copies of a repository share the names of their revisions
    mine = frozenset(found for found in scanned.repos if found.repo_id == repo and found.repo_type == "model")
    revisions = [revision.commit_hash for found in mine for revision in found.revisions]
    replace(scanned, repos=mine).delete_revisions(*revisions).execute()


def peek(repo: str, file: str, parse: Callable[[bytes], T], revision: str | None = None) -> T:
    """What `parse` makes of a file's beginning, of which as much is fetched as it needs.

    Raises HubError and its like, and what `parse` raises.
    """
    huggingface_hub = import_hub()
    with in_words(repo):
        token = huggingface_hub.get_token()
        login = {"authorization": f"Bearer {token}"} if token else {}
        return peek_url(
            huggingface_hub.get_session(), huggingface_hub.hf_hub_url(repo, file, revision=revision), parse, login
        )


def peek_url(client: Any, url: str, parse: Callable[[bytes], T], headers: Mapping[str, str] | None = None) -> T:
    """The same for any address that understands ranges. `client` is an httpx client."""
    for size in PEEK_BYTES:
        ranged = {**(headers or {}), "range": f"bytes=0-{size - 1}"}
        data = bytearray()
        with client.stream("GET", url, headers=ranged, follow_redirects=True) as reply:
            reply.raise_for_status()
            for chunk in reply.iter_bytes():
                data += chunk
                if len(data) >= size:
                    # a server that knows no ranges sends the whole file
                    break
        try:
            return parse(bytes(data))
        except CutHeaderError:
            if len(data) < size or size == PEEK_BYTES[-1]:
                raise
    raise AssertionError("the last size returns or raises")


def file_sizes(repo: str, revision: str | None = None) -> dict[str, int]:
    """Every file of a repository and its size in bytes. Raises HubError if the hub's answer cannot be right."""
    info = import_hub().HfApi().model_info(repo, files_metadata=True, revision=revision)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    for name, size_bytes in sizes.items():
        parts = name.split("/")
        if size_bytes < 0 or not name.isprintable() or "\\" in name or {"", "..", "."} & {*parts} or name[0] == "-":
            raise HubError(f"{repo} lists a file that cannot be right: {name!r}, {size_bytes} bytes.")
    return sizes


def commit_of(repo: str) -> str:
    """The newest commit of a repository, by the hub. Raises HubError and its like."""
    with in_words(repo):
        return str(import_hub().HfApi().model_info(repo).sha)


def record_revision(repo: str, revision: str, environ: Mapping[str, str]) -> None:
    """Have the cache record a revision as its main one, as a fetch of the newest one does."""
    path = folder_of(repo, environ) / "refs" / "main"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(revision, "utf-8")


def fetch(repo: str, files: tuple[str, ...], environ: Mapping[str, str], bar: Any, revision: str | None = None) -> None:
    """Fetch the files of a repo into the hub's cache; at `revision` if none of it is there yet.

    `bar(total_bytes, finished_bytes)` starts a progress bar, whose `advance` is called with every byte received. Raises
    DownloadStalledError (20), DiskFullError (21), OfflineError (22) or HubError (23); what was received is kept,
    and a large file goes on there next time. There is no limit on the whole time: a download ends only if no byte
    arrives, and then it is tried once more without Xet.
    """
    stall_s = float(environ.get("CCLOCAL_TEST_STALL_S") or STALL_S)
    for changes in ({}, {"HF_HUB_DISABLE_XET": "1"}):
        with (
            tempfile.TemporaryFile() as said,
            subprocess.Popen(
                [sys.executable, "-P", "-m", "cclocal.models.download_worker", f"{repo}@{revision or ''}", *files],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                # or `select` would not see what was read with an earlier line
                bufsize=0,
                env={**environ, **changes},
            ) as child,
        ):
            try:
                if _is_done(child, bar, stall_s):
                    return
            except EOFError:
                how = how_it_ended(child.wait())
                said.seek(0)
                last = said.read()[-4096:].decode("utf-8", "replace").strip().splitlines()[-1:]
                raise HubError(
                    f"The download process ended ({how}) without reporting an error.", cause=last, hint="start it again"
                ) from None
            finally:
                child.kill()
    raise errors.DownloadStalledError(
        f"The download of {repo} stalled twice: no byte arrived for {stall_s:.0f} s.",
        hint="check the network, then start again: it goes on where it stopped",
    )


def _is_done(child: subprocess.Popen[bytes], bar: Any, stall_s: float) -> bool:
    """Read the download process's messages until it is done; False if it stalls.

    Raises the error it reports, EOFError if it ends without one.
    """
    assert child.stdout
    while select.select([child.stdout], [], [], stall_s)[0]:
        line = child.stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        match json.loads(line):
            case {"done": True}:
                return True
            case {"error": kind, "message": message, "cause": cause, "hint": hint}:
                raise getattr(errors, kind)(message, cause=cause, hint=hint)
            case {"total_bytes": total_bytes, "finished_bytes": finished_bytes}:
                shown = bar(total_bytes, finished_bytes)
            case {"received_bytes": received_bytes}:
                shown.advance(received_bytes)
            case {"note": note}:
                bar.note(note)
    return False


@contextmanager
def in_words(repo: str, missing: Sequence[str] = ()) -> Iterator[None]:
    """The hub library's errors as ours, each with what to do; `missing` are the files that are not here."""
    try:
        yield
    except Exception as error:
        raise _in_words(error, repo, missing) from None


def _in_words(error: Exception, repo: str, missing: Sequence[str]) -> Exception:
    """The error as one of ours, or as it is if it says nothing of the hub."""
    from huggingface_hub import errors as theirs

    what = f"{', '.join(missing)} of {repo} {'is' if len(missing) == 1 else 'are'}" if missing else f"{repo} is"
    cause = [first_line(error)]
    match error:
        case CclocalError() | BadHeaderError():
            return error
        case theirs.GatedRepoError():
            hint = f"accept them on https://huggingface.co/{repo}, then run: hf auth login"
            return HubError(f"{repo} asks you to accept its terms first.", hint=hint)
        case theirs.RepositoryNotFoundError():
            return HubError(f"There is no repository {repo} that you can read.", hint="hf auth login, if it is private")
        case theirs.OfflineModeIsEnabled():
            return OfflineError(f"{what} not on this disk, and HF_HUB_OFFLINE is set.", hint="unset HF_HUB_OFFLINE")
        case theirs.LocalEntryNotFoundError():
            pass
        case theirs.EntryNotFoundError():
            return HubError(f"{repo} does not have that file: {cause[0]}.")
        case theirs.HfHubHTTPError():
            status = int(getattr(error.response, "status_code", 0))
            hints = {401: "hf auth login", 403: "hf auth login", 429: "wait a few minutes"}
            text = f"The model hub answered {status} for {repo}."
            return HubError(text, cause=cause, hint=hints.get(status, "try again later"))
        case ValueError() | RecursionError():
            return HubError(f"The model hub's answer about {repo} cannot be read.", cause=cause)
        case OSError() if error.errno in DISK_FULL:
            return DiskFullError(
                f"The disk is full: {error}.", hint="free some space, then start again: it goes on where it stopped"
            )
        case OSError():
            return HubError(f"The download of {repo} failed.", cause=cause)
        # the hub's HTTP library has its own hierarchy, which it does not export
        case _ if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2"):
            return error
    text = f"Could not reach the model hub, and {what} not on this disk."
    return HubError(text, cause=cause, hint="check the network, and HF_ENDPOINT if you set it")


def first_line(error: BaseException) -> str:
    """An error's own words, in one line, without the number that the system gives it."""
    words = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^\[Errno -?\d+\] ", "", words)
