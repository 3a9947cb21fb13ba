"""Models named by a tag of Ollama's: in its store on this disk, and in its registry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cclocal.errors import HubError, UsageError
from cclocal.http import is_loopback
from cclocal.memory.gguf import read_header
from cclocal.memory.shape import shape_of
from cclocal.models import hub
from cclocal.models.headers import ModelHeader, of_gguf
from cclocal.paths import read_table

_REGISTRY = "registry.ollama.ai"
_MODEL_LAYER = "application/vnd.ollama.image.model"
#: [host/][namespace/]model[:tag]
_TAG = re.compile(r"(?:(?:([\w.-]+(?::\d+)?)/)?([\w-]+)/)?([A-Za-z0-9][\w.-]*)(?::([\w.-]+))?", re.ASCII)


def store(environ: Mapping[str, str]) -> Path:
    """The folder in which Ollama keeps its models."""
    return Path(environ.get("OLLAMA_MODELS") or Path(environ["HOME"], ".ollama/models"))


def is_tag(name: str) -> bool:
    """Whether a name could be a tag."""
    return bool(_TAG.fullmatch(name))


def _parts(tag: str) -> tuple[str, str, str, str]:
    """(host, namespace, model, version). Raises UsageError."""
    match = _TAG.fullmatch(tag)
    if not match:
        raise UsageError(f"“{tag}” is not a model name.")
    return match[1] or _REGISTRY, match[2] or "library", match[3], match[4] or "latest"


def in_store(tag: str, environ: Mapping[str, str]) -> ModelHeader | None:
    """A model that this user's Ollama has; None if it has not, or if the file is newer than we know."""
    folder = store(environ)
    manifest = folder.joinpath("manifests", *_parts(tag))
    if not manifest.is_file():
        return None
    digest, _ = _model_layer(tag, read_table(manifest))
    found = of_gguf(folder / "blobs" / digest.replace(":", "-"))
    return replace(found, name=tag, source="Ollama's own copy") if found else None


def peek(tag: str, environ: Mapping[str, str]) -> ModelHeader:
    """A model, pulled or not: its manifest names the blob, the blob's header says the rest.

    Raises HubError if the registry does not have it or cannot be reached.
    """
    if found := in_store(tag, environ):
        return found
    host, space, model, version = _parts(tag)
    # a registry on this machine has no certificate
    base = f"http{'' if is_loopback(f'http://{host}') else 's'}://{host}/v2/{space}/{model}"
    with hub.web(tag) as client:
        reply = client.get(f"{base}/manifests/{version}")
        if reply.status_code == 404:
            raise HubError(f"Ollama's registry has no model {tag}.", hint="https://ollama.com/search")
        reply.raise_for_status()
        digest, _ = _model_layer(tag, reply.json())
        header = hub.peek_url(client, f"{base}/blobs/{digest}", read_header)
    return ModelHeader(tag, shape_of(header), "Ollama's registry")


def _model_layer(tag: str, manifest: Any) -> tuple[str, int]:
    """(digest, size in bytes) of the model among the layers of a manifest."""
    layers = manifest.get("layers") if isinstance(manifest, dict) else None
    for layer in layers if isinstance(layers, list) else ():
        if isinstance(layer, dict) and layer.get("mediaType") == _MODEL_LAYER:
            digest, size = str(layer.get("digest")), layer.get("size")
            if re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
                return digest, size if isinstance(size, int) else 0
    raise HubError(f"The manifest of {tag} names no model.")
