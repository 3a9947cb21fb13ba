"""What an engine allocates for a shape: KV cache, recurrent state and compute buffers, to the byte where it is exact.

Source of llama.cpp's formulas: its llama_kv_cache, llama_kv_cache_iswa and llama_memory_recurrent, compared with the
answers of its own allocator (tests/memory/recorded_kv.json). Source of MLX's: mlx-lm's models/cache.py, compared with
the caches it really makes (tests/memory/recorded_mlx.json).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from cclocal.memory.projector import Projector
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
#: What a head for multi-token prediction guesses ahead: llama.cpp's own default.
DRAFT_TOKENS = 3
#: llama.cpp's own micro-batch.
DEFAULT_UBATCH_TOKENS = 512
#: llama.cpp rounds every cache up to this many cells.
CELLS = 256
#: Per token of the micro-batch with flash attention: measured 0.21 ± 0.06 MiB, and an f16 mask over the context.
COMPUTE_BYTES_PER_UBATCH_TOKEN = 0.21 * MIB
MASK_BYTES = 2
#: "llama_kv_cache:      CUDA0 KV buffer size =   512.00 MiB"; the words before have changed over the years.
_LINE = re.compile(r"(\S+)\s+(model|KV|RS|compute|output) buffer size\s*=\s*([\d.]+) MiB")
#: A vision model's projector reports its compute buffer in the same words.
_PROJECTOR = re.compile(r"^.*(?:clip|reserve_compute_meta).*$", re.MULTILINE)
#: Buffers in host memory. AMX: weights in the order that such a processor multiplies them.
_HOST = re.compile(r"CPU|AMX$|.*_Host$")


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """How a server is started, as far as memory goes.

    gpu_layers counts as llama.cpp's --n-gpu-layers does, the output being the last; None = all. cpu_moe_layers: the
    experts of so many layers stay in host memory. prefill_step_tokens and prefix_cache_bytes are MLX's.
    projector: a vision model's, with the largest picture that it may be sent. correction_bytes: added to the compute
    buffers, an earlier start's own numbers less its plan's. draft_tokens: how many a head for multi-token prediction
    guesses ahead; 0 = it is not used. devices: that have compute buffers, each of its own.
    """

    context_tokens: int
    kv_type: str = "f16"
    slots: int = 1
    ubatch_tokens: int = DEFAULT_UBATCH_TOKENS
    flash_attention: bool = True
    cache_ram_bytes: int = 0
    gpu_layers: int | None = None
    cpu_moe_layers: int = 0
    prefill_step_tokens: int = 2048
    prefix_cache_bytes: int = 0
    projector: Projector | None = None
    correction_bytes: int = 0
    draft_tokens: int = 0
    devices: int = 1


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a server needs, or has allocated, on the device that computes, by part, and in host memory besides."""

    weights_bytes: int
    kv_bytes: int
    state_bytes: int
    compute_bytes: int
    other_bytes: int = 0
    host_bytes: int = 0
    #: the projector of a vision model, and the buffers for the largest picture
    vision_bytes: int = 0

    @property
    def need_bytes(self) -> int:
        parts = (self.weights_bytes, self.kv_bytes, self.state_bytes, self.compute_bytes)
        return sum(parts) + self.vision_bytes + self.other_bytes


def footprint(shape: Shape, config: MemoryConfig, *, memory: Memory) -> Footprint:
    """What serving a shape needs, where `memory` says which kind the device has."""
    if shape.form == "mlx":
        return _mlx(shape, config)
    caches = layer_kv_bytes(shape, config)
    drafts = _draft_kv_bytes(shape, config)
    # a state is kept for each guess, to go back to: llama.cpp's n_rs_seq
    states = [layer.state_bytes * config.slots * (1 + config.draft_tokens) for layer in shape.layers]
    # the head computes in buffers of its own, at most as large
    compute = compute_bytes(shape, config) * (2 if drafts else 1) * config.devices
    weights = shape.weights_bytes if memory == "host" else shape.device_weights_bytes
    kept, first, copied = (0, 0, 0) if memory == "host" else _kept_on_host(shape, config)
    # the prompt cache (--cache-ram) is in host memory, which a device may share
    beside, apart = (0, config.cache_ram_bytes) if memory == "discrete" else (config.cache_ram_bytes, 0)
    vision, pixels = _vision_bytes(config.projector, memory)
    return Footprint(
        weights_bytes=weights - kept,
        kv_bytes=sum(caches[first:]) + drafts,
        state_bytes=sum(states[first:]),
        compute_bytes=max(0, compute + config.correction_bytes) + copied,
        other_bytes=beside,
        host_bytes=shape.weights_bytes - weights + kept + sum(caches[:first]) + sum(states[:first]) + apart + pixels,
        vision_bytes=vision,
    )


def _vision_bytes(projector: Projector | None, memory: Memory) -> tuple[int, int]:
    """(what a projector and its largest picture take where the model computes, and what in host memory besides)."""
    if projector is None:
        return 0, 0
    there = projector.device_bytes
    pixels = projector.host_bytes(computes_there=memory == "host")
    return (there, pixels) if memory == "discrete" else (there + pixels, 0)


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
        int((layer.key_elements + max(layer.value_elements, widest)) * cells.get(layer.kind, 0) * per_element)
        for layer in shape.layers
    ]


def _draft_kv_bytes(shape: Shape, config: MemoryConfig) -> int:
    """The KV cache of the head for multi-token prediction, if it is used."""
    layers = shape.draft_layers if config.draft_tokens else ()
    elements = sum(layer.key_elements + layer.value_elements for layer in layers)
    return int(elements * _per_slot(config) * KV_TYPES[config.kv_type] * config.slots)


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


def _mlx(shape: Shape, config: MemoryConfig) -> Footprint:
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
        compute_bytes=max(0, scores + config.correction_bytes),
        other_bytes=2 * config.prefix_cache_bytes,
    )


def read_buffers(log: str) -> Footprint | None:
    """The buffers that llama.cpp's log reports while it loads a model; None if it reports none.

    A device's compute buffer is named each time it grows, so its last size counts; caches of several kinds add up, and
    so do contexts: a head for multi-token prediction has one of its own. Each begins with its output buffer.
    """
    sizes: dict[tuple[str, str], int] = {}
    earlier: dict[tuple[str, str], int] = {}
    for device, part, mib in _LINE.findall(_PROJECTOR.sub("", log)):
        size = round(float(mib) * MIB)
        key = (device, part)
        if part == "output":
            earlier = dict(sizes)
        sizes[key] = size + (earlier if part in ("compute", "output") else sizes).get(key, 0)
    if not any(part in ("KV", "RS") for _, part in sizes):
        return None
    # what is not on the host, unless everything is
    here = {key: size for key, size in sizes.items() if not _HOST.match(key[0])} or sizes

    def total(*parts: str) -> int:
        return sum(size for (_, part), size in here.items() if part in parts)

    # some processors get a copy in another order; what was copied is not held as part of the mapped file besides
    mapped = here.get(("CPU_Mapped", "model"), 0)
    return Footprint(
        weights_bytes=max(mapped, total("model") - mapped),
        kv_bytes=total("KV"),
        state_bytes=total("RS"),
        compute_bytes=total("compute", "output"),
        host_bytes=sum(sizes.values()) - sum(here.values()),
    )
