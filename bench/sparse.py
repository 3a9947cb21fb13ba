"""GGUF files for measuring: header-only ones with the shapes of real models, and one of random weights."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

from cclocal.memory.gguf import BLOCKS, Header

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
ALIGNMENT = 32


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _kind(value: Any) -> int:
    return {bool: BOOL, int: UINT32, float: FLOAT32, str: STRING, list: ARRAY}[type(value)]


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<?", value)
    if isinstance(value, int):
        return struct.pack("<I", value)
    if isinstance(value, float):
        return struct.pack("<f", value)
    if isinstance(value, str):
        return _text(value)
    kind = INT32 if isinstance(value[0], int) and not isinstance(value[0], bool) else _kind(value[0])
    return struct.pack("<IQ", kind, len(value)) + b"".join(_value(item) for item in value)


def write(header: Header, path: Path, *, random_weights: bool = False) -> int:
    """Write a model of this header: without its weights, as a file with a hole, or with random ones. Returns its size.

    Random weights are Q8_0 blocks of a small scale and random bytes, one mebibyte of them over and over.
    """
    architecture = header.architecture
    embeddings = [tensor for tensor in header.tensors if tensor.name == "token_embd.weight"]
    vocabulary = {f"{architecture}.vocab_size": embedding.dims[1] for embedding in embeddings}
    # a template as agents need one
    template = {"tokenizer.chat_template": "{% for tool in tools %}{{ tool }}{% endfor %}"}
    metadata = {"tokenizer.ggml.model": "no_vocab", **template, **vocabulary, **header.metadata}
    head = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(header.tensors), len(metadata)))
    for key, value in metadata.items():
        head += _text(key) + struct.pack("<I", _kind(value)) + _value(value)
    at = 0
    for tensor in header.tensors:
        dims = tensor.dims
        head += _text(tensor.name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.kind, at)
        at += -(-tensor.size_bytes // ALIGNMENT) * ALIGNMENT
    head += bytes(-len(head) % ALIGNMENT)
    with path.open("wb") as out:
        out.write(head)
        if random_weights:
            for tensor in header.tensors:
                _fill(out, tensor.kind, tensor.size_bytes)
                out.write(bytes(-tensor.size_bytes % ALIGNMENT))
        out.truncate(len(head) + at)
    return len(head) + at


def _fill(out: Any, kind: int, size: int) -> None:
    if kind == 0:
        out.write(struct.pack("<f", 1.0) * (size // 4))
        return
    assert BLOCKS[kind] == (32, 34), "random weights are Q8_0"
    # a scale of about 0.0005 in f16, and 32 bytes
    block = b"".join(struct.pack("<H", 0x1000) + os.urandom(32) for _ in range(30_000))
    for start in range(0, size, len(block)):
        out.write(block[: min(len(block), size - start)])
