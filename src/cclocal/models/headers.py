"""What anything that can be named needs in memory, from its headers alone: a GGUF file, an MLX folder, a repository of
the hub, an Ollama tag. Nothing is downloaded but those headers.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from cclocal.errors import HubError, UsageError
from cclocal.memory.config import shape_of_config
from cclocal.memory.gguf import BadHeaderError, Header, UnknownHeaderError, read_header
from cclocal.memory.safetensors import LONGEST_BYTES, weights_bytes
from cclocal.memory.shape import Shape, shape_of
from cclocal.models import hub
from cclocal.models.catalog import CONFIG, REPO, Model, Variant
from cclocal.paths import Folders, is_loopback, ollama_store, read_table, write_private

#: One part of several: gguf-split's own naming.
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
#: Which file of a repository is meant if no quantisation is named: the first of these there is.
_PREFERRED = ("Q4_K_M", "UD-Q4_K_XL", "MXFP4", "Q4_K_S", "Q4_0", "Q8_0")
#: What mlx-lm loads of a folder (mlx_lm/utils.py); other safetensors files are not for it.
_MLX_WEIGHTS = "model*.safetensors"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tiktoken.model")
#: One weight file of several, as transformers names them; no real model has more.
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.safetensors$")
_MOST_SHARDS = 1000
_MLX_INDEX = "model.safetensors.index.json"
_MLX_FILES = ("*.json", _MLX_WEIGHTS, "tokenizer.model", "*.tiktoken", "tiktoken.model", "*.txt", "*.jsonl", "*.jinja")
_REGISTRY = "registry.ollama.ai"
_OLLAMA_MODEL = "application/vnd.ollama.image.model"
#: [host/][namespace/]model[:tag]
_TAG = re.compile(r"(?:(?:([\w.-]+(?::\d+)?)/)?([\w-]+)/)?([A-Za-z0-9][\w.-]*)(?::([\w.-]+))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Found:
    """What was named: its shape, and what of it llama-fit-params can be asked about."""

    name: str
    shape: Shape
    source: str
    path: Path | None = None
    #: the chat template, where the files have one
    template: str = ""
    header: bytes = b""
    file_bytes: int = 0


def of_gguf(path: Path, *, complete: bool = False) -> Found | None:
    """A GGUF file on disk, with its other parts if it has any; None if it is newer than we know.

    Raises UsageError if the file is damaged or no GGUF file, and with `complete` if part of it is missing.
    """
    try:
        parts = _parts(path)
        header = whole([_header_of(part) for part in parts])
        if not header.tensors:
            raise BadHeaderError("it holds no weights")
        there, needed = sum(part.stat().st_size for part in parts), sum(t.size_bytes for t in header.tensors)
        if complete and there < needed:
            raise BadHeaderError(f"only {there / 1e9:.1f} of at least {needed / 1e9:.1f} GB are there")
        template = str(header.metadata.get("tokenizer.chat_template") or "")
        return Found(path.name, shape_of(header), "the file's own header", path, template)
    except UnknownHeaderError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be used: {error}.") from None


def _header_of(path: Path) -> Header:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return read_header(data)


def _parts(path: Path) -> list[Path]:
    part = _PART.search(path.name)
    if not part or not 1 <= int(part[1]) <= int(part[2]):
        return [path]
    names = [path.name[: part.start()] + f"-{n:05d}-of-{part[2]}.gguf" for n in range(1, int(part[2]) + 1)]
    return [path.with_name(name) for name in names]


def whole(parts: Sequence[Header]) -> Header:
    """The header of a file in parts: the first has the numbers, all have tensors."""
    return replace(parts[0], tensors=tuple(tensor for part in parts for tensor in part.tensors))


def of_folder(folder: Path) -> Found | None:
    """An MLX model's folder; None if its architecture is newer than we know.

    Raises UsageError if it is none, or if part of it is missing.
    """
    files = sorted(folder.glob(_MLX_WEIGHTS))
    try:
        config = _plain_config(json.loads((folder / CONFIG).read_text("utf-8")))
        if not files:
            raise BadHeaderError("it has no safetensors files")
        if missing := _missing_shards({file.name for file in files}, read_table(folder / _MLX_INDEX)):
            raise BadHeaderError(f"{missing[0]} is missing")
        if not any((folder / name).exists() for name in _TOKENIZERS):
            raise BadHeaderError("it has no tokenizer")
        sizes = [_weights_of(file) for file in files]
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{folder} is no whole MLX model: {error}.") from None
    try:
        shape = shape_of_config(config, sum(sizes))
    except BadHeaderError:
        return None
    return Found(folder.name, shape, "config.json and the safetensors headers", folder, _template_in(folder))


def _template_in(folder: Path) -> str:
    """The chat template of an MLX folder: a file of its own, else the tokenizer's; of several the one for tools."""
    try:
        return (folder / "chat_template.jinja").read_text("utf-8", "replace")
    except OSError:
        told = read_table(folder / "tokenizer_config.json").get("chat_template")
    rows = [row for row in told if isinstance(row, dict)] if isinstance(told, list) else []
    best = next((row for row in rows if row.get("name") == "tool_use"), rows[0] if rows else {})
    return told if isinstance(told, str) else str(best.get("template") or "")


