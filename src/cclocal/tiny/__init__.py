"""The tiny model: a GGUF file whose weights are computed, not trained.

It is a copy circuit, no language model: it copies words of the request into a tool call, so that anyone can see
the whole chain (agent, server, tool, file on disk) work in seconds, offline, before downloading 18 GB.

    Create the file P with content: C   →  Write {file_path: P, content: C}
    Run the command: C                  →  Bash {command: C}
    Exec: C                             →  exec_command {cmd: C}
    (after a tool's result)             →  Done.
    anything else                       →  I am a tiny test model.

Architecture: a plain `llama` with five layers of one head and a feed-forward of zero. Layers 0-2 bring the codes
of the previous 1, 2 and 4 tokens to each position (RoPE alone makes an attention score that depends on nothing but
the distance). Layer 3 is an induction head: it finds the place whose preceding 7 tokens match the last 7 and puts
out the token that stands there. Layer 4 finds, at the start of the reply, the latest marker ("Create the file ",
a tool's result, …) and chooses the reply's first token. Limits: one call a turn, and a run of seven or more tokens
that occurs twice in a request may be continued from the wrong place.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from math import cos, sin, sqrt
from pathlib import Path

from cclocal.files import make_folder, write_private

#: Dimensions of a token's code, code blocks per position, the head, and the RoPE base (so large that the slow
#: half of the pairs does not rotate within any context, and can carry content instead of position).
CODE, BLOCKS, HEAD, ROPE_BASE = 24, 8, 256, 1e30
#: The constant that dominates the residual stream, so that RMS normalisation is the same at every position.
CONSTANT = 64.0
CONTEXT_TOKENS = 131072
FEED_FORWARD = 32
#: Pairs that rotate fast enough to tell positions apart, and the first dimension that carries content.
ROTATING, CONTENT = 22, 52

Row = dict[int, float]
Matrix = list[Row]

_HERE = Path(__file__).parent


def path_in(folder: Path) -> Path:
    """Where `build` puts the file. The name carries a checksum of the recipe: a new one never meets an old file."""
    return folder / f"tiny-copy-circuit-{recipe_id()}.gguf"


def build(folder: Path) -> Path:
    """Write the model into `folder` unless it is there, and return its path (5.6 MB, under a second)."""
    path = path_in(folder)
    if not path.exists():
        make_folder(folder)
        write_private(path, gguf())
    return path


def ollama_template() -> str:
    """The same conversation format for Ollama, which reads Go templates and not the file's own."""
    return (_HERE / "template.gotmpl").read_text("utf-8")


def recipe_id() -> str:
    """Eight hex digits that change when the recipe does."""
    digest = hashlib.sha256()
    for source in ("__init__.py", "merges.txt", "template.jinja"):
        digest.update((_HERE / source).read_bytes())
    return digest.hexdigest()[:8]


