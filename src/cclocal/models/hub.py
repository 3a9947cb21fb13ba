"""Questions to the Hugging Face hub: which files a repository has, and the beginning of one. The only importer of
huggingface_hub, and only when something is asked.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from cclocal import http
from cclocal.errors import CclocalError, DiskFullError, HubError, OfflineError
from cclocal.memory.gguf import BadHeaderError, CutHeaderError
from cclocal.paths import DISK_FULL
from cclocal.units import MIB

T = TypeVar("T")

#: How much of a file is read before it is fetched, growing: vocabularies make headers of 6 to 16 MB.
PEEK_BYTES = (16 * MIB, 64 * MIB)


def import_hub() -> Any:
    """huggingface_hub, which by default reports the calling program to another address."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import huggingface_hub

    return huggingface_hub


def peek(repo: str, file: str, parse: Callable[[bytes], T]) -> T:
    """What `parse` makes of a file's beginning, of which as much is fetched as it needs.

    Raises HubError and its like, and what `parse` raises except CutHeaderError.
    """
    huggingface_hub = import_hub()
    with in_words(repo):
        url = huggingface_hub.hf_hub_url(repo, file)
        token = huggingface_hub.get_token()
        login = {"authorization": f"Bearer {token}"} if token else {}
        return peek_url(huggingface_hub.get_session(), url, parse, login)


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


def list_files(repo: str) -> dict[str, int]:
    """Every file of a repository and its size in bytes. Raises HubError and its like."""
    huggingface_hub = import_hub()
    with in_words(repo):
        info = huggingface_hub.HfApi().model_info(repo, files_metadata=True)
        return {file.rfilename: file.size or 0 for file in info.siblings or ()}


@contextmanager
def web(what: str) -> Iterator[Any]:
    """An HTTP client for a registry, its failures in words. Raises HubError."""
    import httpx

    try:
        with http.web_client() as client:
            yield client
    except httpx.HTTPStatusError as error:
        raise HubError(f"The registry answered {error.response.status_code} for {what}.") from None
    except (httpx.HTTPError, ValueError) as error:
        if isinstance(error, BadHeaderError):
            raise
        raise HubError(f"Could not reach the registry for {what}.", cause=[_first_line(error)]) from None


@contextmanager
def in_words(repo: str, missing: Sequence[str] = ()) -> Iterator[None]:
    """The hub library's errors as ours, each with what to do; `missing` are the files that are not here."""
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
            f"Could not reach the model hub, and {_what(repo, missing)} not on this disk.",
            cause=[_first_line(error)],
            hint="check the network, and HF_ENDPOINT if you set it",
        ) from None
    except errors.HfHubHTTPError as error:
        status = int(getattr(error.response, "status_code", 0))
        hint = {401: "hf auth login", 403: "hf auth login", 429: "wait a few minutes"}.get(status, "try again later")
        raise HubError(f"The model hub answered {status} for {repo}.", cause=[_first_line(error)], hint=hint) from None
    except OSError as error:
        if error.errno in DISK_FULL:
            raise DiskFullError(f"The disk is full: {error}.", hint="finished files were kept") from None
        raise HubError(f"The download of {repo} failed.", cause=[_first_line(error)]) from None
    except Exception as error:
        # the hub's HTTP library has its own hierarchy, which it does not export
        if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2"):
            raise
        raise HubError(
            f"Could not reach the model hub for {repo}.",
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