def _plain_config(config: Any) -> dict[str, Any]:
    """A config.json that is a table and names no program. Raises BadHeaderError, UsageError for a program."""
    if not isinstance(config, dict):
        raise BadHeaderError("its config.json is no table")
    if "model_file" in config:
        # mlx-lm 0.31.3 still runs it, whatever is said of trusting remote code
        raise UsageError(
            "This model brings a program along that would be run (config.json: model_file), so it is refused."
        )
    return config


def _weights_of(file: Path) -> int:
    with file.open("rb") as data:
        head = data.read(8)
        size = int.from_bytes(head, "little")
        return weights_bytes(head + data.read(min(size, LONGEST_BYTES)), file.stat().st_size)


def _missing_shards(there: Set[str], index: Mapping[str, Any]) -> list[str]:
    """The weight files that an index or the numbers in the names of others tell of, and that are not there."""
    named = index.get("weight_map")
    wanted = {part for part in named.values() if isinstance(part, str)} if isinstance(named, dict) else set()
    for name in there:
        if part := _SHARD.search(name):
            stem, count = name[: part.start()], min(int(part[2]), _MOST_SHARDS)
            wanted |= {f"{stem}-{n:05d}-of-{part[2]}.safetensors" for n in range(1, count + 1)}
    return sorted(part for part in wanted - there if fnmatch(part, _MLX_WEIGHTS) and "/" not in part)


def of_repo(name: str) -> Found:
    """A repository of the hub, `owner/name` or `owner/name:QUANT`, MLX or GGUF. Raises HubError and its like."""
    repo, _, quant = name.partition(":")
    sizes = hub.list_files(repo)
    if ggufs := _ggufs(sizes):
        file = _choose(repo, ggufs, quant)
        parts = [str(part) for part in _parts(Path(file))]
        peeked = [hub.peek(repo, part, read_header) for part in parts]
        shape = shape_of(whole([part.value for part in peeked]))
        one = peeked[0] if len(peeked) == 1 else None
        return Found(
            f"{repo}, {Path(file).name}",
            shape,
            "the header on the hub",
            header=one.data if one else b"",
            file_bytes=one.size_bytes if one else 0,
        )
    if not mlx_files(sizes):
        raise HubError(f"{repo} holds neither GGUF nor safetensors files.")
    return Found(repo, of_mlx_repo(repo, sizes), "config.json and the file sizes on the hub")


def of_mlx_repo(repo: str, sizes: Mapping[str, int]) -> Shape:
    """The shape of an MLX model on the hub. Raises HubError and its like, BadHeaderError."""
    config = _plain_config(hub.peek(repo, CONFIG, json.loads).value)
    weights = sum(size for file, size in sizes.items() if fnmatch(file, _MLX_WEIGHTS) and "/" not in file)
    return shape_of_config(config, weights)


def mlx_files(sizes: Mapping[str, int]) -> tuple[str, ...]:
    """What mlx-lm reads of a repository's files, programs left out; none if it is no MLX model."""
    found = [file for file in sorted(sizes) if "/" not in file and any(fnmatch(file, one) for one in _MLX_FILES)]
    whole = CONFIG in found and any(fnmatch(file, _MLX_WEIGHTS) for file in found)
    return (CONFIG, *(file for file in found if file != CONFIG)) if whole else ()


# -- which file of a repository is meant --------------------------------------------------------------------------


