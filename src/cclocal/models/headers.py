"""What a model's own files say: its shape in memory, its chat template. Reads headers only, of files on this disk."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from cclocal.errors import UsageError
from cclocal.memory.gguf import BadHeaderError, Header, UnknownHeaderError, read_header
from cclocal.memory.mlx import LONGEST_BYTES, shape_of_config, weights_bytes
from cclocal.memory.projector import Projector, projector_of
from cclocal.memory.shape import Shape, shape_of
from cclocal.models.catalog import CONFIG
from cclocal.paths import read_table
from cclocal.units import file_size

#: One part of several, as gguf-split and transformers name them; no real model has more.
PART = re.compile(r"-(\d{5})-of-(\d{5})(\.gguf|\.safetensors)$")
_MOST_PARTS = 1000
#: What mlx-lm loads of a folder (mlx_lm/utils.py); other safetensors files are not for it.
MLX_WEIGHTS = "model*.safetensors"
MLX_INDEX = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tiktoken.model")
#: A mark in a template → vllm-mlx's parser for tool calls in that format. The first match counts: several formats
#: share <tool_call>. Source: vllm-mlx 0.6.0's tool_parsers, and the models' published templates.
_TOOL_MARKS = (
    ("<|tool_call>", "gemma4"),
    ("<|channel|>", "harmony"),
    ("<arg_key>", "glm47"),
    ("<function=", "qwen3_coder"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|python_tag|>", "llama"),
    ("<｜tool▁calls▁begin｜>", "deepseek_v3"),
    ("<|tool_calls_section_begin|>", "kimi"),
    ("<minimax:tool_call>", "minimax"),
    ("<TOOLCALL>", "nemotron"),
    ("<tool_call>", "hermes"),
)
#: The same for vllm-mlx's parser of thinking.
_THOUGHT_MARKS = (
    ("<|channel>", "gemma4"),
    ("<|channel|>", "harmony"),
    ("[THINK]", "mistral"),
    ("<think>", "qwen3"),
)
#: Tool parsers whose models have a reasoning parser of their own for <think>.
_OWN_THOUGHTS = {"glm47": "glm4", "deepseek_v3": "deepseek_r1"}


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """What was read of a model: its shape, its chat template if there is one, and where else than here it was read.

    config: its config.json, if it has one.
    """

    shape: Shape
    template: str = ""
    source: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)


def of_gguf(path: Path, *, complete: bool = False) -> ModelHeader | None:
    """A GGUF file on disk, with its other parts if it has any; None if its format is newer than we know.

    Raises UsageError if the file is damaged or no GGUF file, and with `complete` if part of it is missing.
    """
    try:
        files = [path.with_name(name) for name in parts(path.name)]
        if empty := [file.name for file in files if file.stat().st_size == 0]:
            raise BadHeaderError(f"{empty[0]} is empty")
        header = joined([header_of(file) for file in files])
        if not header.tensors:
            raise BadHeaderError("it holds no weights")
        there, needed = sum(file.stat().st_size for file in files), sum(t.size_bytes for t in header.tensors)
        if complete and there < needed:
            raise BadHeaderError(f"it is cut off: {file_size(there)} of at least {file_size(needed)} are there")
        return ModelHeader(shape_of(header), template_of(header))
    except UnknownHeaderError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be used: {error}.") from None


def of_projector(path: Path) -> Projector | None:
    """A vision model's projector on disk; None if its format is newer than we know.

    Raises UsageError if the file is damaged or no projector.
    """
    try:
        return projector_of(header_of(path))
    except UnknownHeaderError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be used: {error}.") from None


def template_of(header: Header) -> str:
    """The chat template in a GGUF header; empty if there is none."""
    return str(header.metadata.get("tokenizer.chat_template") or "")


def template_of_gguf(path: Path) -> str:
    """The chat template of a GGUF file; empty if there is none, or if the file's format is newer than we know."""
    try:
        return template_of(header_of(path))
    except (OSError, ValueError):
        return ""


