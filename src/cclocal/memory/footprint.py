"""What llama.cpp allocates for a shape: KV cache, recurrent state and compute buffers, to the byte where it is exact.

Source of the formulas: llama.cpp's llama_kv_cache, llama_kv_cache_iswa and llama_memory_recurrent, compared with the
answers of its own allocator (tests/unit/recorded_kv.json).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from cclocal.memory.shape import Shape

#: Bytes per cached element: a quantised type stores blocks of 32 with their scales.
KV_TYPES: Mapping[str, Fraction] = {
    "f16": Fraction(2),
    "bf16": Fraction(2),
    "q8_0": Fraction(34, 32),
    "q5_1": Fraction(24, 32),
    "q4_0": Fraction(18, 32),
}
#: llama.cpp rounds every cache up to this many cells.
CELLS = 256
#: Per token of the micro-batch with flash attention: measured 0.21 ± 0.06 MiB, and an f16 mask over the context.
COMPUTE_BYTES_PER_UBATCH_TOKEN = 0.21 * 2**20
MASK_BYTES = 2


@dataclass(frozen=True, slots=True)
class Serving:
    """How a server is started, as far as memory goes."""

    context_tokens: int
    kv_type: str = "f16"
    slots: int = 1
    ubatch_tokens: int = 512
    flash_attention: bool = True
    cache_ram_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a server needs, by part, in bytes."""

    weights_bytes: int
    kv_bytes: int
    state_bytes: int
    compute_bytes: int
    other_bytes: int = 0

    @property
    def need_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.state_bytes + self.compute_bytes + self.other_bytes


def footprint(shape: Shape, serving: Serving, *, on_gpu: bool, projector_bytes: int = 0) -> Footprint:
    """What llama.cpp needs to serve a shape; on a GPU without the weights that stay in host memory."""
    return Footprint(
        weights_bytes=shape.device_weights_bytes if on_gpu else shape.weights_bytes,
        kv_bytes=kv_bytes(shape, serving),
        state_bytes=sum(layer.state_bytes for layer in shape.layers) * serving.slots,
        compute_bytes=compute_bytes(shape, serving),
        other_bytes=projector_bytes + serving.cache_ram_bytes,
    )


def kv_bytes(shape: Shape, serving: Serving) -> int:
    """The KV cache of all layers: the same number that llama.cpp prints.

    Each slot has a cache of its own for its share of the context; sliding layers keep their window and one
    micro-batch, never more than the context.
    """
    context = _round_up(serving.context_tokens // serving.slots)
    sliding = min(context, _round_up(shape.window_tokens + serving.ubatch_tokens))
    # without flash attention V is stored transposed, in rows as wide as the widest layer's
    widest = 0 if serving.flash_attention else max(layer.value_elements for layer in shape.layers)
    elements = sum(
        (layer.key_elements + max(layer.value_elements, widest)) * (sliding if layer.kind == "sliding" else context)
        for layer in shape.layers
        if layer.kind in ("full", "sliding")
    )
    return int(elements * KV_TYPES[serving.kv_type]) * serving.slots


def _round_up(tokens: int) -> int:
    return -(-tokens // CELLS) * CELLS


def compute_bytes(shape: Shape, serving: Serving) -> int:
    """The compute buffers; without flash attention they hold every score of a micro-batch besides."""
    context = _round_up(serving.context_tokens // serving.slots)
    total = serving.ubatch_tokens * (COMPUTE_BYTES_PER_UBATCH_TOKEN + MASK_BYTES * context)
    if not serving.flash_attention:
        total += shape.query_heads * context * serving.ubatch_tokens * 4
    return int(total)
