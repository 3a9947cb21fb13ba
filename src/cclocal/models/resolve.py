"""Which model is meant by a word: one of the catalog, a file, a folder, a repository of the hub, a tag of Ollama's.

What is not in the catalog is made a model of by its own files: its context, its parsers, its switch for thinking.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cclocal.errors import UsageError
from cclocal.models import catalog, hub
from cclocal.models.catalog import CONFIG, BackendName, Catalog, Model, Variant
from cclocal.models.chat_template import traits
from cclocal.models.headers import Found, is_repo, is_tag, kind_of_repo, local_tag, of_folder, of_gguf, with_hub_files
from cclocal.paths import Folders

#: What the files of a repository must be for a backend.
_FORMS = {"vllm-mlx": "mlx", "llama-server": "gguf"}
#: What most models of today were made for: taken until a model's own header says otherwise.
_USUAL_CONTEXT_TOKENS = 131072
#: What a file of one's own is served at if it does not say what it was made for.
_FALLBACK_CONTEXT_TOKENS = 32768


def model_of(shelf: Catalog, wanted: str, backend: str | None, folders: Folders, environ: Mapping[str, str]) -> Model:
    """The model that a word means, its files named as far as that is known. `backend`: the one asked for, if any.

    Raises UsageError if there is no such thing.
    """
    named = catalog.with_local_files(_named(shelf, wanted, backend, folders, environ), folders.config)
    return with_hub_files(named, folders, environ)


def _named(shelf: Catalog, wanted: str, backend: str | None, folders: Folders, environ: Mapping[str, str]) -> Model:
    plain = wanted.removeprefix("--")
    if plain.lower() in shelf.names:
        # whatever else may be called the same in this folder
        return shelf.find(plain)
    path = Path(wanted).expanduser()
    if path.exists():
        # the same however it was written, links as they are: a cache's lead to names that say nothing
        path = Path(os.path.normpath(path.absolute()))
    if path.is_dir() and (os.sep in wanted or (path / CONFIG).is_file()):
        return _of_files(path.name, Variant("vllm-mlx", "folder", path=str(path)), of_folder(path))
    if wanted.lower().endswith(".gguf") or path.is_file():
        # a header newer than we know is none of ours to refuse
        found = of_gguf(path, complete=True) if path.is_file() else None
        ours: BackendName = "ollama" if backend == "ollama" else "llama-server"
        return _of_files(path.name, Variant(ours, "file", path=str(path)), found)
    if is_tag(wanted) and (backend == "ollama" or (":" in wanted and "/" not in wanted)):
        return _of_files(wanted, Variant("ollama", "tag", tag=wanted), local_tag(wanted, environ))
    if is_repo(wanted):
        return _of_repo(wanted, backend, folders, environ)
    if wanted.startswith((os.sep, ".", "~")):
        raise UsageError(f"There is no file {wanted}.", hint="--model owner/name:QUANT is one of the hub")
    if "/" in wanted:
        raise UsageError(f"There is no file {wanted}.", hint="--backend ollama, if that is a tag of Ollama's")
    # not there: the catalog says what is near
    return shelf.find(wanted)


def _of_repo(wanted: str, backend: str | None, folders: Folders, environ: Mapping[str, str]) -> Model:
    repo, _, quant = wanted.partition(":")
    # until the hub was asked, what was asked for, or what the name says
    guess = _FORMS.get(backend or "") or ("mlx" if "mlx" in repo.lower() else "gguf")
    kind = kind_of_repo(repo, folders, environ) or guess
    bare = Variant("vllm-mlx" if kind == "mlx" else "llama-server", quant or "any", default=True, repo=repo)
    model = catalog.of_variant(wanted, bare, _USUAL_CONTEXT_TOKENS)
    variant = with_hub_files(model, folders, environ).variants[0]
    here = hub.cached_files(repo, variant.files, environ)
    if not variant.files or len(here) < len(variant.files):
        return model
    found = of_folder(here[CONFIG].parent) if variant.is_folder else of_gguf(here[variant.files[0]])
    return _of_files(wanted, bare, found)


def _of_files(name: str, variant: Variant, found: Found | None) -> Model:
    """A model with what its files say of it. `found`: None if they are not here, or newer than we know."""
    native = found.shape.native_context_tokens if found else 0
    told = traits(found.template) if found else traits("")
    known = replace(
        variant,
        default=True,
        tool_parser=told.tool_parser if variant.is_folder else None,
        reasoning_parser=told.reasoning_parser if variant.is_folder else None,
        template_kwargs=told.template_kwargs if not variant.tag else {},
    )
    usual = _FALLBACK_CONTEXT_TOKENS if found else _USUAL_CONTEXT_TOKENS
    return catalog.of_variant(name, known, native or usual)