def remember_files(repo: str, folders: Folders) -> None:
    """Ask the hub which files a repository has, and keep the answer. Raises HubError and its like."""
    known = _listings(folders)
    known[repo] = hub.list_files(repo)
    write_private(folders.cache / "listings.json", json.dumps(known))


def _listings(folders: Folders) -> dict[str, dict[str, int]]:
    return read_table(folders.cache / "listings.json")


def listed_bytes(repo: str, file: str, folders: Folders) -> int:
    """How large the hub said a file is; 0 if it was not asked."""
    return int(_listings(folders).get(repo, {}).get(file) or 0)


def kind_of_repo(repo: str, folders: Folders, environ: Mapping[str, str]) -> str | None:
    """Whether a repository is "gguf" or "mlx", by what is known of its files; None if nothing is."""
    for sizes in (_listings(folders).get(repo, {}), hub.cached_names(repo, environ)):
        if any(file.endswith(".gguf") for file in sizes):
            return "gguf"
        if mlx_files(sizes):
            return "mlx"
    return None


def with_hub_files(model: Model, folders: Folders, environ: Mapping[str, str]) -> Model:
    """The model with the files of its repositories named, as far as the cache or an earlier answer tell."""
    if all(variant.files or not variant.repo for variant in model.variants):
        return model
    listings = _listings(folders)

    def named(variant: Variant) -> Variant:
        if variant.files or not variant.repo:
            return variant
        # what the hub said, else what is here; neither need be all there is
        here = hub.cached_names(variant.repo, environ)
        for sizes in (listings.get(variant.repo, {}), here):
            files = _mlx_files_of(variant.repo, sizes, environ) if variant.is_folder else _files_of(variant, sizes)
            if files:
                size = sum(sizes.get(file) or 0 for file in files)
                projector = _projector_of(variant, sizes)
                return replace(variant, files=files, mmproj=projector, size_bytes=variant.size_bytes or size or None)
        return variant

    return replace(model, variants=tuple(named(variant) for variant in model.variants))


def _mlx_files_of(repo: str, sizes: Mapping[str, int], environ: Mapping[str, str]) -> tuple[str, ...]:
    """The files of an MLX model, with those that its index names although they are not among these."""
    files = mlx_files(sizes)
    if not files or not any(name in files for name in _TOKENIZERS):
        # part of it at most: the hub has to be asked
        return ()
    index = hub.cached_files(repo, (_MLX_INDEX,), environ).get(_MLX_INDEX)
    return (*files, *_missing_shards(set(files), read_table(index) if index else {}))