class _Vocabulary:
    """256 bytes, the markers and reply parts, and 1200 ordinary BPE words (none with a character JSON escapes)."""

    def __init__(self) -> None:
        self.tokens: list[str] = [_BYTES[b] for b in range(256)]
        self.types: list[int] = [NORMAL] * 256
        self.id: dict[str, int] = {}
        call = '<tool_call>\n{"name": "%s", "arguments": {"%s": "'
        for name, text, kind in (
            ("EOT", "<|endoftext|>", CONTROL),
            ("START", "<|im_start|>", CONTROL),
            ("EOS", "<|im_end|>", CONTROL),
            ("USER", "<|im_start|>user\n", CONTROL),
            ("REPLY", "<|im_start|>assistant\n", CONTROL),
            ("RESULT", "</tool_response>", USER_DEFINED),
            ("CREATE", "Create the file ", USER_DEFINED),
            ("WRITE", "Write the file ", USER_DEFINED),
            ("WITH", " with content: ", USER_DEFINED),
            ("CONTAINING", " containing: ", USER_DEFINED),
            ("END", " [end]", USER_DEFINED),
            ("RUN", "Run the command: ", USER_DEFINED),
            ("EXEC", "Exec: ", USER_DEFINED),
            ("CALL_WRITE", call % ("Write", "file_path"), NORMAL),
            ("CALL_BASH", call % ("Bash", "command"), NORMAL),
            ("CALL_EXEC", call % ("exec_command", "cmd"), NORMAL),
            ("CONTENT", '", "content": "', NORMAL),
            ("CLOSE", '"}}\n</tool_call>', NORMAL),
            ("DONE", "Done.", NORMAL),
            ("CHAT", "I am a tiny test model.", NORMAL),
        ):
            self.id[name] = self.add(text if kind != NORMAL else _unicode(text), kind)
        self.escape = {
            byte: self.add(text, NORMAL)
            for byte, text in ((34, '\\"'), (92, "\\\\"), (10, "\\n"), (9, "\\t"), (13, "\\r"))
        }
        self.merges = (_HERE / "merges.txt").read_text("utf-8").split("\n")[:-1]
        self.words = [self.add(merge.replace(" ", ""), NORMAL) for merge in self.merges]
        while len(self.tokens) % 32:
            self.add(f"<unused{len(self.tokens)}>", UNUSED)

    def add(self, text: str, kind: int) -> int:
        self.tokens.append(text)
        self.types.append(kind)
        return len(self.tokens) - 1


def gguf() -> bytes:
    """The whole file. The same bytes every time, on every machine."""
    vocabulary = _Vocabulary()
    embedding, output, width = _embeddings(vocabulary)
    layers = _layers(width)
    metadata = _metadata(vocabulary, width, len(layers))
    size = len(vocabulary.tokens)
    tensors: list[tuple[str, Sequence[int], int, bytes]] = [
        ("token_embd.weight", (width, size), F16, _f16(embedding, width)),
        ("output.weight", (width, size), F16, _f16(output, width)),
        ("output_norm.weight", (width,), F32, struct.pack(f"<{width}f", *[1.0] * width)),
    ]
    ones = struct.pack(f"<{width}f", *[1.0] * width)
    zeros = bytes(2 * FEED_FORWARD * width)
    for number, layer in enumerate(layers):
        name = f"blk.{number}.{{}}.weight".format
        tensors += [(name(norm), (width,), F32, ones) for norm in ("attn_norm", "ffn_norm")]
        tensors += [(name(f"attn_{part}"), (width, HEAD), F16, _f16(layer[part], width)) for part in ("q", "k", "v")]
        tensors.append((name("attn_output"), (HEAD, width), F16, _f16(layer["output"], HEAD)))
        tensors += [(name(part), (width, FEED_FORWARD), F16, zeros) for part in ("ffn_gate", "ffn_up")]
        tensors.append((name("ffn_down"), (FEED_FORWARD, width), F16, zeros))
    return _file(metadata, tensors)


# -- the circuit ------------------------------------------------------------------------------------------------

#: A block: a token's code, then four flags that tell the induction head where a copy begins.
BLOCK = CODE + 4
AT_PATH, AT_CALL, AT_BODY, AT_CONTENT = CODE, CODE + 1, CODE + 2, CODE + 3
FLAG = 4.0
#: The residual stream: constant, BLOCKS blocks, then what to put out, the value to copy, the marker's value, the
#: marker's key and the reply's query.
OUT = 1 + BLOCKS * BLOCK
COPY = OUT + CODE
MARKER_VALUE = COPY + CODE
MARKER_KEY = MARKER_VALUE + CODE
REPLY_QUERY = MARKER_KEY + 1
WIDTH = (REPLY_QUERY + 1 + 31) // 32 * 32
RMS = sqrt((CONSTANT**2 + BLOCKS * CODE) / WIDTH)


def _block(k: int) -> int:
    return 1 + k * BLOCK


