"""Models named by a tag of Ollama's: in its store on this disk, and in its registry."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cclocal.errors import HubError, UsageError
from cclocal.http import is_loopback, web_client
from cclocal.memory.gguf import read_header
from cclocal.memory.shape import shape_of
from cclocal.models import hub
from cclocal.models.headers import ModelHeader, header_of, of_gguf
from cclocal.paths import read_table

_REGISTRY = "registry.ollama.ai"
_MODEL_LAYER = "application/vnd.ollama.image.model"
_PROJECTOR_LAYER = "application/vnd.ollama.image.projector"
_TEMPLATE_LAYER = "application/vnd.ollama.image.template"
#: [host/][namespace/]model[:tag]
_TAG = re.compile(r"(?:(?:([\w.-]+(?::\d+)?)/)?([\w-]+)/)?([A-Za-z0-9][\w.-]*)(?::([\w.-]+))?", re.ASCII)


def store(environ: Mapping[str, str]) -> Path:
    """The folder in which Ollama keeps its models."""
    return Path(environ.get("OLLAMA_MODELS") or Path(environ["HOME"], ".ollama/models"))


def is_tag(name: str, *, plainly: bool) -> bool:
    """Whether a name could be a tag; `plainly`: and nothing else, as model:tag or host/namespace/model."""
    match = _TAG.fullmatch(name)
    if not match or not plainly:
        return bool(match)
    host, namespace, _, version = match.groups()
    return bool(re.search(r"\w[.:]\w", host)) if host else bool(version) and not namespace


def _parts(tag: str) -> tuple[str, str, str, str]:
    """(host, namespace, model, version). Raises UsageError."""
    match = _TAG.fullmatch(tag)
    if not match:
        raise UsageError(f"“{tag}” is not a model name.")
    return match[1] or _REGISTRY, match[2] or "library", match[3], match[4] or "latest"


def manifests(environ: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """(tag, its manifest) of every model in this user's store, as Ollama writes the tag."""
    root = store(environ) / "manifests"
    for path in sorted(root.glob("*/*/*/*")):
        host, space, model, version = path.relative_to(root).parts
        name = f"{model}:{version}" if space == "library" else f"{space}/{model}:{version}"
        yield (name if host == _REGISTRY else f"{host}/{name}"), path


def calls_tools(manifest: Path, environ: Mapping[str, str]) -> bool:
    """Whether a model's template mentions tools: Ollama refuses a request with tools to any other."""
    with suppress(OSError, LookupError, TypeError):
        for layer in read_table(manifest)["layers"]:
            if layer["mediaType"] == _TEMPLATE_LAYER:
                blob = store(environ) / "blobs" / str(layer["digest"]).replace(":", "-")
                return ".Tools" in blob.read_text("utf-8", "replace")
    return False


def sees(tag: str, environ: Mapping[str, str]) -> bool | None:
    """Whether a model that this user's Ollama has sees pictures; None if it has not, or if that cannot be read.

    The projector is a layer of its own, or part of the model's file.
    """
    folder = store(environ)
    manifest = read_table(folder.joinpath("manifests", *_parts(tag)))
    with suppress(OSError, LookupError, TypeError, ValueError, HubError):
        if any(layer["mediaType"] == _PROJECTOR_LAYER for layer in manifest["layers"]):
            return True
        header = header_of(folder / "blobs" / _model_digest(tag, manifest).replace(":", "-"))
        return header.get("vision.block_count") is not None
    return None


def in_store(tag: str, environ: Mapping[str, str]) -> ModelHeader | None:
    """A model that this user's Ollama has; None if it has not, or if the file is newer than we know."""
    folder = store(environ)
    manifest = folder.joinpath("manifests", *_parts(tag))
    if not manifest.is_file():
        return None
    return of_gguf(folder / "blobs" / _model_digest(tag, read_table(manifest)).replace(":", "-"))


def peek(tag: str) -> ModelHeader:
    """A model that is not pulled: its manifest names the blob, the blob's header says the rest.

    Raises HubError if the registry does not have it or cannot be reached, BadHeaderError.
    """
    import httpx

    host, space, model, version = _parts(tag)
    # a registry on this machine has no certificate
    base = f"http{'' if is_loopback(f'http://{host}') else 's'}://{host}/v2/{space}/{model}"
    try:
        with web_client() as client:
            reply = client.get(f"{base}/manifests/{version}")
            if reply.status_code == 404:
                raise HubError(f"Ollama's registry has no model {tag}.", hint="https://ollama.com/search")
            reply.raise_for_status()
            digest = _model_digest(tag, reply.json())
            header = hub.peek_url(client, f"{base}/blobs/{digest}", read_header)
    except httpx.HTTPStatusError as error:
        raise HubError(f"The registry answered {error.response.status_code} for {tag}.") from None
    except (httpx.HTTPError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise HubError(f"Could not reach the registry for {tag}.", cause=[hub.first_line(error)]) from None
    return ModelHeader(shape_of(header), source="Ollama's registry")


def _model_digest(tag: str, manifest: Any) -> str:
    """The digest of the model among the layers of a manifest. Raises HubError."""
    with suppress(LookupError, TypeError):
        for layer in manifest["layers"]:
            if layer["mediaType"] == _MODEL_LAYER and re.fullmatch(r"sha256:[0-9a-f]{64}", layer["digest"]):
                return str(layer["digest"])
    raise HubError(f"The manifest of {tag} names no model.")
