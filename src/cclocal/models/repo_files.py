"""What is known of a model that is not on this disk: the files of its repository, and its header.

Files are chosen from the hub's file list and from its cache on disk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from cclocal.errors import HubError, UsageError
from cclocal.memory.gguf import BadHeaderError, read_header
from cclocal.memory.mlx import shape_of_config
from cclocal.memory.projector import Projector, projector_of
from cclocal.memory.shape import shape_of
from cclocal.models import headers, hub, tags
from cclocal.models.catalog import ANY, CONFIG, FileForm, Model, Variant
from cclocal.models.headers import MLX_WEIGHTS, ModelHeader
from cclocal.paths import Env, read_rows, read_table, write_private

#: Which file of a repository is meant if no quantisation is named: the first of these there is.
_PREFERRED = ("Q4_K_M", "UD-Q4_K_XL", "MXFP4", "Q4_K_S", "Q4_0", "Q8_0")
#: The files that mlx-lm reads of a repository.
_MLX_FILES = ("*.json", MLX_WEIGHTS, "tokenizer.model", "*.tiktoken", "tiktoken.model", "*.txt", "*.jsonl", "*.jinja")


def ask_hub(repo: str, env: Env) -> None:
    """Ask the hub which files a repository has, and keep the answer. Raises HubError and its like."""
    known = _listings(env)
    with hub.in_words(repo):
        known[repo] = hub.file_sizes(repo)
    write_private(env.folders.cache / "listings.json", json.dumps(known))


def _listings(env: Env) -> dict[str, dict[str, int]]:
    return read_rows(env.folders.cache / "listings.json")


def listed_bytes(repo: str, file: str, env: Env) -> int:
    """A file's size in bytes by the hub's file list; 0 if there is no list."""
    return int(_listings(env).get(repo, {}).get(file) or 0)


def _known_sizes(repo: str, env: Env) -> Iterator[Mapping[str, int]]:
    """The files of a repository: by the hub's list, which may be old, and by the cache, which may be incomplete."""
    yield _listings(env).get(repo, {})
    yield hub.cached_sizes(repo, env.environ)


def form_of_repo(repo: str, env: Env) -> FileForm | None:
    """Whether a repository holds GGUF files or an MLX model, by what is known of its files; None if nothing is."""
    for sizes in _known_sizes(repo, env):
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

    def named(variant: Variant) -> Variant:
        repo = variant.repo
        if not repo:
            return variant
        variant = replace(variant, mmproj=_projector_of(variant, env)) if variant.mmproj else variant
        for sizes in () if variant.files else _known_sizes(repo, env):
            files = _mlx_files_of(repo, sizes, env) if variant.is_folder else _files_of(variant, sizes)
            if files:
                size = sum(sizes.get(file) or 0 for file in files)
                return replace(variant, files=files, size_bytes=variant.size_bytes or size or None)
        return variant

    return replace(model, variants=tuple(named(variant) for variant in model.variants))


def _projector_of(variant: Variant, env: Env) -> str | None:
    """The projector's file; None if the hub's list has none.

    The catalog may know only the pattern of its name, or a name that the repository no longer has.
    """
    wanted, repo = (variant.mmproj or "").lower(), variant.repo or ""
    listed = sorted(_listings(env).get(repo, {}))
    for file in (*listed, *sorted(hub.cached_sizes(repo, env.environ))):
        if fnmatch(file.lower(), wanted):
            return file
    if not listed:
        return variant.mmproj
    others = [file for file in listed if file.endswith(".gguf") and "mmproj" in file.lower()]
    # F16, not BF16, which some GPUs compute slowly
    halves = [file for file in others if re.search(r"(?:^|[-._/])f16\b", file, re.IGNORECASE)]
    return next(iter((*halves, *others)), None)


def _mlx_files_of(repo: str, sizes: Mapping[str, int], env: Env) -> tuple[str, ...]:
    """The files of an MLX model, and the files that its index names but `sizes` does not list."""
    files = mlx_files(sizes)
    if not files or not any(name in files for name in headers.TOKENIZERS):
        # incomplete: the hub has to be asked
        return ()
    index = hub.cached(repo, (headers.MLX_INDEX,), env.environ).get(headers.MLX_INDEX)
    return (*files, *headers.missing_shards(set(files), read_table(index) if index else {}))


def _files_of(variant: Variant, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The file of a variant's quantisation, with its other parts; none if it is not among these."""
    firsts, is_any = _first_parts(sizes), variant.quant == ANY
    for name in _PREFERRED if is_any else (variant.quant,):
        # whole words: F16 is not BF16
        word = re.compile(rf"(?:^|[-._/]){re.escape(name)}(?:[-._/]|$)", re.IGNORECASE)
        if found := [file for file in firsts if word.search(file)]:
            return tuple(headers.parts(min(found, key=len)))
    return tuple(headers.parts(firsts[0])) if is_any and len(firsts) == 1 else ()


def _first_parts(sizes: Mapping[str, int]) -> list[str]:
    """The models among a repository's files, without projectors and without names that lead out of it."""
    return sorted(
        file
        for file in sizes
        if file.endswith(".gguf")
        and "mmproj" not in file.lower()
        and not Path(file).is_absolute()
        and ".." not in Path(file).parts
        and (not (part := headers.PART.search(file)) or part[1] == "00001")
    )


def refuse_unnamed(variant: Variant, env: Env) -> None:
    """Raises UsageError or HubError: the hub was asked and has no such file; the message names those it has."""
    repo = variant.repo or ""
    if variant.is_folder:
        raise HubError(f"{repo} is not an MLX model: config.json or model*.safetensors is missing.")
    firsts = _first_parts(_listings(env).get(repo, {}))
    if not firsts:
        raise UsageError(f"{repo} has no GGUF file.")
    what = "several models" if variant.quant == ANY else f"no {variant.quant}"
    some = ", ".join(Path(file).name for file in firsts[:8])
    raise UsageError(f"{repo} has {what}: {some}.", hint=f"{repo}:QUANT")


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadHeaderError(f"its {CONFIG} is not JSON: {error}") from None


def peek(variant: Variant, env: Env) -> ModelHeader:
    """The header of a variant whose files are named, from the hub or from Ollama's registry.

    Raises HubError and its like, UsageError for a model that must not be used, BadHeaderError.
    """
    repo = variant.repo or ""
    if variant.tag:
        return tags.peek(variant.tag)
    if variant.is_folder:
        config = headers.plain_config(hub.peek(repo, CONFIG, _json, variant.revision))
        weights = sum(listed_bytes(repo, file, env) for file in variant.files if fnmatch(file, MLX_WEIGHTS))
        source = "config.json and the file sizes on the hub"
        return ModelHeader(shape_of_config(config, weights), source=source, config=config)
    header = headers.joined([hub.peek(repo, file, read_header, variant.revision) for file in variant.files])
    return ModelHeader(shape_of(header), headers.template_of(header), source="the header on the hub")


def peek_projector(variant: Variant) -> Projector:
    """The projector of a variant, from its header on the hub. Raises HubError and its like, BadHeaderError."""
    return projector_of(hub.peek(variant.repo or "", variant.mmproj or "", read_header, variant.revision))
