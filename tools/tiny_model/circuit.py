"""The circuit: its vocabulary and its weights as sparse rows, independent of the file format.

Architecture: a plain `llama` with six layers of one head and a feed-forward of zero. Layers 0-2 bring the codes
of the previous 1, 2 and 4 tokens to each position (RoPE alone makes an attention score that depends on nothing but
the distance). Layer 3 finds, at the start of the reply, the latest marker ("Create the file ", a tool's result, …)
and chooses the reply's first token; in a call it finds the tool of that kind that is offered. To every other token it
tells whether it stands in the path or in the content of a call. Layer 4 tells the same of a request. Layer 5 is an
induction head: it finds the place in the same part whose preceding 7 tokens match the last 7, and puts out the token
that stands there.
Limits: one call a turn; and a run of seven or more tokens that occurs twice in one content may be continued from the
wrong place.
"""

from __future__ import annotations

from math import cos, sin, sqrt
from pathlib import Path

#: Dimensions of a token's code, code blocks per position, the head, and the RoPE base (so large that the slow
#: half of the pairs does not rotate within any context, and can carry content instead of position).
CODE, BLOCKS, HEAD, ROPE_BASE = 24, 8, 256, 1e30
#: The constant that dominates the residual stream, so that RMS normalisation is the same at every position.
CONSTANT = 512.0
CONTEXT_TOKENS = 131072
NORM_EPSILON = 1e-6
FEED_FORWARD = 32
#: Pairs that rotate fast enough to distinguish positions, and the first dimension that carries content.
ROTATING, CONTENT = 22, 52
#: The dimension by which a flag is found.
PLACE = CONTENT + 3

Row = dict[int, float]
Matrix = list[Row]

_HERE = Path(__file__).parent
CHAT_TEMPLATE = (_HERE / "template.jinja").read_text("utf-8")

#: Kinds of tokens, by GGUF's numbers.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


#: Tools by which agents write a file or run a command: name, and the parameter that comes first.
TOOLS = (
    ("WRITE", "Write", "file_path"),
    ("WRITE", "write", "path"),
    ("RUN", "Bash", "command"),
    ("RUN", "bash", "command"),
    ("RUN", "exec_command", "cmd"),
)


class Vocabulary:
    """256 bytes, the markers and reply parts, and 1200 ordinary BPE words (none with a character JSON escapes)."""

    def __init__(self) -> None:
        self.tokens: list[str] = [_BYTES[b] for b in range(256)]
        self.types: list[int] = [NORMAL] * 256
        self.id: dict[str, int] = {}
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
            # one token for a call that writes, two for one that runs, so that the second knows which it is
            ("CALL_WRITE", '<tool_call>\n{"name": "', NORMAL),
            ("CALL_RUN", '<tool_call>\n{"name"', NORMAL),
            ("RUN_NAME", ': "', NORMAL),
            ("CONTENT", '", "content": "', NORMAL),
            ("CLOSE", '"}}\n</tool_call>', NORMAL),
            ("DONE", "Done.", NORMAL),
            ("CHAT", "I am a tiny test model.", NORMAL),
        ):
            self.id[name] = self.add(text if kind != NORMAL else letters_of(text), kind)
        self.escape = {
            byte: self.add(text, NORMAL)
            for byte, text in ((34, '\\"'), (92, "\\\\"), (10, "\\n"), (9, "\\t"), (13, "\\r"))
        }
        for _, name, parameter in TOOLS:
            self.id[name] = self.add(letters_of(f'{name}", "arguments": {{"{parameter}": "'), NORMAL)
            # the templates put one of these behind the description of each tool
            self.id[f"OFFERED {name}"] = self.add(f"<|tool:{name}|>", CONTROL)
        self.merges = (_HERE / "merges.txt").read_text("utf-8").split("\n")[:-1]
        self.words = [self.add(merge.replace(" ", ""), NORMAL) for merge in self.merges]
        while len(self.tokens) % 32:
            self.add(f"<unused{len(self.tokens)}>", UNUSED)

    def add(self, text: str, kind: int) -> int:
        self.tokens.append(text)
        self.types.append(kind)
        return len(self.tokens) - 1


