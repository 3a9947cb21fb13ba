"""The circuit as a GGUF file (the GGUF specification, v3)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from tools.tiny_model.circuit import (
    CHAT_TEMPLATE,
    CONTEXT_TOKENS,
    FEED_FORWARD,
    HEAD,
    NORM_EPSILON,
    ROPE_BASE,
    Matrix,
    Row,
    Vocabulary,
    embeddings,
    layers,
)

F32, F16 = 0, 1
#: GGUF value types (the GGUF specification, v3)
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
ALIGNMENT = 32


def gguf(
    feed_forward: int = FEED_FORWARD,
    template: str = CHAT_TEMPLATE,
    vocabulary: Vocabulary | None = None,
    weights: tuple[Matrix, Matrix, int] | None = None,
) -> bytes:
    """The whole file. The same bytes every time, on every machine.

    `feed_forward`: the width of the layers of zero, which change no answer; 106,496 makes it 1.03 GB, for benches in
    which a prompt costs what it costs with a real model. `vocabulary`, `weights`: others than the circuit's own, and
    what `embeddings` made of them.
    """
    vocabulary = vocabulary or Vocabulary()
    embedding, output, width = weights or embeddings(vocabulary)
    blocks = layers(width)
    metadata = fields(vocabulary, width, len(blocks), feed_forward, template)
    size = len(vocabulary.tokens)
    tensors: list[tuple[str, Sequence[int], int, bytes]] = [
        ("token_embd.weight", (width, size), F16, _f16(embedding, width)),
        ("output.weight", (width, size), F16, _f16(output, width)),
        ("output_norm.weight", (width,), F32, struct.pack(f"<{width}f", *[1.0] * width)),
    ]
    ones = struct.pack(f"<{width}f", *[1.0] * width)
    zeros = bytes(2 * feed_forward * width)
    for number, layer in enumerate(blocks):
        name = f"blk.{number}.{{}}.weight".format
        tensors += [(name(norm), (width,), F32, ones) for norm in ("attn_norm", "ffn_norm")]
        tensors += [(name(f"attn_{part}"), (width, HEAD), F16, _f16(layer[part], width)) for part in ("q", "k", "v")]
        tensors.append((name("attn_output"), (HEAD, width), F16, _f16(layer["output"], HEAD)))
        tensors += [(name(part), (width, feed_forward), F16, zeros) for part in ("ffn_gate", "ffn_up")]
        tensors.append((name("ffn_down"), (feed_forward, width), F16, zeros))
    return file(metadata, tensors)


def fields(
    vocabulary: Vocabulary, width: int, blocks: int, feed_forward: int, template: str
) -> list[tuple[str, int, object]]:
    """The metadata of its header: key, type, value. Arrays have the type of their items beside them."""
    ids = vocabulary.id
    return [
        ("general.architecture", STRING, "llama"),
        ("general.name", STRING, "tiny copy circuit"),
        (
            "general.description",
            STRING,
            "computed weights: copies a request into a tool call; no language model",
        ),
        ("general.file_type", UINT32, F16),
        ("llama.context_length", UINT32, CONTEXT_TOKENS),
        ("llama.embedding_length", UINT32, width),
        ("llama.block_count", UINT32, blocks),
        ("llama.feed_forward_length", UINT32, feed_forward),
        ("llama.attention.head_count", UINT32, 1),
        ("llama.attention.head_count_kv", UINT32, 1),
        ("llama.attention.key_length", UINT32, HEAD),
        ("llama.attention.value_length", UINT32, HEAD),
        ("llama.rope.dimension_count", UINT32, HEAD),
        ("llama.rope.freq_base", FLOAT32, ROPE_BASE),
        ("llama.attention.layer_norm_rms_epsilon", FLOAT32, NORM_EPSILON),
        ("llama.vocab_size", UINT32, len(vocabulary.tokens)),
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, "gpt-2"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, vocabulary.tokens)),
        ("tokenizer.ggml.token_type", ARRAY, (INT32, vocabulary.types)),
        ("tokenizer.ggml.merges", ARRAY, (STRING, vocabulary.merges)),
        ("tokenizer.ggml.eos_token_id", UINT32, ids["EOS"]),
        ("tokenizer.ggml.padding_token_id", UINT32, ids["EOT"]),
        ("tokenizer.ggml.add_bos_token", BOOL, False),
        ("tokenizer.chat_template", STRING, template),
    ]


def file(
    metadata: Sequence[tuple[str, int, object]], tensors: Sequence[tuple[str, Sequence[int], int, bytes]]
) -> bytes:
    """A GGUF file of metadata (key, type, value) and tensors (name, dimensions, type, data)."""
    head = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, kind, value in metadata:
        head += _text(key) + struct.pack("<I", kind) + _value(kind, value)
    at = 0
    for name, shape, kind, data in tensors:
        head += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, at)
        at += len(data) + -len(data) % ALIGNMENT
    head += bytes(-len(head) % ALIGNMENT)
    return bytes(head) + b"".join(data + bytes(-len(data) % ALIGNMENT) for *_, data in tensors)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(kind: int, value: object) -> bytes:
    if kind == ARRAY:
        assert isinstance(value, tuple)
        inner, items = value
        return struct.pack("<IQ", inner, len(items)) + b"".join(_value(inner, item) for item in items)
    if kind == STRING:
        return _text(str(value))
    return struct.pack({UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?"}[kind], value)


def _f16(rows: Iterable[Row], width: int) -> bytes:
    data = bytearray()
    for row in rows:
        line = bytearray(2 * width)
        for at, value in row.items():
            struct.pack_into("<e", line, 2 * at, value)
        data += line
    return bytes(data)
