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
from cclocal.models import hub_cache, tags
from cclocal.models.catalog import ANY, CONFIG, REPO, Catalog, FileForm, Model, Variant, of_variant, with_local_files
from cclocal.models.chat_template import traits
from cclocal.models.headers import ModelHeader, of_folder, of_gguf
from cclocal.models.repo_files import form_of_repo, with_file_names
from cclocal.paths import Env

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
    path, is_dir, is_file = _local(word)
    return str(path) if is_file or (is_dir and _means_folder(word, path)) else word


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
    plain = word.removeprefix("--")
    return catalog.find(plain) if plain.lower() in catalog.names else None


def _named(catalog: Catalog, word: str, backend: str | None, env: Env) -> Model:
    if model := _in_catalog(catalog, word):
        return model
    path, is_dir, is_file = _local(word)
    if is_dir and _means_folder(word, path):
        return _of_files(catalog, path.name, _variant(catalog, "mlx", backend, "folder", str(path)), of_folder(path))
    if word.lower().endswith(".gguf") or is_file:
        if not is_file:
            raise UsageError(f"There is no file {path}.")
        # a header newer than we know is the engine's to refuse
        variant = _variant(catalog, "gguf", backend, "file", str(path))
        return _of_files(catalog, path.name, variant, of_gguf(path, complete=True))
    by_tag = catalog.rules.serving("tag", backend)
    if by_tag and tags.is_tag(word) and (backend == by_tag or _is_plainly_a_tag(word)):
        return _of_files(catalog, word, Variant(by_tag, "tag", tag=word, form="tag"), tags.in_store(word, env.environ))
    if _is_repo(word):
        return _of_repo(catalog, word, backend, env)
    if word.startswith((os.sep, ".", "~")):
        raise UsageError(f"There is no file {path}.", hint="--model owner/name:QUANT is a model of the hub")
    if "/" in word:
        raise UsageError(f"There is no file {word}.", hint="--backend ollama, if that is a tag of Ollama's")
    if not word:
        raise UsageError("Which model?", hint="cclocal --list-models")
    # unknown: raises UsageError with the nearest names of the catalog
    return catalog.find(word)


def _means_folder(word: str, path: Path) -> bool:
    """Whether a word that is a folder's path means that folder, not a repository or a tag of the same name."""
    return os.sep in word or word in (".", "..") or (path / CONFIG).is_file()


def _local(word: str) -> tuple[Path, bool, bool]:
    """(the absolute path a word would be, whether that is a folder, whether it is a file)."""
    path = Path(os.path.normpath(Path(word).expanduser().absolute()))
    try:
        # links are not resolved: those in the hub's cache lead to files named by a hash
        return path, path.is_dir(), path.is_file()
    except OSError:
        # longer than a name can be
        return path, False, False


def _variant(catalog: Catalog, form: FileForm, backend: str | None, quant: str, path: str) -> Variant:
    able = catalog.rules.serving(form, backend)
    if able is None:
        raise UsageError(f"No backend here serves {path}.")
    return Variant(able, quant, path=path, form=form)


def _is_plainly_a_tag(word: str) -> bool:
    """Whether a word can mean nothing but a tag: model:tag, or host/namespace/model."""
    host, _, rest = word.partition("/")
    return ":" in word if not rest else "/" in rest and bool(re.search(r"\w[.:]\w", host))


def _is_repo(word: str) -> bool:
    """Whether a word is a repository of the hub's, `owner/name` or `owner/name:QUANT`."""
    repo, _, quant = word.partition(":")
    return bool(REPO.fullmatch(repo)) and bool(re.fullmatch(r"[\w.-]*", quant, re.ASCII))


def _of_repo(catalog: Catalog, word: str, backend: str | None, env: Env) -> Model:
    repo, _, quant = word.partition(":")
    # until the hub was asked: what the backend serves, else what the name says
    asked = catalog.rules.forms.get(backend or "", ())
    guess: FileForm = "mlx" if (asked[0] == "mlx" if asked else "mlx" in repo.lower()) else "gguf"
    form = form_of_repo(repo, env) or guess
    able = catalog.rules.serving(form, backend) or backend or ""
    bare = Variant(able, quant or ANY, default=True, repo=repo, form=form)
    model = of_variant(word, bare, _USUAL_CONTEXT_TOKENS, catalog.rules.taken)
    variant = with_file_names(model, env).variants[0]
    here = hub_cache.files(repo, variant.files, env.environ)
    if not variant.files or len(here) < len(variant.files):
        return model
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
