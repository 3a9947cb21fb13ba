"""What a GGUF header means for memory: which layers keep what for each token, and which weights go where."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from cclocal.memory.gguf import BadHeaderError, Header

LayerKind = Literal["full", "sliding", "recurrent", "none"]
#: GGUF is served by llama.cpp, safetensors by MLX.
Form = Literal["gguf", "mlx"]

#: Architectures whose layers were compared with llama.cpp's own allocation; any other gets the upper bound, which is
#: every layer with full attention.
KNOWN = frozenset(
    """llama qwen2 qwen3 qwen3moe qwen3vlmoe gemma4 gpt-oss deepseek2 qwen35 qwen35moe qwen3next
    nemotron_h_moe gemma3""".split()
)
#: Layers slide unless (i mod period) is the last of the period, where the file has no pattern of its own.
#: Source: llama.cpp's src/llama-model.cpp (set_swa_pattern).
_DEFAULT_PERIOD = {"gpt-oss": 2, "gemma3": 6}
_GATED_DELTA = ("qwen3next", "qwen35", "qwen35moe")
#: No real model has more layers or weights; a damaged or hostile header may claim to.
MOST_LAYERS = 1000
_MOST_WEIGHTS_BYTES = 2**50
#: Tensors of one layer; and those of its experts, which --n-cpu-moe keeps in host memory.
#: Source: llama.cpp's llm_ffn_exps_block_regex in common/common.h.
_OF_LAYER = re.compile(r"blk\.(\d+)\.")
_OF_EXPERTS = re.compile(r"\.ffn_(up|down|gate|gate_up)_(ch|)exps")


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer keeps: the elements of K and V per token, or a state of fixed size per conversation."""

    kind: LayerKind
    key_elements: int = 0
    value_elements: int = 0
    state_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of a model that decide its memory.

    device_weights_bytes: what a GPU must hold; the token embedding stays in host memory unless it is the output too,
    per-layer embeddings always do. layer_weights_bytes and expert_weights_bytes: the same, layer by layer, where it is
    known. bound: the architecture is not known, so this is an upper bound. form: the file it came from, which decides
    who serves it and so what is allocated. score_heads: query heads whose prefill scores MLX materialises;
    unpacked_elements: what it makes of every cached token besides, while it reads a prompt. draft_layers: those of its
    head for multi-token prediction (MTP), beside `layers`; they keep something only while the head is used. kv_heads:
    of the layer with the fewest, 0 = not known; with more GPUs than that, several keep a copy of the same K and V.
    """

    architecture: str
    native_context_tokens: int
    layers: tuple[Layer, ...]
    sliding_tokens: int
    query_heads: int
    weights_bytes: int
    device_weights_bytes: int
    bound: bool = False
    layer_weights_bytes: tuple[int, ...] = ()
    expert_weights_bytes: tuple[int, ...] = ()
    form: Form = "gguf"
    score_heads: int = 0
    unpacked_elements: int = 0
    draft_layers: tuple[Layer, ...] = ()
    kv_heads: int = 0


def shape_of(header: Header) -> Shape:
    """Read a shape from a header. Raises BadHeaderError if a needed number is missing or absurd."""
    numbers = Numbers(header.metadata, f"{header.architecture}.")
    if not re.fullmatch(r"[\w.-]{1,64}", header.architecture, re.ASCII):
        raise BadHeaderError("its architecture has no plain name")
    draft_count = numbers.one("nextn_predict_layers", 0)
    count = numbers.one("block_count") - draft_count
    if not 0 < count <= MOST_LAYERS or draft_count > MOST_LAYERS:
        raise BadHeaderError(f"it claims {count:,} layers")
    layers = _layers(header, numbers, count)
    names = {tensor.name for tensor in header.tensors}
    weights = sum(tensor.size_bytes for tensor in header.tensors)
    if weights > _MOST_WEIGHTS_BYTES:
        raise BadHeaderError(f"it claims more than {_MOST_WEIGHTS_BYTES >> 40} TB of weights")
    on_host = {"per_layer_token_embd.weight"} | ({"token_embd.weight"} if "output.weight" in names else set())
    return Shape(
        architecture=header.architecture,
        native_context_tokens=numbers.one("context_length", 0),
        layers=layers,
        sliding_tokens=numbers.one("attention.sliding_window", 0),
        query_heads=max(numbers.each("attention.head_count", count)),
        weights_bytes=weights,
        device_weights_bytes=weights - sum(t.size_bytes for t in header.tensors if t.name in on_host),
        bound=header.architecture not in KNOWN,
        layer_weights_bytes=_by_layer(header, count, _OF_LAYER),
        expert_weights_bytes=_by_layer(header, count, _OF_EXPERTS),
        draft_layers=_draft_layers(header, layers, draft_count),
        kv_heads=min(filter(None, numbers.each("attention.head_count_kv", count, default=0)), default=0),
    )


def _draft_layers(header: Header, layers: tuple[Layer, ...], count: int) -> tuple[Layer, ...]:
    """The layers of a head for multi-token prediction, if the file has their weights (some converters leave them out).

    Each is one more layer of full attention. Source: llama.cpp's src/llama-model.cpp, LLAMA_CONTEXT_TYPE_MTP.
    """
    largest = max(layers, key=lambda layer: (layer.kind == "full", layer.key_elements + layer.value_elements))
    has_weights = any(".nextn." in tensor.name for tensor in header.tensors)
    return (replace(largest, kind="full", state_bytes=0),) * count if has_weights else ()


def _by_layer(header: Header, count: int, wanted: re.Pattern[str]) -> tuple[int, ...]:
    """The bytes of the tensors that match, per layer."""
    sizes = [0] * count
    for tensor in header.tensors:
        layer = _OF_LAYER.match(tensor.name)
        if layer and len(layer[1]) < 6 and int(layer[1]) < count and wanted.search(tensor.name):
            sizes[int(layer[1])] += tensor.size_bytes
    return tuple(sizes)


class Numbers:
    """The numbers of a header or of a config.json, checked to be numbers.

    prefix: what every key begins with. owner: whose they are, for messages. A null counts as missing, and of a list
    where one number is wanted the largest is taken.
    """

    def __init__(self, values: Mapping[str, Any], prefix: str = "", owner: str = "it") -> None:
        self.values, self.prefix, self.owner = values, prefix, owner

    def one(self, key: str, default: int | None = None) -> int:
        value = self.values.get(self.prefix + key)
        if isinstance(value, list):
            value = max((int(item) for item in value if isinstance(item, int)), default=None)
        return self._checked(key, default if value is None else value)

    def each(self, key: str, count: int, default: int | None = None) -> list[int]:
        """One number per layer, whether the file has one for all or a list."""
        value = self.values.get(self.prefix + key)
        if not isinstance(value, list):
            return [self.one(key, default)] * count
        if len(value) < count:
            raise BadHeaderError(f"its {key} has {len(value)} numbers for {count} layers")
        return [self._checked(key, item) for item in value[:count]]

    def _checked(self, key: str, value: Any) -> int:
        if value is None:
            raise BadHeaderError(f"{self.owner} has no {self.prefix}{key}")
        if type(value) is not int or not 0 <= value < 2**32:
            raise BadHeaderError(f"{self.owner} says {self.prefix}{key} = {value!r}")
        return value


def _layers(header: Header, numbers: Numbers, count: int) -> tuple[Layer, ...]:
    architecture = header.architecture
    heads = numbers.each("attention.head_count", count)
    kv_heads = numbers.each("attention.head_count_kv", count, default=max(heads))
    default = numbers.one("embedding_length") // max(1, *heads)
    key, value = (numbers.one(f"attention.{part}_length", default) for part in ("key", "value"))
    sliding = _sliding(header, numbers, count)
    key_swa, value_swa = (
        numbers.one(f"attention.{part}_length_swa", whole) for part, whole in (("key", key), ("value", value))
    )
    # multi-head latent attention caches one latent vector, and no V; some models an index of it besides
    if header.get("attention.key_length_mla") is not None:
        kv_heads, value = [1] * count, 0
        key += numbers.one("attention.indexer.key_length", 0)
    # the last layers of some models read the caches of earlier ones
    shared = numbers.one("attention.shared_kv_layers", 0)
    if shared >= count:
        raise BadHeaderError(f"it claims that {shared:,} of {count:,} layers share their caches")
    if architecture not in KNOWN:
        # not compared with llama.cpp: the upper bound, full attention and the largest state in every layer
        state = _any_state_bytes(numbers, max(heads))
        kept = max(kv_heads) or (0 if state else max(heads))
        return (Layer("full", kept * max(key, key_swa), kept * max(value, value_swa), state),) * count
    recurrent = _recurrent(header, numbers, kv_heads, count)
    state = _state_bytes(numbers) if any(recurrent) else 0
    owners = count - shared
    found = []
    for i in range(count):
        if recurrent[i]:
            found.append(Layer("recurrent", state_bytes=state))
        elif i >= owners or not kv_heads[i]:
            found.append(Layer("none"))
        elif sliding[i]:
            found.append(Layer("sliding", kv_heads[i] * key_swa, kv_heads[i] * value_swa))
        else:
            found.append(Layer("full", kv_heads[i] * key, kv_heads[i] * value))
    return tuple(found)


def _sliding(header: Header, numbers: Numbers, count: int) -> list[bool]:
    if not numbers.one("attention.sliding_window", 0):
        return [False] * count
    pattern = header.get("attention.sliding_window_pattern")
    if isinstance(pattern, list) and len(pattern) >= count:
        return [bool(slides) for slides in pattern[:count]]
    period = pattern if isinstance(pattern, int) else _DEFAULT_PERIOD.get(header.architecture, 1)
    return [period > 1 and i % period != period - 1 for i in range(count)]


def _recurrent(header: Header, numbers: Numbers, kv_heads: list[int], count: int) -> list[bool]:
    if header.architecture in _GATED_DELTA:
        # one layer of so many has full attention
        interval = numbers.one("full_attention_interval", 4) or 1
        return [(i + 1) % interval != 0 for i in range(count)]
    if header.architecture.startswith("nemotron_h"):
        dense = numbers.each("feed_forward_length", count)
        return [kv == 0 and width == 0 for kv, width in zip(kv_heads, dense, strict=True)]
    return [False] * count


def _state_bytes(numbers: Numbers, default: int | None = None) -> int:
    """The state of one recurrent layer for one conversation, in f32: the convolution's tail and the memory.

    Source: llama.cpp's n_embd_r() and n_embd_s() in src/llama-hparams.cpp.
    """
    inner, state, groups = (numbers.one(f"ssm.{part}", default) for part in ("inner_size", "state_size", "group_count"))
    tail = max(0, numbers.one("ssm.conv_kernel", default) - 1)
    return (tail * (inner + 2 * groups * state) + state * inner) * 4


def _any_state_bytes(numbers: Numbers, heads: int) -> int:
    """The most that a layer of any kind may keep for one conversation, in f32.

    Source: all cases of llama.cpp's n_embd_r() and n_embd_s(): RWKV, short convolutions, delta attention, linear
    attention, Mamba.
    """

    def one(key: str) -> int:
        return numbers.one(key, 0)

    width, kda, linear = one("embedding_length"), one("kda.head_dim"), one("attention.linear_head_dim")
    tail = max(0, one("ssm.conv_kernel") - 1)
    kinds = (
        width * (one("token_shift_count") + one("wkv.head_size")),
        width * max(0, one("shortconv.l_cache") - 1),
        (3 * max(tail, 3) + kda) * heads * kda,
        linear * linear * heads,
    )
    return max(max(kinds) * 4, _state_bytes(numbers, 0))


@cache
def published_shape(name: str | None, form: Form, weights_bytes: int | None = None) -> Shape | None:
    """The shape of a model by the name of its dimensions, its weights scaled to `weights_bytes` if that is known.

    None if no dimensions of that name are published. published.json is written by bench/published_shapes.py, which
    names the source of the dimensions.
    """
    row = json.loads(Path(__file__).with_name("published.json").read_text("utf-8")).get(name)
    if row is None:
        return None
    kinds = [Layer(*values) for values in row.pop("layer_kinds")]
    lists = {key: tuple(value) for key, value in row.items() if isinstance(value, list)}
    shape = Shape(**{**row, **lists, "layers": tuple(kinds[at] for at in row["layers"])})

    def scaled(size_bytes: int) -> int:
        return size_bytes * (weights_bytes or shape.weights_bytes) // shape.weights_bytes

    return replace(
        shape,
        weights_bytes=scaled(shape.weights_bytes),
        device_weights_bytes=scaled(shape.weights_bytes if form == "mlx" else shape.device_weights_bytes),
        layer_weights_bytes=tuple(map(scaled, shape.layer_weights_bytes)),
        expert_weights_bytes=tuple(map(scaled, shape.expert_weights_bytes)),
        form=form,
    )
