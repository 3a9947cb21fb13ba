"""What an engine allocates for a shape: KV cache, recurrent state and compute buffers, to the byte where it is exact.

Source of llama.cpp's formulas: its llama_kv_cache, llama_kv_cache_iswa and llama_memory_recurrent, compared with the
answers of its own allocator (tests/memory/recorded_kv.json). Source of MLX's: mlx-lm's models/cache.py, compared with
the caches it really makes (tests/memory/recorded_mlx.json).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from cclocal.memory.shape import Shape
from cclocal.units import MIB

#: The memory that the device computes in: the processor's own, one shared by both, or a card's.
Memory = Literal["host", "unified", "discrete"]

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
COMPUTE_BYTES_PER_UBATCH_TOKEN = 0.21 * MIB
MASK_BYTES = 2


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """How a server is started, as far as memory goes.

    gpu_layers counts as llama.cpp's --n-gpu-layers does, the output being the last; None = all. cpu_moe_layers: the
    experts of so many layers stay in host memory. prefill_step_tokens and prefix_cache_bytes are MLX's.
    """

    context_tokens: int
    kv_type: str = "f16"
    slots: int = 1
    ubatch_tokens: int = 512
    flash_attention: bool = True
    cache_ram_bytes: int = 0
    gpu_layers: int | None = None
    cpu_moe_layers: int = 0
    prefill_step_tokens: int = 2048
    prefix_cache_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a server needs on the device that computes, by part, and what it needs in host memory besides."""

    weights_bytes: int
    kv_bytes: int
    state_bytes: int
    compute_bytes: int
    other_bytes: int = 0
    host_bytes: int = 0

    @property
    def need_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.state_bytes + self.compute_bytes + self.other_bytes


@dataclass(frozen=True, slots=True)
class Extras:
    """What is needed besides the model: a vision model's projector, and a correction measured at earlier starts."""

    projector_bytes: int = 0
    #: added to the compute buffers: an earlier start's own numbers less its plan's
    correction_bytes: int = 0


NO_EXTRAS = Extras()


def footprint(shape: Shape, config: MemoryConfig, *, memory: Memory, extras: Extras = NO_EXTRAS) -> Footprint:
    """What serving a shape needs, where `memory` says which kind the device has."""
    if shape.form == "mlx":
        return _mlx(shape, config, extras)
    caches = layer_kv_bytes(shape, config)
    states = [layer.state_bytes * config.slots for layer in shape.layers]
    compute = max(0, compute_bytes(shape, config) + extras.correction_bytes)
    if memory == "host":
        return Footprint(
            weights_bytes=shape.weights_bytes,
            kv_bytes=sum(caches),
            state_bytes=sum(states),
            compute_bytes=compute,
            other_bytes=extras.projector_bytes + config.cache_ram_bytes,
        )
    on_host, first, extra_compute = _kept_on_host(shape, config)
    other, host = extras.projector_bytes, shape.weights_bytes - shape.device_weights_bytes + on_host
    host += sum(caches[:first]) + sum(states[:first])
    if memory == "unified":
        # shared memory: the prompt cache (--cache-ram) takes space in it too
        other += config.cache_ram_bytes
    else:
        host += config.cache_ram_bytes
    return Footprint(
        weights_bytes=shape.device_weights_bytes - on_host,
        kv_bytes=sum(caches[first:]),
        state_bytes=sum(states[first:]),
        compute_bytes=compute + extra_compute,
        other_bytes=other,
        host_bytes=host,
    )


def _kept_on_host(shape: Shape, config: MemoryConfig) -> tuple[int, int, int]:
    """(weights that stay in host memory on request, the first layer on the GPU, compute for copying experts).

    Source: llama.cpp's load_tensors: the last `gpu_layers` of layers and output are on the GPU, a layer's cache is
    where the layer is. A batch computed on the GPU copies the experts it needs, one layer's at a time.
    """
    count = len(shape.layers)
    first = 0 if config.gpu_layers is None else min(count, max(0, count + 1 - config.gpu_layers))
    layers, experts = shape.layer_weights_bytes, shape.expert_weights_bytes
    kept = sum(layers[:first]) + sum(experts[first : config.cpu_moe_layers])
    if config.gpu_layers == 0:
        kept = shape.device_weights_bytes
    copied = max(experts[first : config.cpu_moe_layers], default=0)
    return kept, first, copied


def kv_bytes(shape: Shape, config: MemoryConfig) -> int:
    """The KV cache of all layers: the same number that llama.cpp prints."""
    return sum(layer_kv_bytes(shape, config))


def layer_kv_bytes(shape: Shape, config: MemoryConfig) -> list[int]:
    """The KV cache, layer by layer.

    Each slot has a cache of its own for its share of the context; sliding layers keep their window and one
    micro-batch, never more than the context.
    """
    context = _per_slot(config)
    sliding = min(context, _round_up(shape.sliding_tokens + _ubatch(config)))
    # without flash attention V is stored transposed, in rows as wide as the widest layer's
    widest = 0 if config.flash_attention else max(layer.value_elements for layer in shape.layers)
    per_element = KV_TYPES[config.kv_type] * config.slots
    cells = {"full": context, "sliding": sliding}
    return [
        int((layer.key_elements + max(layer.value_elements, widest)) * cells[layer.kind] * per_element)
        if layer.kind in cells
        else 0
        for layer in shape.layers
    ]


def _round_up(tokens: int) -> int:
    return -(-tokens // CELLS) * CELLS


def _per_slot(config: MemoryConfig) -> int:
    """The cells of one slot: llama.cpp rounds the whole context, divides it, and rounds again."""
    return _round_up(_round_up(config.context_tokens) // config.slots)


def _ubatch(config: MemoryConfig) -> int:
    """A micro-batch is never larger than the context."""
    return min(config.ubatch_tokens, _round_up(config.context_tokens))


def compute_bytes(shape: Shape, config: MemoryConfig) -> int:
    """The compute buffers; without flash attention they hold every score of a micro-batch besides."""
    context, ubatch = _per_slot(config), _ubatch(config)
    total = ubatch * (COMPUTE_BYTES_PER_UBATCH_TOKEN + MASK_BYTES * context)
    if not config.flash_attention:
        total += shape.query_heads * context * ubatch * 4
    return int(total)


def _mlx(shape: Shape, config: MemoryConfig, extras: Extras) -> Footprint:
    """What mlx-lm makes for one conversation, and the scores it materialises while it reads a prompt.

    Caches are bf16 and grow in steps of 256 tokens; sliding layers hold their window and all but one token of a
    prefill step. Stored prefixes may be held twice while one is replaced.
    """
    context = _round_up(config.context_tokens)
    step = config.prefill_step_tokens
    # a prompt no longer than one step is stored whole
    sliding = context if context <= step else min(context, shape.sliding_tokens + step - 1)
    cells = {"full": context, "sliding": sliding}
    kv = sum((layer.key_elements + layer.value_elements) * cells.get(layer.kind, 0) * 2 for layer in shape.layers)
    scores = (shape.score_heads * min(step, context) + shape.unpacked_elements) * context * 2
    return Footprint(
        weights_bytes=shape.weights_bytes,
        kv_bytes=kv * config.slots,
        state_bytes=sum(layer.state_bytes for layer in shape.layers) * config.slots,
        compute_bytes=max(0, scores + extras.correction_bytes),
        other_bytes=extras.projector_bytes + 2 * config.prefix_cache_bytes,
    )