#: A block: a token's code, then four flags that tell the induction head where a copy begins.
BLOCK = CODE + 4
AT_PATH, AT_CALL, AT_BODY, AT_CONTENT = CODE, CODE + 1, CODE + 2, CODE + 3
FLAG = 4.0
#: The residual stream: constant, BLOCKS blocks, then the output, the value to copy, the marker's value, the
#: marker's key and the reply's query.
OUT = 1 + BLOCKS * BLOCK
COPY = OUT + CODE
MARKER_VALUE = COPY + CODE
MARKER_KEY = MARKER_VALUE + CODE
REPLY_QUERY = MARKER_KEY + 1
#: … and of a call: which tool of its kind is offered (its value is a marker's value).
WRITE_KEY, WRITE_QUERY, RUN_KEY, RUN_QUERY = range(REPLY_QUERY + 1, REPLY_QUERY + 5)
#: … and in which part each token stands: behind which of the four flags, in their order.
PART = RUN_QUERY + 1
WIDTH = (PART + 4 + 31) // 32 * 32
RMS = sqrt((CONSTANT**2 + BLOCKS * CODE) / WIDTH)


def _block(k: int) -> int:
    return 1 + k * BLOCK


def code(token: int) -> list[float]:
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


def embeddings(vocabulary: Vocabulary) -> tuple[Matrix, Matrix, int]:
    ids, escape = vocabulary.id, vocabulary.escape
    size = len(vocabulary.tokens)
    embedding: Matrix = [{0: CONSTANT} for _ in range(size)]
    output: Matrix = [{} for _ in range(size)]

    def put(rows: Matrix, row: int, at: int, token: int, scale: float = 1.0) -> None:
        rows[row].update({at + i: scale * bit for i, bit in enumerate(code(token))})

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
    for _, name, _ in TOOLS:
        embedding[ids[name]][_block(0) + AT_CALL] = FLAG
    # the tool of its kind that is offered, else Claude Code's
    for query, key, token, usual in (
        (WRITE_QUERY, WRITE_KEY, ids["CALL_WRITE"], ids["Write"]),
        (RUN_QUERY, RUN_KEY, ids["RUN_NAME"], ids["Bash"]),
    ):
        embedding[token] |= {query: 1.0, key: 2.0}
        put(embedding, token, MARKER_VALUE, usual)
    for kind, name, _ in TOOLS:
        embedding[ids[f"OFFERED {name}"]][WRITE_KEY if kind == "WRITE" else RUN_KEY] = 8.0
        put(embedding, ids[f"OFFERED {name}"], MARKER_VALUE, ids[name])
    put(embedding, ids["CALL_RUN"], OUT, ids["RUN_NAME"], 4.0)
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
        ("CREATE", "CALL_WRITE", 1.005),
        ("WRITE", "CALL_WRITE", 1.005),
        ("RUN", "CALL_RUN", 1.005),
        ("EXEC", "CALL_RUN", 1.005),
        ("RESULT", "DONE", 1.005),
    ):
        embedding[ids[name]][MARKER_KEY] = strength * 8
        put(embedding, ids[name], MARKER_VALUE, ids[first])
    parts = ("EOS", "CALL_WRITE", "CALL_RUN", "RUN_NAME", "CONTENT", "CLOSE", "DONE", "CHAT")
    replies = [*(ids[name] for name in parts), *(ids[name] for _, name, _ in TOOLS)]
    for token in (*range(256), *replies, *vocabulary.words, *escape.values()):
        if token not in escape:
            put(output, token, OUT, token, CONSTANT / 8)
    return embedding, output, WIDTH


