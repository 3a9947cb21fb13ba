"""The one place that decides which model a word means: an id, flag or name of the catalog, a file, a folder, a
repository of the hub or a tag of Ollama's. Launch, plan, check, fetch, list and rm all ask here.

A model that is not in the catalog is described by its own files: context, parsers, a switch for thinking. Nothing is
asked of the network.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from cclocal.errors import UsageError
from cclocal.models import hub, tags
from cclocal.models.catalog import ANY, CONFIG, REPO, Catalog, FileForm, Model, Variant, of_variant, with_local_files
from cclocal.models.headers import ModelHeader, of_folder, of_gguf, traits
from cclocal.models.repo_files import form_of_repo, with_file_names
from cclocal.paths import Env

#: A repository of the hub's, with or without a quantisation.
_REPO_AND_QUANT = re.compile(rf"({REPO.pattern})(?::([\w.-]*))?", re.ASCII)
#: The context of most models of 2026: assumed until a model's own header says otherwise.
_USUAL_CONTEXT_TOKENS = 131072
#: The context of a file that does not say what it was trained for.
_FALLBACK_CONTEXT_TOKENS = 32768


def resolve(catalog: Catalog, word: str, backend: str | None, env: Env) -> Model:
    """The model that a word means, its files named as far as they are known. `backend`: the one asked for, if any.

    Raises UsageError if there is no such model, or if a file of it is damaged.
    """
    named = with_local_files(_named(catalog, word, backend, env), env.folders.config)
    return with_file_names(named, env)


def canonical(catalog: Catalog, word: str) -> str:
    """The same word independent of the current folder: a model's id, the absolute path of a file or folder, or itself.

    So two words are equal if they mean the same model.
    """
    if model := _in_catalog(catalog, word):
        return model.id
    path, form = _local(word)
    return str(path) if form or _is_path(word) else word


def sources(catalog: Catalog, word: str, env: Env) -> set[str]:
    """What a word may be called among the models on disk: for the catalog's its repositories, else its own source.

    Raises UsageError as `resolve` does.
    """
    if model := _in_catalog(catalog, word):
        # a tag of the catalog's belongs to Ollama, and goes by its own name only
        return {variant.repo for variant in model.variants if variant.repo}
    return {variant.source for variant in resolve(catalog, word, None, env).variants}


def _in_catalog(catalog: Catalog, word: str) -> Model | None:
    """The catalog's model of that name or flag; it comes before a file or folder of the same name."""
    plain = word.removeprefix("--").lower()
    return next((model for model in catalog.models.values() if plain in (model.id, *model.flags)), None)


def _named(catalog: Catalog, word: str, backend: str | None, env: Env) -> Model:
    if model := _in_catalog(catalog, word):
        return model
    path, form = _local(word)
    serving = catalog.rules.serving
    if form:
        variant = Variant(serving(form, backend), "folder" if form == "mlx" else "file", path=str(path), form=form)
        # a header newer than we know is the engine's to refuse
        header = of_folder(path) if form == "mlx" else of_gguf(path, complete=True)
        return _of_files(catalog, path.name, variant, header)
    if word.lower().endswith(".gguf"):
        raise UsageError(f"There is no file {path}.")
    by_tag = serving("tag", backend)
    if tags.is_tag(word, plainly=backend != by_tag):
        return _of_files(catalog, word, Variant(by_tag, "tag", tag=word, form="tag"), tags.in_store(word, env.environ))
    if repo := _REPO_AND_QUANT.fullmatch(word):
        return _of_repo(catalog, word, repo[1], repo[2] or "", backend, env)
    if _is_path(word):
        raise UsageError(f"There is no file {path}.", hint="--model owner/name:QUANT is a model of the hub")
    if "/" in word:
        raise UsageError(f"There is no file {word}.", hint="--backend ollama, if that is a tag of Ollama's")
    if not word:
        raise UsageError("Which model?", hint="cclocal --list-models")
    # unknown: raises UsageError with the nearest names of the catalog
    return catalog.find(word)


def _is_path(word: str) -> bool:
    """Whether a word can only be the path of a file."""
    return word.startswith((os.sep, ".", "~")) or word.lower().endswith(".gguf")


def _local(word: str) -> tuple[Path, FileForm | None]:
    """The absolute path a word would be, and whether it means a file ("gguf") or a folder ("mlx") there."""
    # links are not resolved: those in the hub's cache lead to files named by a hash
    path = Path(os.path.normpath(Path(word).expanduser().absolute()))
    try:
        if path.is_file():
            return path, "gguf"
        # a repository or a tag may have the name of a folder that is here
        is_meant = os.sep in word or word in (".", "..") or (path / CONFIG).is_file()
        return path, "mlx" if is_meant and path.is_dir() else None
    except OSError:
        # longer than a name can be
        return path, None


def _of_repo(catalog: Catalog, word: str, repo: str, quant: str, backend: str | None, env: Env) -> Model:
    # until the hub was asked: what the backend serves, else what the name says
    asked = catalog.rules.forms.get(backend or "", ())
    guess: FileForm = "mlx" if (asked[0] == "mlx" if asked else "mlx" in repo.lower()) else "gguf"
    form = form_of_repo(repo, env) or guess
    bare = Variant(catalog.rules.serving(form, backend), quant or ANY, repo=repo, form=form)
    unread = _of_files(catalog, word, bare, None)
    variant = with_file_names(unread, env).variants[0]
    here = hub.cached(repo, variant.files, env.environ)
    if not variant.files or len(here) < len(variant.files):
        return unread
    header = of_folder(here[CONFIG].parent) if variant.is_folder else of_gguf(here[variant.files[0]])
    return _of_files(catalog, word, bare, header)


def _of_files(catalog: Catalog, name: str, variant: Variant, header: ModelHeader | None) -> Model:
    """A model with what its files say of it. `header`: None if they are not here, or newer than we know."""
    native = header.shape.native_context_tokens if header else 0
    found = traits(header.template if header else "")
    known = replace(
        variant,
        default=True,
        tool_parser=found.tool_parser if variant.is_folder else None,
        reasoning_parser=found.reasoning_parser if variant.is_folder else None,
        template_kwargs=found.template_kwargs if not variant.tag else {},
    )
    usual = _FALLBACK_CONTEXT_TOKENS if header else _USUAL_CONTEXT_TOKENS
    return of_variant(name, known, native or usual, catalog.rules.taken)