def _files_of(variant: Variant, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The file of a variant's quantisation, with its other parts; none if it is not among these."""
    ggufs = _ggufs(sizes)
    try:
        first = _choose(variant.repo or "", ggufs, "" if variant.quant == "any" else variant.quant)
    except UsageError:
        return ()
    return tuple(str(part) for part in _parts(Path(first)))


def _projector_of(variant: Variant, sizes: Mapping[str, int]) -> str | None:
    """The projector's name, of which the catalog may know only the pattern."""
    if not variant.mmproj or "*" not in variant.mmproj:
        return variant.mmproj
    return next((file for file in sorted(sizes) if fnmatch(file.lower(), variant.mmproj.lower())), variant.mmproj)


def _ggufs(sizes: Mapping[str, int]) -> list[str]:
    """The models among a repository's files; a name that leads out of it is none."""
    return [
        file
        for file in sizes
        if file.endswith(".gguf")
        and "mmproj" not in file.lower()
        and not Path(file).is_absolute()
        and ".." not in Path(file).parts
    ]


def refuse_unnamed(variant: Variant, folders: Folders) -> None:
    """Raises UsageError: the hub was asked, and has no such file; it names those it has."""
    sizes = _listings(folders).get(variant.repo or "", {})
    if variant.is_folder:
        raise HubError(f"{variant.repo} is no MLX model: it lacks config.json or model*.safetensors.")
    _choose(variant.repo or "", _ggufs(sizes), "" if variant.quant == "any" else variant.quant)
    raise HubError(f"{variant.repo} has no GGUF file.")


def _choose(repo: str, files: list[str], quant: str) -> str:
    if not files:
        raise UsageError(f"{repo} has no GGUF file.")
    firsts = sorted(file for file in files if not (part := _PART.search(file)) or part[1] == "00001")
    for wanted in (quant,) if quant else _PREFERRED:
        # whole words: F16 is not BF16
        word = re.compile(rf"(?:^|[-._/]){re.escape(wanted)}(?:[-._/]|$)", re.IGNORECASE)
        found = [file for file in firsts if word.search(file)]
        if found:
            return min(found, key=len)
    if quant or len(firsts) != 1:
        some = ", ".join(Path(file).name for file in firsts[:8])
        raise UsageError(f"{repo} has {'no ' + quant if quant else 'several models'}: {some}.", hint=f"{repo}:QUANT")
    return firsts[0]


# -- Ollama -----------------------------------------------------------------------------------------------------


def is_tag(name: str) -> bool:
    """Whether a name could be one of Ollama's."""
    return bool(_TAG.fullmatch(name))


def _parts_of_tag(tag: str) -> tuple[str, str, str, str]:
    """(host, namespace, model, version). Raises UsageError."""
    match = _TAG.fullmatch(tag)
    if not match:
        raise UsageError(f"“{tag}” is no model's name.")
    return match[1] or _REGISTRY, match[2] or "library", match[3], match[4] or "latest"


def local_tag(tag: str, environ: Mapping[str, str]) -> Found | None:
    """An Ollama model that is in this user's store; None if it is not, or newer than we know."""
    store = ollama_store(environ)
    local = store.joinpath("manifests", *_parts_of_tag(tag))
    if not local.is_file():
        return None
    digest, _ = _model_layer(tag, read_table(local))
    found = of_gguf(store / "blobs" / digest.replace(":", "-"))
    return replace(found, name=tag, source="Ollama's own copy") if found else None


def of_tag(tag: str, environ: Mapping[str, str]) -> Found:
    """An Ollama model, pulled or not: its manifest says which blob the model is, the blob's header the rest.

    Raises HubError if the registry does not have it or is not reached.
    """
    host, space, model, version = _parts_of_tag(tag)
    if found := local_tag(tag, environ):
        return found
    # a registry of one's own on this machine has no certificate
    base = f"http{'' if is_loopback(f'http://{host}') else 's'}://{host}/v2/{space}/{model}"
    with hub.web(tag) as client:
        reply = client.get(f"{base}/manifests/{version}")
        if reply.status_code == 404:
            raise HubError(f"Ollama's registry has no model {tag}.", hint="https://ollama.com/search")
        reply.raise_for_status()
        digest, size = _model_layer(tag, reply.json())
        peeked = hub.peek_url(client, f"{base}/blobs/{digest}", read_header)
    shape = shape_of(peeked.value)
    return Found(tag, shape, "Ollama's registry", header=peeked.data, file_bytes=peeked.size_bytes or size)


def _model_layer(tag: str, manifest: Any) -> tuple[str, int]:
    """(digest, size) of the model among the layers of a manifest."""
    layers = manifest.get("layers") if isinstance(manifest, dict) else None
    for layer in layers if isinstance(layers, list) else ():
        if isinstance(layer, dict) and layer.get("mediaType") == _OLLAMA_MODEL:
            digest, size = str(layer.get("digest")), layer.get("size")
            if re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
                return digest, size if isinstance(size, int) else 0
    raise HubError(f"The manifest of {tag} names no model.")


def is_repo(name: str) -> bool:
    """Whether a name is one of the hub's, `owner/name` or `owner/name:QUANT`."""
    repo, _, quant = name.partition(":")
    return bool(REPO.fullmatch(repo)) and bool(re.fullmatch(r"[\w.-]*", quant, re.ASCII))


def find(name: str, environ: Mapping[str, str]) -> Found:
    """Whatever is meant by a name that is not in the catalog. Raises UsageError or HubError."""
    path = Path(name).expanduser()
    if not name:
        raise UsageError("Which model?")
    try:
        if path.is_dir():
            if found := of_folder(path):
                return found
            raise UsageError(f"{name} uses something newer than this version of cclocal knows.")
        if path.is_file():
            if found := of_gguf(path, complete=True):
                return found
            raise UsageError(f"{name} uses something newer than this version of cclocal knows.")
        if name.lower().endswith(".gguf") or name.startswith((".", "/", "~")):
            raise UsageError(f"There is no file {name}.")
        if is_repo(name):
            return of_repo(name)
        return of_tag(name, environ)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} cannot be used: {error}.") from None
