"""What an MLX model's files mean for memory: which layers keep what for each token, and how large the weights are.

Source: mlx-lm 0.31.3's models/*.py, whose caches were measured for every architecture in KNOWN
(tests/memory/recorded_mlx.json). A config.json comes from the hub, so every number in it is checked. The header of a
safetensors file is eight bytes of length, then JSON; source: the safetensors format description.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from cclocal.memory.gguf import BadHeaderError, CutHeaderError
from cclocal.memory.shape import MOST_LAYERS, Layer, Numbers, Shape
from cclocal.units import file_size

#: Model types whose caches were compared; any other gets the upper bound, every layer with full attention.
KNOWN = frozenset(
    """llama mistral qwen2 qwen3 qwen3_moe gemma4 gemma4_text gpt_oss glm4_moe_lite qwen3_5 qwen3_5_text qwen3_next
    nemotron_h""".split()
)
#: Head sizes for which every MLX has a fused prefill kernel; for others it materialises the scores.
#: Source: mlx/backend/metal/scaled_dot_product_attention.cpp, 0.31; newer versions fuse some more.
FUSED_HEADS = (64, 80, 128)
_GATED_DELTA = ("qwen3_5", "qwen3_5_text", "qwen3_next")
#: No real header is longer (the format's own limit); a damaged or hostile one may claim to.
LONGEST_BYTES = 100_000_000


class _Config(Numbers):
    """The numbers of a configuration."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        text = raw.get("text_config")
        super().__init__(text if isinstance(text, dict) else raw, owner="its config.json")
        self.kind = raw.get("model_type", "?")
        if not isinstance(self.kind, str) or not re.fullmatch(r"[\w.?-]{1,64}", self.kind, re.ASCII):
            raise BadHeaderError("its config.json has no plain model_type")

    def words(self, key: str) -> list[str]:
        value = self.values.get(key)
        return [str(word) for word in value[:MOST_LAYERS]] if isinstance(value, list) else []


def shape_of_config(raw: Mapping[str, Any], weights_bytes: int) -> Shape:
    """Read a shape from a config.json. Raises BadHeaderError if a needed number is missing or absurd."""
    config = _Config(raw)
    heads = config.one("num_attention_heads", 1) or 1
    size = config.one("head_dim", 0) or config.one("hidden_size", heads) // heads
    layers, window = _layers(config, heads, size)
    if not 0 < len(layers) <= MOST_LAYERS:
        raise BadHeaderError(f"its config.json claims {len(layers):,} layers")
    latent = config.kind == "glm4_moe_lite"
    widest = config.one("global_head_dim", 0) or size
    unfused = latent or (widest not in FUSED_HEADS and any(layer.kind == "full" for layer in layers))
    return Shape(
        architecture=config.kind,
        native_context_tokens=config.one("max_position_embeddings", 0),
        layers=tuple(layers),
        sliding_tokens=window,
        query_heads=heads,
        weights_bytes=weights_bytes,
        device_weights_bytes=weights_bytes,
        bound=config.kind not in KNOWN,
        form="mlx",
        # latent attention adds a mask as large as the scores, and unpacks K and V of every head
        score_heads=(2 * heads if latent else heads) if unfused else 0,
        kv_heads=config.one("num_key_value_heads", 0),
        unpacked_elements=heads * (config.one("qk_nope_head_dim") + config.one("v_head_dim")) if latent else 0,
    )