def layers(width: int) -> list[dict[str, Matrix]]:
    theta = [ROPE_BASE ** (-2 * i / HEAD) for i in range(HEAD // 2)]
    root = sqrt(HEAD)
    constant = CONSTANT / RMS

    def empty() -> dict[str, Matrix]:
        layer: dict[str, Matrix] = {part: [{} for _ in range(HEAD)] for part in "qkv"}
        layer["output"] = [{} for _ in range(width)]
        return layer

    def by_distance(layer: dict[str, Matrix], shift: int, gain: float) -> None:
        """A score that depends on the distance alone, and is largest at `shift`."""
        a = sqrt(gain * root)
        for i in range(ROTATING):
            layer["q"][2 * i][0] = a * cos(-shift * theta[i]) / constant
            layer["q"][2 * i + 1][0] = a * sin(-shift * theta[i]) / constant
            layer["k"][2 * i][0] = a / constant

    found = []
    for shift in (1, 2, 4):
        layer = empty()
        by_distance(layer, shift, 60.0)
        for i in range(shift * BLOCK):
            layer["v"][i][_block(0) + i] = 1.0
            layer["output"][_block(shift) + i][i] = RMS
        found.append(layer)

    # weights that double from pair to pair make what is nearer win at every distance up to 3,000 tokens
    nearest = {i: sqrt(2 ** (i - 3) * root) for i in range(5, 14)}

    def tell_part(layer: dict[str, Matrix], flags: tuple[tuple[int, int, float], ...]) -> None:
        """Tell each token behind which flag it stands: (flag, how many tokens behind it, an advantage over others).

        Flags may be hardly farther away than those that follow them, which their advantage makes up for.
        """
        for i, near in nearest.items():
            layer["q"][2 * i][0] = near / constant
            for flag, block, _ in flags:
                layer["k"][2 * i][_block(block) + flag] = near * RMS / FLAG
        pull = sqrt(2600 * root)
        layer["q"][PLACE][0] = pull / constant
        for flag, block, advantage in flags:
            layer["k"][PLACE][_block(block) + flag] = (1 + advantage / 2600) * pull * RMS / FLAG
            layer["v"][CODE + flag][_block(block) + flag] = 1.0
            layer["output"][PART + flag - CODE][CODE + flag] = RMS

    choose = empty()
    tell_part(choose, ((AT_CALL, 0, 0.0), (AT_CONTENT, 0, 6.0)))
    for row, (query, key, gain) in enumerate(
        ((REPLY_QUERY, MARKER_KEY, 4000), (WRITE_QUERY, WRITE_KEY, 6000), (RUN_QUERY, RUN_KEY, 6000)), CONTENT
    ):
        # instead of their part
        for weights in choose["q"]:
            if 0 in weights:
                weights[query] = -weights[0] * CONSTANT
        pull = sqrt(gain * root * RMS**2 / 8)
        choose["q"][row][query] = pull
        choose["k"][row][key] = pull
        for i, near in nearest.items():
            choose["q"][2 * i][query] += near * RMS
            choose["k"][2 * i][key] = near * RMS / 8
    for i in range(CODE):
        choose["v"][i][MARKER_VALUE + i] = 1.0
        choose["output"][OUT + i][i] = 3 * RMS
    found.append(choose)

    request = empty()
    # where a call begins the request has ended
    tell_part(request, ((AT_PATH, 1, 0.0), (AT_BODY, 1, 6.0), (AT_CALL, 0, 12.0)))
    request["output"][PART + AT_CALL - CODE] = {}
    found.append(request)

    induction = empty()
    for i in range(5, ROTATING):
        # among equal matches the nearest: the score falls by the logarithm of the distance, without ripples as the
        # weights of the fast pairs rise from pair to pair
        weight = 5 * min(1.0, 2.0 ** (i - 10))
        nearer = sqrt(weight * root)
        induction["q"][2 * i][0] = induction["k"][2 * i][0] = nearer / constant
        # where a copy begins, no copied tokens precede it that could match, so there the distance counts more
        more = (25.0 if i >= 10 else 15.0) / weight - 1
        for k in range(BLOCKS - 1):
            for begins in (AT_CALL, AT_CONTENT):
                induction["q"][2 * i][_block(k) + begins] = more * nearer * RMS / FLAG
    row = CONTENT
    for k in range(BLOCKS - 1):
        match = sqrt(60 * 0.8**k * root * RMS**2 / CODE)
        flag = sqrt(200 * root) * RMS / FLAG
        for i in range(CODE):
            induction["q"][row][_block(k) + i] = match
            induction["k"][row][_block(k + 1) + i] = match
            row += 1
        for here, there in ((AT_CALL, AT_PATH), (AT_CONTENT, AT_BODY)):
            induction["q"][row][_block(k) + here] = flag
            induction["k"][row][_block(k + 1) + there] = flag
            row += 1
    for here, there in ((AT_CALL, AT_PATH), (AT_CONTENT, AT_BODY)):
        induction["q"][row][PART + here - CODE] = flag
        induction["k"][row][PART + there - CODE] = flag
        row += 1
    for i in range(CODE):
        induction["v"][i][COPY + i] = 1.0
        induction["output"][OUT + i][i] = RMS
    found.append(induction)
    return found


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + n) for n, b in enumerate(others)}


_BYTES = _byte_letters()


def letters_of(text: str) -> str:
    return "".join(_BYTES[b] for b in text.encode())
