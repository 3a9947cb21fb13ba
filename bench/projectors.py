"""Headers of the projectors of models that see, from their published dimensions: python bench/projectors.py

It writes src/cclocal/memory/published_projectors.json, by which a projector is planned before it is downloaded.
Source of the dimensions: the models' configuration files (vision_config), and the tensors that llama.cpp asks for
(tools/mtmd/clip.cpp). Matrices are f16, the rest f32. The Gemma 4 E4B file holds an audio encoder too: it is here as
one tensor of its published number of weights, some 300 million.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from bench.published_shapes import F16, F32, Tensors, header
from cclocal.memory.gguf import Header
from cclocal.memory.projector import projector_of

_MEAN = [0.5, 0.5, 0.5]


def _metadata(
    kind: str, side: int, patch: int, width: int, inner: int, layers: int, heads: int, out: int
) -> dict[str, Any]:
    return {
        "has_vision_encoder": True,
        "projector_type": kind,
        "use_gelu": True,
        "vision.image_size": side,
        "vision.patch_size": patch,
        "vision.embedding_length": width,
        "vision.feed_forward_length": inner,
        "vision.block_count": layers,
        "vision.projection_dim": out,
        "vision.attention.head_count": heads,
        "vision.attention.layer_norm_epsilon": 1e-6,
        "vision.image_mean": _MEAN,
        "vision.image_std": _MEAN,
    }


def _linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> Tensors:
    yield f"{name}.weight", [inputs, outputs], F16
    if bias:
        yield f"{name}.bias", [outputs], F32


def _norm(name: str, width: int, *, bias: bool = True) -> Tensors:
    for part in ("weight", "bias") if bias else ("weight",):
        yield f"{name}.{part}", [width], F32


def qwen3vl(out: int, deepstack: tuple[int, ...] = (), layers: int = 27) -> Header:
    """The vision encoder of Qwen3-VL 8B and up, Qwen3.5 9B and up, and Qwen3.6."""
    patch, width, inner, heads, merge = 16, 1152, 4304, 16, 2
    merged = width * merge * merge

    def tensors() -> Tensors:
        yield "v.patch_embd.weight", [patch, patch, 3, width], F16
        yield "v.patch_embd.weight.1", [patch, patch, 3, width], F16
        yield "v.patch_embd.bias", [width], F32
        yield "v.position_embd.weight", [width, 2304], F32
        for i in range(layers):
            at = f"v.blk.{i}."
            yield from _norm(f"{at}ln1", width)
            yield from _norm(f"{at}ln2", width)
            yield from _linear(f"{at}attn_qkv", width, 3 * width)
            yield from _linear(f"{at}attn_out", width, width)
            yield from _linear(f"{at}ffn_up", width, inner)
            yield from _linear(f"{at}ffn_down", inner, width)
        for i in deepstack:
            at = f"v.deepstack.{i}."
            yield from _norm(f"{at}norm", merged)
            yield from _linear(f"{at}fc1", merged, merged)
            yield from _linear(f"{at}fc2", merged, out)
        yield from _norm("v.post_ln", width)
        yield from _linear("mm.0", merged, merged)
        yield from _linear("mm.2", merged, out)

    metadata = _metadata("qwen3vl_merger", 768, patch, width, inner, layers, heads, out)
    return header("clip", {**metadata, "vision.spatial_merge_size": merge}, tensors())


def gemma4(out: int, width: int, inner: int, layers: int, heads: int, *, audio_weights: int = 0) -> Header:
    """The vision encoder of Gemma 4, but for 12B."""
    patch = 16

    def tensors() -> Tensors:
        yield "v.patch_embd.weight", [patch, patch, 3, width], F16
        yield "v.position_embd.weight", [width, 10240, 2], F32
        for i in range(layers):
            at = f"v.blk.{i}."
            for name in ("ln1", "ln2", "attn_post_norm", "ffn_post_norm"):
                yield from _norm(f"{at}{name}", width, bias=False)
            for name in ("attn_q_norm", "attn_k_norm"):
                yield from _norm(f"{at}{name}", width // heads, bias=False)
            for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
                yield from _linear(f"{at}{name}", width, width, bias=False)
            for name in ("ffn_gate", "ffn_up"):
                yield from _linear(f"{at}{name}", width, inner, bias=False)
            yield from _linear(f"{at}ffn_down", inner, width, bias=False)
        yield from _linear("mm.input_projection", width, out, bias=False)
        if audio_weights:
            yield "a.weights", [1024, audio_weights // 1024], F16

    return header("clip", _metadata("gemma4v", 224, patch, width, inner, layers, heads, out), tensors())


def _gemma4_unified() -> Header:
    """Gemma 4 12B has no encoder: its patches go through one matrix."""
    patch, merge, width, out = 16, 3, 3840, 3840
    pixels = (patch * merge) ** 2 * 3

    def tensors() -> Tensors:
        yield "v.patch_embd.weight", [pixels, width], F16
        yield "v.patch_embd.bias", [width], F32
        yield "v.position_embd.weight", [width, 1120, 2], F32
        for i, size in ((1, pixels), (2, width), (3, width)):
            yield from _norm(f"v.patch_norm.{i}", size)
        yield from _linear("mm.input_projection", width, out, bias=False)

    return header("clip", _metadata("gemma4uv", 224, patch, width, 0, 0, 1, out), tensors())


#: By the name of the dimensions of the model that each belongs to.
PROJECTORS: Mapping[str, Callable[[], Header]] = {
    "qwen3-vl-30b-a3b": partial(qwen3vl, 2048, (8, 16, 24)),
    "qwen3.5-9b": partial(qwen3vl, 4096),
    "qwen3.6-35b-a3b": partial(qwen3vl, 2048),
    "qwen3.6-27b": partial(qwen3vl, 5120),
    "gemma-4-e4b": partial(gemma4, 2560, 768, 3072, 16, 12, audio_weights=300_000_000),
    "gemma-4-12b": _gemma4_unified,
    "gemma-4-26b-a4b": partial(gemma4, 2816, 1152, 4304, 27, 16),
    "gemma-4-31b": partial(gemma4, 5376, 1152, 4304, 27, 16),
}


def published() -> str:
    """The whole of memory/published_projectors.json."""
    rows = (f"{json.dumps(name)}: {json.dumps(asdict(projector_of(made())))}" for name, made in PROJECTORS.items())
    return "{\n" + ",\n".join(rows) + "\n}\n"


if __name__ == "__main__":
    target = Path(__file__).parent.parent / "src/cclocal/memory/published_projectors.json"
    target.write_text(published(), "utf-8")