def _layers(config: _Config, heads: int, size: int) -> tuple[list[Layer], int]:
    """(the layers, their window)."""
    kv_heads = config.one("num_key_value_heads", heads)
    full = Layer("full", kv_heads * size, kv_heads * size)
    if config.kind == "nemotron_h":
        return _nemotron(config, full), 0
    count = config.one("num_hidden_layers")
    if count > MOST_LAYERS:
        raise BadHeaderError(f"its config.json claims {count:,} layers")
    if config.kind == "glm4_moe_lite":
        return [Layer("full", config.one("kv_lora_rank") + config.one("qk_rope_head_dim"), 0)] * count, 0
    if config.kind in _GATED_DELTA:
        every = config.one("full_attention_interval", 4) or 1
        state = Layer("recurrent", state_bytes=_gated_delta_bytes(config))
        return [state if (i + 1) % every else full for i in range(count)], 0
    slides, owners = _slides(config, count), count
    if config.kind.startswith("gemma4"):
        wide = config.one("global_head_dim", 0) or size
        few = config.one("num_global_key_value_heads", kv_heads) if config.values.get("attention_k_eq_v") else kv_heads
        full = Layer("full", few * wide, few * wide)
        owners = max(0, count - config.one("num_kv_shared_layers", 20))
    sliding = Layer("sliding", kv_heads * size, kv_heads * size)
    found = [sliding if slides[i] else full for i in range(owners)] + [Layer("none")] * (count - owners)
    return found, config.one("sliding_window", 0) if any(slides) else 0


def _slides(config: _Config, count: int) -> list[bool]:
    kinds = config.words("layer_types")
    if config.kind in ("gemma4", "gemma4_text", "gpt_oss", "llama", "mistral"):
        if len(kinds) >= count:
            return [kind == "sliding_attention" for kind in kinds[:count]]
        if config.kind == "gpt_oss":
            return [i % 2 == 0 for i in range(count)]
    return [False] * count


def _gated_delta_bytes(config: _Config) -> int:
    """The convolution's tail in bf16 and the memory in f32, of one layer for one conversation."""
    key_heads, value_heads = config.one("linear_num_key_heads"), config.one("linear_num_value_heads")
    key, value = config.one("linear_key_head_dim"), config.one("linear_value_head_dim")
    tail = (config.one("linear_conv_kernel_dim", 4) - 1) * (2 * key_heads * key + value_heads * value)
    return tail * 2 + value_heads * value * key * 4


def _nemotron(config: _Config, full: Layer) -> list[Layer]:
    pattern = config.values.get("hybrid_override_pattern")
    marks = list(pattern[:MOST_LAYERS]) if isinstance(pattern, str) else config.words("layers_block_type")
    heads, size = config.one("mamba_num_heads"), config.one("mamba_head_dim")
    groups, state = config.one("n_groups"), config.one("ssm_state_size")
    tail = (config.one("conv_kernel") - 1) * (heads * size + 2 * groups * state)
    mamba = Layer("recurrent", state_bytes=tail * 2 + heads * size * state * 4)
    kinds = {"M": mamba, "mamba": mamba, "*": full, "attention": full}
    return [kinds.get(mark, Layer("none")) for mark in marks]


def weights_bytes(data: bytes, file_bytes: int | None = None) -> int:
    """The bytes of all tensors of a file of which `data` is the beginning.

    Raises CutHeaderError if more of the file is needed, BadHeaderError if it cannot be right; with `file_bytes` also if
    the file ends before its last tensor.
    """
    size = int.from_bytes(data[:8], "little")
    if len(data) >= 8 and not 2 <= size <= LONGEST_BYTES:
        raise BadHeaderError(f"it claims a header of {size:,} bytes")
    if len(data) < 8 + size:
        raise CutHeaderError(f"it ends after {len(data):,} bytes, in the middle of its header")
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError):
        raise BadHeaderError("its header is not JSON") from None
    if not isinstance(header, dict):
        raise BadHeaderError("its header is not a JSON object")
    places = [_place(name, tensor) for name, tensor in header.items() if name != "__metadata__"]
    needed = 8 + size + max((end for _, end in places), default=0)
    if file_bytes is not None and file_bytes < needed:
        raise BadHeaderError(f"it is cut off: {file_size(file_bytes)} of {file_size(needed)} are there")
    return sum(max(0, end - start) for start, end in places)


def _place(name: str, tensor: Any) -> tuple[int, int]:
    at = tensor.get("data_offsets") if isinstance(tensor, dict) else None
    if not isinstance(at, list) or len(at) != 2 or not all(type(n) is int and 0 <= n < 2**63 for n in at):
        raise BadHeaderError(f"its tensor {name[:80]!a} has no valid data_offsets")
    return int(at[0]), int(at[1])