def header_of(path: Path) -> Header:
    """The header of one GGUF file. Raises OSError, BadHeaderError."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return read_header(data)


def parts(name: str) -> list[str]:
    """The names of all parts of a file by that of one of them; the name itself if the file is whole."""
    part = PART.search(name)
    if not part or not 1 <= int(part[1]) <= int(part[2]) <= _MOST_PARTS:
        return [name]
    return [f"{name[: part.start()]}-{n:05d}-of-{part[2]}{part[3]}" for n in range(1, int(part[2]) + 1)]


def joined(headers: Sequence[Header]) -> Header:
    """The header of a file in parts: the first has the numbers, all have tensors."""
    return replace(headers[0], tensors=tuple(tensor for header in headers for tensor in header.tensors))


def of_folder(folder: Path) -> ModelHeader | None:
    """An MLX model's folder; None if its architecture is unknown to cclocal.

    Raises UsageError if the folder is not an MLX model, or if part of it is missing.
    """
    files = sorted(folder.glob(MLX_WEIGHTS))
    try:
        config = plain_config(json.loads((folder / CONFIG).read_text("utf-8")))
        if not files:
            raise BadHeaderError("it has no safetensors files")
        if missing := missing_shards({file.name for file in files}, read_table(folder / MLX_INDEX)):
            raise BadHeaderError(f"{missing[0]} is missing")
        if not any((folder / name).exists() for name in TOKENIZERS):
            raise BadHeaderError("it has no tokenizer")
        sizes = [_weights_of(file) for file in files]
    except (OSError, ValueError, RecursionError) as error:
        why = f"{CONFIG} is missing" if isinstance(error, FileNotFoundError) else str(error)
        raise UsageError(f"{folder} is not a complete MLX model: {why}.") from None
    try:
        return ModelHeader(shape_of_config(config, sum(sizes)), _template_in(folder))
    except BadHeaderError:
        return None


def _template_in(folder: Path) -> str:
    """The chat template of an MLX folder: a file of its own, else the tokenizer's; of several the one for tools."""
    try:
        return (folder / "chat_template.jinja").read_text("utf-8", "replace")
    except OSError:
        value = read_table(folder / "tokenizer_config.json").get("chat_template")
    rows = [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
    best = next((row for row in rows if row.get("name") == "tool_use"), rows[0] if rows else {})
    return value if isinstance(value, str) else str(best.get("template") or "")


def plain_config(config: Any) -> dict[str, Any]:
    """A config.json, checked. Raises BadHeaderError if it is no table."""
    if not isinstance(config, dict):
        raise BadHeaderError("its config.json is not a JSON object")
    return config


def _weights_of(file: Path) -> int:
    with file.open("rb") as data:
        head = data.read(8)
        size = int.from_bytes(head, "little")
        return weights_bytes(head + data.read(min(size, LONGEST_BYTES)), file.stat().st_size)


def missing_shards(there: Set[str], index: Mapping[str, Any]) -> list[str]:
    """Weight files that are missing, by an index or by the numbers in the names of the others."""
    named = index.get("weight_map")
    needed = {part for part in named.values() if isinstance(part, str)} if isinstance(named, dict) else set()
    for name in there:
        needed |= {*parts(name)}
    return sorted(part for part in needed - there if fnmatch(part, MLX_WEIGHTS) and "/" not in part)


@dataclass(frozen=True, slots=True)
class Traits:
    """What was read from a template. None = no parser is known for it."""

    tool_parser: str | None = None
    reasoning_parser: str | None = None
    template_kwargs: Mapping[str, bool | str | int] = field(default_factory=dict)


def is_strict(template: str) -> bool:
    """Whether a chat template refuses a system message that is not the first one (Qwen's do)."""
    return bool(re.search(r"raise_exception\(\s*['\"][^'\"]*[Ss]ystem message[^'\"]*(beginning|first)", template))


def offers_tools(template: str) -> bool:
    """Whether a chat template tells the model of tools. Engines drop them in silence where it does not."""
    return bool(re.search(r"\btools?\b|tool_calls", template))


def traits(template: str) -> Traits:
    """What a chat template (Jinja) says about its model."""
    tool = next((parser for mark, parser in _TOOL_MARKS if mark in template), None)
    thought = next((parser for mark, parser in _THOUGHT_MARKS if mark in template), None)
    if thought == "qwen3":
        thought = _OWN_THOUGHTS.get(tool or "", thought)
    # off unless the user asks for it
    kwargs = {"enable_thinking": False} if "enable_thinking" in template else {}
    return Traits(tool, thought, kwargs)