def _code(token: int) -> list[float]:
    """A word of the extended binary Golay code as ±1: any two differ in at least 8 of 24 places."""
    # an odd multiplier permutes the 4096 words, so neighbouring tokens get unrelated ones
    message = token * 2731 % 4096
    remainder = message << 11
    for bit in range(22, 10, -1):
        if remainder >> bit & 1:
            remainder ^= 0xC75 << (bit - 11)
    word = message << 11 | remainder
    bits = [word >> i & 1 for i in range(23)]
    return [1.0 - 2.0 * b for b in (*bits, sum(bits) & 1)]


def _embeddings(vocabulary: _Vocabulary) -> tuple[Matrix, Matrix, int]:
    ids, escape = vocabulary.id, vocabulary.escape
    size = len(vocabulary.tokens)
    embedding: Matrix = [{0: CONSTANT} for _ in range(size)]
    output: Matrix = [{} for _ in range(size)]

    def put(rows: Matrix, row: int, at: int, token: int, scale: float = 1.0) -> None:
        rows[row].update({at + i: scale * bit for i, bit in enumerate(_code(token))})

    for byte in range(256):
        put(embedding, byte, _block(0), byte)
        put(embedding, byte, COPY, escape.get(byte, byte))
    for byte, token in escape.items():
        # an escaped character in the reply counts as the character itself, so the copy goes on behind it
        put(embedding, token, _block(0), byte)
        put(embedding, token, COPY, token)
    for word in vocabulary.words:
        put(embedding, word, _block(0), word)
        put(embedding, word, COPY, word)
    for name in ("CREATE", "WRITE", "RUN", "EXEC"):
        embedding[ids[name]][_block(0) + AT_PATH] = FLAG
    for name in ("CALL_WRITE", "CALL_BASH", "CALL_EXEC"):
        embedding[ids[name]][_block(0) + AT_CALL] = FLAG
    embedding[ids["CONTENT"]][_block(0) + AT_CONTENT] = FLAG
    for name in ("WITH", "CONTAINING"):
        embedding[ids[name]][_block(0) + AT_BODY] = FLAG
        put(embedding, ids[name], COPY, ids["CONTENT"])
    for name in ("EOS", "END"):
        put(embedding, ids[name], COPY, ids["CLOSE"])
    for name in ("CLOSE", "DONE", "CHAT"):
        put(embedding, ids[name], OUT, ids["EOS"], 4.0)
    put(embedding, ids["REPLY"], OUT, ids["CHAT"], 0.5)
    embedding[ids["REPLY"]][REPLY_QUERY] = 1.0
    for name, first, strength in (
        ("USER", "CHAT", 1.0),
        ("CREATE", "CALL_WRITE", 1.03),
        ("WRITE", "CALL_WRITE", 1.03),
        ("RUN", "CALL_BASH", 1.03),
        ("EXEC", "CALL_EXEC", 1.03),
        ("RESULT", "DONE", 1.03),
    ):
        embedding[ids[name]][MARKER_KEY] = strength * 8
        put(embedding, ids[name], MARKER_VALUE, ids[first])
    replies = [ids[n] for n in ("EOS", "CALL_WRITE", "CALL_BASH", "CALL_EXEC", "CONTENT", "CLOSE", "DONE", "CHAT")]
    for token in (*range(256), *replies, *vocabulary.words, *escape.values()):
        if token not in escape:
            put(output, token, OUT, token, 8.0)
    return embedding, output, WIDTH


