"""Headers of models whose dimensions are published, made from those dimensions: python bench/published_shapes.py

It writes src/cclocal/memory/published.json, by which the whole catalog is planned before anything is downloaded;
bench/memory.py and the tests let llama.cpp allocate for the same headers. The mix of quantisations is that of a Q4_K_M
file, so weights are approximate and caches exact; before a download the file's own header decides.

Source of the dimensions: the models' configuration files and GGUF headers as published by their makers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

from cclocal.memory.gguf import BLOCKS, Header, Tensor
from cclocal.memory.mlx import FUSED_HEADS
from cclocal.memory.shape import shape_of

F32, F16, Q5_0, Q8_0, Q4_K, Q6_K, MXFP4 = 0, 1, 6, 8, 12, 14, 39
Tensors = Iterator[tuple[str, list[int], int]]


def header(architecture: str, metadata: dict[str, Any], tensors: Tensors) -> Header:
    found = []
    for name, dims, wanted in tensors:
        kind = F32 if len(dims) == 1 else wanted
        # rows that blocks do not divide are stored in the next type that fits
        if dims[0] % BLOCKS[kind][0]:
            kind = F16 if dims[0] % 32 else Q8_0
        weights, size = BLOCKS[kind]
        found.append(Tensor(name, tuple(dims), kind, prod(dims) // weights * size))
    own = {f"{architecture}.{key}": value for key, value in metadata.items()}
    return Header({"general.architecture": architecture, "general.file_type": 15, **own}, tuple(found))


def _ends(width: int, vocabulary: int, embedding: int = Q4_K, output: int | None = Q6_K) -> Tensors:
    yield "token_embd.weight", [width, vocabulary], embedding
    yield "output_norm.weight", [width], F32
    if output is not None:
        yield "output.weight", [width, vocabulary], output


def _qkv(at: str, width: int, query: int, key: int, *, bias: bool = False, kind: int = Q4_K) -> Tensors:
    value = Q6_K if kind == Q4_K else kind
    for name, rows, wanted in (("q", query, kind), ("k", key, kind), ("v", key, value)):
        yield f"{at}attn_{name}.weight", [width, rows], wanted
        if bias:
            yield f"{at}attn_{name}.bias", [rows], F32


def _dense(at: str, width: int, inner: int, *, down: int = Q4_K) -> Tensors:
    yield f"{at}ffn_gate.weight", [width, inner], Q4_K
    yield f"{at}ffn_down.weight", [inner, width], down
    yield f"{at}ffn_up.weight", [width, inner], Q4_K


def _experts(at: str, width: int, inner: int, count: int, *, kind: int = Q4_K, down: int = Q4_K) -> Tensors:
    yield f"{at}ffn_gate_inp.weight", [width, count], F32
    yield f"{at}ffn_gate_exps.weight", [width, inner, count], kind
    yield f"{at}ffn_down_exps.weight", [inner, width, count], down
    yield f"{at}ffn_up_exps.weight", [width, inner, count], kind


def _norms(at: str, width: int, *names: str) -> Tensors:
    for name in names:
        yield f"{at}{name}.weight", [width], F32


def _qwen3moe(architecture: str = "qwen3moe") -> Header:
    width, layers, heads, kv, size, experts, inner, vocabulary = 2048, 48, 32, 4, 128, 128, 768, 151936
    metadata: dict[str, Any] = {
        "vocab_size": vocabulary,
        "context_length": 262144,
        "block_count": layers,
        "embedding_length": width,
        "feed_forward_length": 5472,
        "expert_count": experts,
        "expert_used_count": 8,
        "expert_feed_forward_length": inner,
        "attention.head_count": heads,
        "attention.head_count_kv": kv,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e7,
    }
    if architecture == "qwen3vlmoe":
        metadata |= {"rope.dimension_sections": [24, 20, 20, 0], "n_deepstack_layers": 3}

    def tensors() -> Tensors:
        yield from _ends(width, vocabulary)
        for i in range(layers):
            at = f"blk.{i}."
            yield from _norms(at, width, "attn_norm", "ffn_norm")
            yield from _qkv(at, width, heads * size, kv * size)
            yield f"{at}attn_output.weight", [heads * size, width], Q4_K
            yield from _norms(at, size, "attn_k_norm", "attn_q_norm")
            yield from _experts(at, width, inner, experts, down=Q6_K if i % 2 else Q4_K)

    return header(architecture, metadata, tensors())


def _qwen2() -> Header:
    width, layers, heads, kv, size, inner, vocabulary = 3584, 28, 28, 4, 128, 18944, 152064
    metadata = {
        "vocab_size": vocabulary,
        "context_length": 32768,
        "block_count": layers,
        "embedding_length": width,
        "feed_forward_length": inner,
        "attention.head_count": heads,
        "attention.head_count_kv": kv,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e6,
    }

    def tensors() -> Tensors:
        yield from _ends(width, vocabulary)
        for i in range(layers):
            at = f"blk.{i}."
            yield from _norms(at, width, "attn_norm", "ffn_norm")
            yield from _qkv(at, width, width, kv * size, bias=True)
            yield f"{at}attn_output.weight", [width, width], Q4_K
            yield from _dense(at, width, inner, down=Q6_K if i % 2 else Q4_K)

    return header("qwen2", metadata, tensors())


def _gpt_oss() -> Header:
    width, layers, heads, kv, size, experts, vocabulary = 2880, 24, 64, 8, 64, 32, 201088
    metadata = {
        "vocab_size": vocabulary,
        "context_length": 131072,
        "block_count": layers,
        "embedding_length": width,
        "feed_forward_length": width,
        "expert_count": experts,
        "expert_used_count": 4,
        "expert_feed_forward_length": width,
        "attention.head_count": heads,
        "attention.head_count_kv": kv,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.sliding_window": 128,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 150000.0,
    }

    def tensors() -> Tensors:
        yield from _ends(width, vocabulary, Q8_0, Q8_0)
        for i in range(layers):
            at = f"blk.{i}."
            yield from _norms(at, width, "attn_norm", "post_attention_norm")
            yield from _qkv(at, width, heads * size, kv * size, bias=True, kind=Q8_0)
            yield f"{at}attn_output.weight", [heads * size, width], Q8_0
            yield f"{at}attn_output.bias", [width], F32
            yield f"{at}attn_sinks.weight", [heads], F32
            yield f"{at}ffn_gate_inp.bias", [experts], F32
            yield from _experts(at, width, width, experts, kind=MXFP4, down=MXFP4)
            for name in ("gate", "up", "down"):
                yield f"{at}ffn_{name}_exps.bias", [width, experts], F32

    return header("gpt-oss", metadata, tensors())


def _glm_flash() -> Header:
    width, layers, heads, experts, inner, vocabulary = 2048, 47, 20, 64, 1536, 154880
    latent_q, latent, rope, plain, value, dense = 768, 512, 64, 192, 256, 10240
    metadata = {
        "vocab_size": vocabulary,
        "context_length": 202752,
        "block_count": layers,
        "embedding_length": width,
        "feed_forward_length": dense,
        "expert_count": experts,
        "expert_used_count": 4,
        "expert_feed_forward_length": inner,
        "expert_shared_count": 1,
        "leading_dense_block_count": 1,
        "expert_gating_func": 2,
        "attention.head_count": heads,
        "attention.head_count_kv": 1,
        "attention.key_length": latent + rope,
        "attention.value_length": latent,
        "attention.key_length_mla": plain + rope,
        "attention.value_length_mla": value,
        "attention.q_lora_rank": latent_q,
        "attention.kv_lora_rank": latent,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": rope,
        "rope.freq_base": 1e6,
    }

    def tensors() -> Tensors:
        yield from _ends(width, vocabulary)
        for i in range(layers):
            at = f"blk.{i}."
            yield from _norms(at, width, "attn_norm", "ffn_norm")
            yield f"{at}attn_q_a_norm.weight", [latent_q], F32
            yield f"{at}attn_kv_a_norm.weight", [latent], F32
            yield f"{at}attn_q_a.weight", [width, latent_q], Q4_K
            yield f"{at}attn_q_b.weight", [latent_q, heads * (plain + rope)], Q4_K
            yield f"{at}attn_kv_a_mqa.weight", [width, latent + rope], Q4_K
            yield f"{at}attn_k_b.weight", [plain, latent, heads], Q8_0
            yield f"{at}attn_v_b.weight", [latent, value, heads], Q8_0
            yield f"{at}attn_output.weight", [heads * value, width], Q4_K
            if i == 0:
                yield from _dense(at, width, dense)
                continue
            yield f"{at}exp_probs_b.bias", [experts], F32
            yield from _experts(at, width, inner, experts)
            for name, dims in (("gate", [width, inner]), ("up", [width, inner]), ("down", [inner, width])):
                yield f"{at}ffn_{name}_shexp.weight", dims, Q4_K

    return header("deepseek2", metadata, tensors())


def _gemma4(size_name: str) -> Header:
    experts, expert_inner, context = 0, 0, 262144
    if size_name == "e4b":
        width, layers, heads, kv_swa, kv, window, shared, per_layer, inner = 2560, 42, 8, 2, 2, 512, 18, 256, 10240
        context = 131072
    elif size_name == "12b":
        # width and inner are Gemma 3 12B's: they decide only how the weights, whose sum is known, are spread
        width, layers, heads, kv_swa, kv, window, shared, per_layer, inner = 3840, 48, 16, 8, 1, 1024, 0, 0, 15360
    else:
        width, layers, heads, kv_swa, kv, window, shared, per_layer, inner = 2816, 30, 16, 8, 2, 1024, 0, 0, 2112
        experts, expert_inner = 128, 704
    vocabulary, size, size_swa = 262144, 512, 256
    slides = [i % 6 != 5 for i in range(layers)]
    metadata: dict[str, Any] = {
        "vocab_size": vocabulary,
        "context_length": context,
        "block_count": layers,
        "embedding_length": width,
        "embedding_length_per_layer_input": per_layer,
        "feed_forward_length": inner,
        "attention.head_count": heads,
        "attention.head_count_kv": kv if per_layer else [kv_swa if slide else kv for slide in slides],
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.key_length_swa": size_swa,
        "attention.value_length_swa": size_swa,
        "attention.sliding_window": window,
        "attention.sliding_window_pattern": slides,
        "attention.shared_kv_layers": shared,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
        "rope.dimension_count": size,
        "rope.dimension_count_swa": size_swa,
        "final_logit_softcapping": 30.0,
    }
    if experts:
        metadata |= {
            "expert_count": experts,
            "expert_used_count": 8,
            "expert_feed_forward_length": expert_inner,
        }

    def tensors() -> Tensors:
        yield from _ends(width, vocabulary, Q6_K, None)
        yield "rope_freqs.weight", [256], F32
        if per_layer:
            yield "per_layer_token_embd.weight", [per_layer * layers, vocabulary], Q6_K
            yield "per_layer_model_proj.weight", [width, per_layer * layers], F16
            yield "per_layer_proj_norm.weight", [per_layer], F32
        for i in range(layers):
            at, one = f"blk.{i}.", size_swa if slides[i] else size
            rows = (kv_swa if slides[i] else kv) * one
            yield from _norms(at, width, "attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm")
            yield from _norms(at, one, "attn_q_norm", "attn_k_norm")
            yield f"{at}layer_output_scale.weight", [1], F32
            for name, dims, kind in _qkv(at, width, heads * one, rows):
                # the full layers of all but the smallest use K as V
                if not (not per_layer and not slides[i] and "attn_v" in name):
                    yield name, dims, kind
            yield f"{at}attn_output.weight", [heads * one, width], Q4_K
            yield from _dense(at, width, inner)
            if experts:
                yield f"{at}ffn_gate_inp.weight", [width, experts], F32
                yield f"{at}ffn_gate_inp.scale", [width], F32
                yield from _norms(at, width, "pre_ffw_norm_2", "post_ffw_norm_1", "post_ffw_norm_2")
                yield f"{at}ffn_gate_up_exps.weight", [width, 2 * expert_inner, experts], Q4_K
                yield f"{at}ffn_down_exps.weight", [expert_inner, width, experts], Q4_K
                yield f"{at}ffn_down_exps.scale", [experts], F32
            if per_layer:
                yield f"{at}inp_gate.weight", [width, per_layer], Q4_K
                yield f"{at}proj.weight", [per_layer, width], Q4_K
                yield f"{at}post_norm.weight", [width], F32

    return header("gemma4", metadata, tensors())


def gated_delta(name: str, draft_layers: int = 0, words: int = 248320) -> Header:
    """Qwen3.5, Qwen3.6 and Qwen3-Next: three recurrent layers, one of attention; and a little model of that kind.

    `draft_layers`: of a head for multi-token prediction (MTP), after the others. `words`: in the vocabulary.
    """
    size, state, groups, steps, experts, used, expert_inner, vocabulary = 256, 128, 16, 32, 0, 0, 512, words
    if name == "9b":
        width, layers, heads, kv, inner, architecture = 4096, 32, 16, 4, 12288, "qwen35"
    elif name == "little":
        width, layers, heads, kv, inner, architecture = 256, 4, 2, 1, 512, "qwen35"
    elif name == "27b":
        # inner was not seen published; it decides only how the weights, whose sum is known, are spread
        width, layers, heads, kv, inner, architecture, steps = 5120, 64, 24, 4, 17408, "qwen35", 48
    elif name == "35b-a3b":
        width, layers, heads, kv, inner, architecture = 2048, 40, 16, 2, 512, "qwen35moe"
        experts, used = 256, 8
    else:
        width, layers, heads, kv, inner, architecture = 2048, 48, 16, 2, 5120, "qwen3next"
        experts, used, vocabulary = 512, 10, 151936
    is_next = architecture == "qwen3next"
    key, value = state * groups, state * steps
    metadata: dict[str, Any] = {
        "vocab_size": vocabulary,
        "context_length": 262144,
        "block_count": layers + draft_layers,
        "embedding_length": width,
        "feed_forward_length": inner,
        "attention.head_count": heads,
        "attention.head_count_kv": kv,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": 64,
        "rope.freq_base": 1e7,
        "ssm.conv_kernel": 4,
        "ssm.state_size": state,
        "ssm.group_count": groups,
        "ssm.time_step_rank": steps,
        "ssm.inner_size": value,
    }
    if not is_next:
        metadata |= {"full_attention_interval": 4, "rope.dimension_sections": [11, 11, 10, 0]}
    if draft_layers:
        metadata["nextn_predict_layers"] = draft_layers
    if experts:
        metadata |= {
            "expert_count": experts,
            "expert_used_count": used,
            "expert_feed_forward_length": expert_inner,
            "expert_shared_feed_forward_length": expert_inner,
        }

    def tensors() -> Tensors:
        yield from _ends(width, vocabulary)
        for i in range(layers + draft_layers):
            at = f"blk.{i}."
            yield from _norms(at, width, "attn_norm", "post_attention_norm")
            if i >= layers:
                yield f"{at}nextn.eh_proj.weight", [2 * width, width], Q4_K
                yield from _norms(at, width, "nextn.enorm", "nextn.hnorm", "nextn.shared_head_norm")
            if (i + 1) % 4 == 0 or i >= layers:
                yield from _qkv(at, width, heads * size * 2, kv * size)
                yield f"{at}attn_output.weight", [heads * size, width], Q4_K
                yield from _norms(at, size, "attn_q_norm", "attn_k_norm")
            else:
                yield f"{at}attn_qkv.weight", [width, 2 * key + value], Q4_K
                yield f"{at}attn_gate.weight", [width, value], Q4_K
                yield f"{at}ssm_conv1d.weight", [4, 2 * key + value], F32
                yield f"{at}ssm_dt.bias", [steps], F32
                yield f"{at}ssm_a", [steps], F32
                for part in ("ssm_ba",) if is_next else ("ssm_beta", "ssm_alpha"):
                    yield f"{at}{part}.weight", [width, 2 * steps if is_next else steps], Q4_K
                yield f"{at}ssm_norm.weight", [state], F32
                yield f"{at}ssm_out.weight", [value, width], Q4_K
            if not experts:
                yield from _dense(at, width, inner)
                continue
            yield from _experts(at, width, expert_inner, experts)
            yield f"{at}ffn_gate_inp_shexp.weight", [width], F32
            for part, dims in (
                ("gate", [width, expert_inner]),
                ("up", [width, expert_inner]),
                ("down", [expert_inner, width]),
            ):
                yield f"{at}ffn_{part}_shexp.weight", dims, Q4_K

    return header(architecture, metadata, tensors())


def _nemotron() -> Header:
    pattern = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
    width, heads, kv, size, experts, inner, shared, vocabulary = 2688, 32, 2, 128, 128, 1856, 3712, 131072
    mamba, state, groups, steps = 4096, 128, 8, 64
    metadata = {
        "vocab_size": vocabulary,
        "context_length": 1048576,
        "block_count": len(pattern),
        "embedding_length": width,
        "feed_forward_length": [inner if mark == "E" else 0 for mark in pattern],
        "expert_count": experts,
        "expert_used_count": 6,
        "expert_feed_forward_length": inner,
        "expert_shared_feed_forward_length": shared,
        "expert_shared_count": 1,
        "expert_weights_scale": 2.5,
        "attention.head_count": heads,
        "attention.head_count_kv": [kv if mark == "*" else 0 for mark in pattern],
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
        "rope.dimension_count": 84,
        "ssm.conv_kernel": 4,
        "ssm.state_size": state,
        "ssm.group_count": groups,
        "ssm.time_step_rank": steps,
        "ssm.inner_size": mamba,
    }

    def tensors() -> Tensors:
        yield from _ends(width, vocabulary, Q8_0, Q8_0)
        for i, mark in enumerate(pattern):
            at = f"blk.{i}."
            yield f"{at}attn_norm.weight", [width], F32
            if mark == "M":
                yield f"{at}ssm_in.weight", [width, 2 * mamba + 2 * groups * state + steps], Q5_0
                yield f"{at}ssm_conv1d.weight", [4, mamba + 2 * groups * state], F32
                yield f"{at}ssm_conv1d.bias", [mamba + 2 * groups * state], F32
                yield f"{at}ssm_dt.bias", [steps], F32
                yield f"{at}ssm_a", [1, steps], F32
                yield f"{at}ssm_d", [1, steps], F32
                yield f"{at}ssm_norm.weight", [mamba // groups, groups], F32
                yield f"{at}ssm_out.weight", [mamba, width], Q4_K
            elif mark == "*":
                yield from _qkv(at, width, heads * size, kv * size)
                yield f"{at}attn_output.weight", [heads * size, width], Q4_K
            else:
                yield f"{at}ffn_gate_inp.weight", [width, experts], F32
                yield f"{at}exp_probs_b.bias", [experts], F32
                yield f"{at}ffn_down_exps.weight", [inner, width, experts], Q5_0
                yield f"{at}ffn_up_exps.weight", [width, inner, experts], Q5_0
                yield f"{at}ffn_down_shexp.weight", [shared, width], Q5_0
                yield f"{at}ffn_up_shexp.weight", [width, shared], Q5_0

    return header("nemotron_h_moe", metadata, tensors())


#: Name → the header it would have.
HEADERS: Mapping[str, Callable[[], Header]] = {
    "gemma-4-e4b": lambda: _gemma4("e4b"),
    "gemma-4-12b": lambda: _gemma4("12b"),
    "gemma-4-26b-a4b": lambda: _gemma4("26b-a4b"),
    "glm-4.7-flash": _glm_flash,
    "gpt-oss-20b": _gpt_oss,
    "nemotron-3-nano-30b-a3b": _nemotron,
    "qwen2.5-coder-7b": _qwen2,
    "qwen3-coder-30b-a3b": _qwen3moe,
    "qwen3-vl-30b-a3b": lambda: _qwen3moe("qwen3vlmoe"),
    "qwen3-next-80b-a3b": lambda: gated_delta("next-80b-a3b"),
    "qwen3.5-9b": lambda: gated_delta("9b"),
    "qwen3.6-27b": lambda: gated_delta("27b"),
    "qwen3.6-35b-a3b": lambda: gated_delta("35b-a3b"),
}


def shape_row(name: str) -> dict[str, Any]:
    """A row of memory/published.json: the model's shape from its header, and what MLX would materialise for it."""
    header = HEADERS[name]()
    shape = shape_of(header)

    def number(key: str) -> int:
        value = header.get(key)
        return value if isinstance(value, int) else 0

    latent = number("attention.key_length_mla")
    unfused = not latent and number("attention.key_length") not in FUSED_HEADS
    plain = latent - number("rope.dimension_count")
    kinds = list(dict.fromkeys(shape.layers))
    row = asdict(shape) | {
        "layer_kinds": [list(asdict(kind).values()) for kind in kinds],
        "layers": [kinds.index(layer) for layer in shape.layers],
        "score_heads": 2 * shape.query_heads if latent else shape.query_heads if unfused else 0,
        "unpacked_elements": shape.query_heads * (plain + number("attention.value_length_mla")) if latent else 0,
    }
    # none of these files has a head for multi-token prediction
    for key in ("form", "bound", "draft_layers"):
        del row[key]
    return row


def published() -> str:
    """The whole of memory/published.json."""
    rows = (f"{json.dumps(name)}: {json.dumps(shape_row(name), separators=(',', ':'))}" for name in HEADERS)
    return "{\n" + ",\n".join(rows) + "\n}\n"


if __name__ == "__main__":
    (Path(__file__).parent.parent / "src/cclocal/memory/published.json").write_text(published(), "utf-8")
