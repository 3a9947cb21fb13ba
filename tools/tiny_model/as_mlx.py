"""The circuit as an MLX model: config.json, weights in safetensors, and the tokenizer's two files.

The weights are float32: prefill in bf16 takes minutes on a processor, and a processor is where it is tested.
"""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Sequence

from tools.tiny_model.circuit import (
    CHAT_TEMPLATE,
    CONTEXT_TOKENS,
    CONTROL,
    FEED_FORWARD,
    HEAD,
    NORM_EPSILON,
    ROPE_BASE,
    USER_DEFINED,
    Matrix,
    Vocabulary,
    embeddings,
    layers,
)


def mlx_files() -> dict[str, bytes]:
    """Every file of the model's folder, by name. The same bytes every time, on every machine."""
    vocabulary = Vocabulary()
    embedding, output, width = embeddings(vocabulary)
    blocks = layers(width)
    ones = _f32([dict.fromkeys(range(width), 1.0)], width)
    zeros = bytes(4 * FEED_FORWARD * width)
    size = len(vocabulary.tokens)
    tensors: list[tuple[str, Sequence[int], bytes]] = [
        ("model.embed_tokens.weight", (size, width), _f32(embedding, width)),
        ("lm_head.weight", (size, width), _f32(output, width)),
        ("model.norm.weight", (width,), ones),
    ]
    for number, layer in enumerate(blocks):
        name = f"model.layers.{number}.{{}}.weight".format
        tensors += [(name(norm), (width,), ones) for norm in ("input_layernorm", "post_attention_layernorm")]
        tensors += [(name(f"self_attn.{p}_proj"), (HEAD, width), _f32(layer[p], width)) for p in ("q", "k", "v")]
        tensors.append((name("self_attn.o_proj"), (width, HEAD), _f32(layer["output"], HEAD)))
        tensors += [(name(f"mlp.{part}_proj"), (FEED_FORWARD, width), zeros) for part in ("gate", "up")]
        tensors.append((name("mlp.down_proj"), (width, FEED_FORWARD), zeros))
    return {
        "config.json": _json(_config(vocabulary, width, len(blocks))),
        "model.safetensors": _safetensors(tensors),
        "tokenizer.json": _json(_tokenizer(vocabulary)),
        "tokenizer_config.json": _json(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "model_max_length": CONTEXT_TOKENS,
                "clean_up_tokenization_spaces": False,
                "chat_template": CHAT_TEMPLATE,
            }
        ),
    }


def _config(vocabulary: Vocabulary, width: int, blocks: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "intermediate_size": FEED_FORWARD,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": HEAD,
        "rms_norm_eps": NORM_EPSILON,
        "vocab_size": len(vocabulary.tokens),
        "rope_theta": ROPE_BASE,
        # pairs of neighbours rotate together, as in a GGUF of this architecture
        "rope_traditional": True,
        "tie_word_embeddings": False,
        "max_position_embeddings": CONTEXT_TOKENS,
        "eos_token_id": vocabulary.id["EOS"],
        "torch_dtype": "float32",
    }


def _tokenizer(vocabulary: Vocabulary) -> dict[str, object]:
    """As the `tokenizers` library reads it: byte-level BPE, with the markers as added tokens."""
    added = [
        {
            "id": number,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == CONTROL,
        }
        for number, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: number for number, text in enumerate(vocabulary.tokens)},
            "merges": [merge.split(" ") for merge in vocabulary.merges],
        },
    }


def _safetensors(tensors: Sequence[tuple[str, Sequence[int], bytes]]) -> bytes:
    """The safetensors format: the header's length, the header as JSON, the data."""
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    at = 0
    for name, shape, data in tensors:
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = _json(header)
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for *_, data in tensors)


def _f32(rows: Matrix, width: int) -> bytes:
    data = array("f", bytes(4 * width * len(rows)))
    for number, row in enumerate(rows):
        for at, value in row.items():
            data[number * width + at] = value
    return data.tobytes()


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