def _layers(width: int) -> list[dict[str, Matrix]]:
    theta = [ROPE_BASE ** (-2 * i / HEAD) for i in range(HEAD // 2)]
    root = sqrt(HEAD)
    constant = CONSTANT / RMS

    def empty() -> dict[str, Matrix]:
        layer: dict[str, Matrix] = {part: [{} for _ in range(HEAD)] for part in "qkv"}
        layer["output"] = [{} for _ in range(width)]
        return layer

    def by_distance(layer: dict[str, Matrix], shift: int, gain: float, first: int = 0) -> None:
        """A score that depends on the distance alone: shift picks that offset; first > 0 prefers what is near."""
        a = sqrt(gain * root)
        for i in range(first, ROTATING):
            layer["q"][2 * i][0] = a * cos(-shift * theta[i]) / constant
            layer["q"][2 * i + 1][0] = a * sin(-shift * theta[i]) / constant
            layer["k"][2 * i][0] = a / constant

    layers = []
    for shift in (1, 2, 4):
        layer = empty()
        by_distance(layer, shift, 60.0)
        for i in range(shift * BLOCK):
            layer["v"][i][_block(0) + i] = 1.0
            layer["output"][_block(shift) + i][i] = RMS
        layers.append(layer)

    induction = empty()
    by_distance(induction, 0, 5.0, first=5)
    row = CONTENT
    for k in range(BLOCKS - 1):
        match = sqrt(60 * 0.8**k * root * RMS**2 / CODE)
        flag = sqrt(200 * root) * RMS / FLAG
        for i in range(CODE):
            induction["q"][row][_block(k) + i] = match
            induction["k"][row][_block(k + 1) + i] = match
            row += 1
        for reply, request in ((AT_CALL, AT_PATH), (AT_CONTENT, AT_BODY)):
            induction["q"][row][_block(k) + reply] = flag
            induction["k"][row][_block(k + 1) + request] = flag
            row += 1
    for i in range(CODE):
        induction["v"][i][COPY + i] = 1.0
        induction["output"][OUT + i][i] = RMS
    layers.append(induction)

    choose = empty()
    by_distance(choose, 0, 20.0, first=5)
    pull = sqrt(500 * root * RMS**2 / 8)
    choose["q"][CONTENT][REPLY_QUERY] = pull
    choose["k"][CONTENT][MARKER_KEY] = pull
    for i in range(CODE):
        choose["v"][i][MARKER_VALUE + i] = 1.0
        choose["output"][OUT + i][i] = 3 * RMS
    layers.append(choose)
    return layers


# -- the file ---------------------------------------------------------------------------------------------------

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
F32, F16 = 0, 1
#: GGUF value types (the GGUF specification, v3)
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
ALIGNMENT = 32


def _metadata(vocabulary: _Vocabulary, width: int, layers: int) -> list[tuple[str, int, object]]:
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
        ("llama.block_count", UINT32, layers),
        ("llama.feed_forward_length", UINT32, FEED_FORWARD),
        ("llama.attention.head_count", UINT32, 1),
        ("llama.attention.head_count_kv", UINT32, 1),
        ("llama.attention.key_length", UINT32, HEAD),
        ("llama.attention.value_length", UINT32, HEAD),
        ("llama.rope.dimension_count", UINT32, HEAD),
        ("llama.rope.freq_base", FLOAT32, ROPE_BASE),
        ("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-6),
        ("llama.vocab_size", UINT32, len(vocabulary.tokens)),
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, "gpt-2"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, vocabulary.tokens)),
        ("tokenizer.ggml.token_type", ARRAY, (INT32, vocabulary.types)),
        ("tokenizer.ggml.merges", ARRAY, (STRING, vocabulary.merges)),
        ("tokenizer.ggml.eos_token_id", UINT32, ids["EOS"]),
        ("tokenizer.ggml.padding_token_id", UINT32, ids["EOT"]),
        ("tokenizer.ggml.add_bos_token", BOOL, False),
        ("tokenizer.chat_template", STRING, (_HERE / "template.jinja").read_text("utf-8")),
    ]


def _file(
    metadata: Sequence[tuple[str, int, object]], tensors: Sequence[tuple[str, Sequence[int], int, bytes]]
) -> bytes:
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


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + n) for n, b in enumerate(others)}


_BYTES = _byte_letters()


def _unicode(text: str) -> str:
    return "".join(_BYTES[b] for b in text.encode())
