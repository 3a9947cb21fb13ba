"""The circuit with eyes: two files with which the whole chain of a picture can be seen to work. No vision model.

    Look at the picture: P  →  Read {file_path: P}
    (a picture)             →  I see red. | I see green. | I see blue. | I see black.

The projector (llama.cpp's type gemma3, without layers) makes one token of a picture: the mean of its patches, an RMS
norm, one matrix. The mean is (64, red, green, blue), so that the norm is the same for every picture, and the matrix
writes the circuit's marker with the sentence to say. A server that drops the picture answers something else.
"""

from __future__ import annotations

import struct
from math import sqrt

from tools.tiny_model import as_gguf
from tools.tiny_model.circuit import (
    AT_CALL,
    AT_PATH,
    CHAT_TEMPLATE,
    CODE,
    CONSTANT,
    FEED_FORWARD,
    FLAG,
    MARKER_KEY,
    MARKER_VALUE,
    NORMAL,
    OUT,
    UNUSED,
    USER_DEFINED,
    WIDTH,
    Matrix,
    code,
    embeddings,
    letters_of,
)
from tools.tiny_model.circuit import Vocabulary as Blind

COLOURS = ("RED", "GREEN", "BLUE", "BLACK")
#: A picture is scaled to SIDE × SIDE pixels, cut into patches, and each square of MERGE × MERGE patches is one token.
SIDE, PATCH, MERGE, FEATURES = 56, 14, 4, 32
#: Beside it the colours, 0 to 1, hardly change the length of a picture's mean.
BIG = 64.0
#: How strong the marker of a picture is, and that of a request to look at one: of equals the nearer counts, and a
#: little strength is a little nearness. A picture goes before the tool's result that follows it at once (from 1.006
#: on); a request behind a picture goes before it (up to 1.008).
PICTURE, REQUEST = 1.008, 1.005
#: The share of black in each sentence: what is left where no colour is.
DARK = 0.4
#: The template shows where a picture stood: llama.cpp gives it parts of a type of its own.
TEMPLATE = CHAT_TEMPLATE.replace("p.type == 'text'", "p.type in ('text', 'media_marker')")
#: The first block of the residual stream.
_FIRST = 1


class Vocabulary(Blind):
    """With what is said of pictures."""

    def __init__(self) -> None:
        super().__init__()
        while self.types[-1] == UNUSED:
            self.tokens.pop()
            self.types.pop()
        self.id["LOOK"] = self.add("Look at the picture: ", USER_DEFINED)
        call = '<tool_call>\n{"name": "Read", "arguments": {"file_path": "'
        self.id["CALL_READ"] = self.add(letters_of(call), NORMAL)
        for colour in COLOURS:
            self.id[colour] = self.add(letters_of(f"I see {colour.lower()}."), NORMAL)
        while len(self.tokens) % 32:
            self.add(f"<unused{len(self.tokens)}>", UNUSED)


def model() -> bytes:
    """The GGUF file of the language side."""
    vocabulary = Vocabulary()
    embedding, output, _ = embeddings(vocabulary)
    ids = vocabulary.id

    def put(rows: Matrix, row: int, at: int, token: int, scale: float) -> None:
        rows[row].update({at + i: scale * bit for i, bit in enumerate(code(token))})

    # what “Run the command: ” is to the call of a shell
    embedding[ids["LOOK"]] |= {_FIRST + AT_PATH: FLAG, MARKER_KEY: REQUEST * 8}
    put(embedding, ids["LOOK"], MARKER_VALUE, ids["CALL_READ"], 1.0)
    embedding[ids["CALL_READ"]][_FIRST + AT_CALL] = FLAG
    for name in COLOURS:
        # a whole reply, as “Done.” is
        put(embedding, ids[name], OUT, ids["EOS"], 4.0)
    for name in (*COLOURS, "CALL_READ"):
        put(output, ids[name], OUT, ids[name], CONSTANT / 8)
    return as_gguf.gguf(FEED_FORWARD, TEMPLATE, vocabulary, (embedding, output, WIDTH))


def projector() -> bytes:
    """The GGUF file of the projector: one token for a picture, everything linear in (BIG, red, green, blue)."""
    ids = Vocabulary().id
    sentence = {name: code(ids[name]) for name in COLOURS}
    matrix = [[0.0] * FEATURES for _ in range(WIDTH)]
    # what the norm makes of 1
    unit = sqrt(FEATURES) / BIG
    matrix[0][0] = CONSTANT / unit / BIG
    matrix[MARKER_KEY][0] = PICTURE * 8 / unit / BIG
    for i in range(CODE):
        matrix[MARKER_VALUE + i][0] = DARK * sentence["BLACK"][i] / unit / BIG
        for channel, name in enumerate(COLOURS[:3]):
            matrix[MARKER_VALUE + i][1 + channel] = sentence[name][i] / unit
    # the mean of each colour: out, in, y, x
    kernel = [0.0] * (PATCH * PATCH * 3 * FEATURES)
    for channel in range(3):
        at = ((1 + channel) * 3 + channel) * PATCH * PATCH
        kernel[at : at + PATCH * PATCH] = [1 / PATCH**2] * PATCH**2
    patches = (SIDE // PATCH) ** 2

    def floats(numbers: list[float]) -> bytes:
        return struct.pack(f"<{len(numbers)}f", *numbers)

    f32 = as_gguf.F32
    # the engine turns the last one round
    turned = [matrix[row][feature] for feature in range(FEATURES) for row in range(WIDTH)]
    return as_gguf.file(
        _metadata(),
        [
            ("v.patch_embd.weight", (PATCH, PATCH, 3, FEATURES), f32, floats(kernel)),
            ("v.patch_embd.bias", (FEATURES,), f32, floats([BIG] + [0.0] * (FEATURES - 1))),
            ("v.position_embd.weight", (FEATURES, patches), f32, bytes(4 * FEATURES * patches)),
            ("mm.soft_emb_norm.weight", (FEATURES,), f32, floats([1.0] * FEATURES)),
            ("mm.input_projection.weight", (WIDTH, FEATURES), f32, floats(turned)),
        ],
    )


def _metadata() -> list[tuple[str, int, object]]:
    integer, number, text = as_gguf.UINT32, as_gguf.FLOAT32, as_gguf.STRING
    return [
        ("general.architecture", text, "clip"),
        # by which Ollama knows it
        ("general.type", text, "projector"),
        ("general.name", text, "tiny projector"),
        ("general.description", text, "computed weights: tells a picture's mean colour; no vision model"),
        ("clip.has_vision_encoder", as_gguf.BOOL, True),
        ("clip.projector_type", text, "gemma3"),
        ("clip.use_gelu", as_gguf.BOOL, True),
        ("clip.vision.image_size", integer, SIDE),
        ("clip.vision.patch_size", integer, PATCH),
        ("clip.vision.projector.scale_factor", integer, MERGE),
        ("clip.vision.embedding_length", integer, FEATURES),
        ("clip.vision.feed_forward_length", integer, FEATURES),
        ("clip.vision.block_count", integer, 0),
        ("clip.vision.projection_dim", integer, WIDTH),
        ("clip.vision.attention.head_count", integer, 1),
        ("clip.vision.attention.layer_norm_epsilon", number, 1e-6),
        ("clip.vision.image_mean", as_gguf.ARRAY, (number, [0.0] * 3)),
        ("clip.vision.image_std", as_gguf.ARRAY, (number, [1.0] * 3)),
    ]
