"""Chooses the files of a hub repository, from the hub's file list and from its cache on disk."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from cclocal.errors import HubError, UsageError
from cclocal.models import hub, hub_cache
from cclocal.models.catalog import ANY, CONFIG, FileForm, Model, Variant
from cclocal.models.headers import MLX_INDEX, MLX_WEIGHTS, PART, TOKENIZERS, missing_shards, parts
from cclocal.paths import Env, read_rows, read_table, write_private

#: Which file of a repository is meant if no quantisation is named: the first of these there is.
_PREFERRED = ("Q4_K_M", "UD-Q4_K_XL", "MXFP4", "Q4_K_S", "Q4_0", "Q8_0")
#: The files that mlx-lm reads of a repository.
_MLX_FILES = ("*.json", MLX_WEIGHTS, "tokenizer.model", "*.tiktoken", "tiktoken.model", "*.txt", "*.jsonl", "*.jinja")


def ask_hub(repo: str, env: Env) -> None:
    """Ask the hub which files a repository has, and keep the answer. Raises HubError and its like."""
    known = _listings(env)
    known[repo] = hub.list_files(repo)
    write_private(env.folders.cache / "listings.json", json.dumps(known))


def _listings(env: Env) -> dict[str, dict[str, int]]:
    return read_rows(env.folders.cache / "listings.json")


def listed_bytes(repo: str, file: str, env: Env) -> int:
    """A file's size in bytes by the hub's file list; 0 if there is no list."""
    return int(_listings(env).get(repo, {}).get(file) or 0)


def form_of_repo(repo: str, env: Env) -> FileForm | None:
    """Whether a repository holds GGUF files or an MLX model, by what is known of its files; None if nothing is."""
    for sizes in (_listings(env).get(repo, {}), hub_cache.names(repo, env.environ)):
        if any(file.endswith(".gguf") for file in sizes):
            return "gguf"
        if mlx_files(sizes):
            return "mlx"
    return None


def mlx_files(sizes: Mapping[str, int]) -> tuple[str, ...]:
    """What mlx-lm reads of a repository's files, programs left out; none if it is no MLX model."""
    found = [file for file in sorted(sizes) if "/" not in file and any(fnmatch(file, one) for one in _MLX_FILES)]
    is_model = CONFIG in found and any(fnmatch(file, MLX_WEIGHTS) for file in found)
    return (CONFIG, *(file for file in found if file != CONFIG)) if is_model else ()


def with_file_names(model: Model, env: Env) -> Model:
    """The model with the files of its repositories named, as far as an earlier answer or the cache knows them."""
    if all(variant.files or not variant.repo for variant in model.variants):
        return model
    listings = _listings(env)

    def named(variant: Variant) -> Variant:
        if variant.files or not variant.repo:
            return variant
        # the hub's list may be old and the cache incomplete
        here = hub_cache.names(variant.repo, env.environ)
        for sizes in (listings.get(variant.repo, {}), here):
            files = _mlx_files_of(variant.repo, sizes, env) if variant.is_folder else _files_of(variant, sizes)
            if files:
                size = sum(sizes.get(file) or 0 for file in files)
                projector = _projector_of(variant, sizes)
                return replace(variant, files=files, mmproj=projector, size_bytes=variant.size_bytes or size or None)
        return variant

    return replace(model, variants=tuple(named(variant) for variant in model.variants))


def _mlx_files_of(repo: str, sizes: Mapping[str, int], env: Env) -> tuple[str, ...]:
    """The files of an MLX model, and the files that its index names but `sizes` does not list."""
    files = mlx_files(sizes)
    if not files or not any(name in files for name in TOKENIZERS):
        # incomplete: the hub has to be asked
        return ()
    index = hub_cache.files(repo, (MLX_INDEX,), env.environ).get(MLX_INDEX)
    return (*files, *missing_shards(set(files), read_table(index) if index else {}))


def _files_of(variant: Variant, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The file of a variant's quantisation, with its other parts; none if it is not among these."""
    try:
        first = _choose(variant, _ggufs(sizes))
    except UsageError:
        return ()
    return tuple(str(part) for part in parts(Path(first)))


def _projector_of(variant: Variant, sizes: Mapping[str, int]) -> str | None:
    """The name of the projector, of which the catalog may know only the pattern."""
    if not variant.mmproj or "*" not in variant.mmproj:
        return variant.mmproj
    return next((file for file in sorted(sizes) if fnmatch(file.lower(), variant.mmproj.lower())), variant.mmproj)


def _ggufs(sizes: Mapping[str, int]) -> list[str]:
    """The models among a repository's files, without projectors and without names that lead out of it."""
    return [
        file
        for file in sizes
        if file.endswith(".gguf")
        and "mmproj" not in file.lower()
        and not Path(file).is_absolute()
        and ".." not in Path(file).parts
    ]


def refuse_unnamed(variant: Variant, env: Env) -> None:
    """Raises UsageError or HubError: the hub was asked and has no such file; the message names those it has."""
    if variant.is_folder:
        raise HubError(f"{variant.repo} is not an MLX model: config.json or model*.safetensors is missing.")
    _choose(variant, _ggufs(_listings(env).get(variant.repo or "", {})))
    raise HubError(f"{variant.repo} has no GGUF file.")


def _choose(variant: Variant, files: list[str]) -> str:
    repo, quant = variant.repo or "", "" if variant.quant == ANY else variant.quant
    if not files:
        raise UsageError(f"{repo} has no GGUF file.")
    firsts = sorted(file for file in files if not (part := PART.search(file)) or part[1] == "00001")
    for name in (quant,) if quant else _PREFERRED:
        # whole words: F16 is not BF16
        word = re.compile(rf"(?:^|[-._/]){re.escape(name)}(?:[-._/]|$)", re.IGNORECASE)
        if found := [file for file in firsts if word.search(file)]:
            return min(found, key=len)
    if quant or len(firsts) != 1:
        some = ", ".join(Path(file).name for file in firsts[:8])
        raise UsageError(f"{repo} has {'no ' + quant if quant else 'several models'}: {some}.", hint=f"{repo}:QUANT")
    return firsts[0]
