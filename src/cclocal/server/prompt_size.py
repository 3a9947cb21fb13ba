"""How large prompts are, for a server that cuts one beyond its window without a word (Ollama), so that a relay can
refuse it instead. Standard library only, because the relay imports it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from cclocal.server.framing import Refused

#: The prompt's tokens in an answer's usage: of Anthropic's API and of OpenAI's.
_USAGE = re.compile(rb'"(?:input|prompt)_tokens":\s*(\d+)')
#: As many bytes of an answer are looked at again with its next piece, as a count may be cut in two.
_OVERLAP_BYTES = 40


class PromptSize:
    """Learns from each answer how many tokens a byte of a request is, and refuses what would be cut.

    Options: `cuts_beyond`, the window in tokens, or 0 for a server that refuses by itself; `too_long`, by
    the path of an API the refusal's status, kind and message, a template of the groups `tokens` and `window`.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.window: int = options.get("cuts_beyond", 0)
        self.refusals: Mapping[str, Mapping[str, str]] = options.get("too_long", {})
        self.tokens_per_byte = 0.0
        #: a request of this size was cut
        self.cut_bytes = 0

    def check(self, path: str, body: bytes | bytearray) -> None:
        """Raise Refused if this request would be cut. One with a picture is let through: its bytes are no text."""
        refusal = self.refusals.get(path)
        if not self.window or not refusal or b"base64" in body:
            return
        tokens = round(len(body) * self.tokens_per_byte)
        if self.cut_bytes and len(body) >= self.cut_bytes:
            tokens, how = max(tokens, self.window + 1), "an earlier one of this size was cut by the server"
        else:
            how = "by its bytes, and what a byte was in earlier turns"
        if tokens > self.window:
            said = refusal["message"].replace(r"\g<tokens>", str(tokens)).replace(r"\g<window>", str(self.window))
            raise Refused(refusal["becomes"], refusal["kind"], f"{said} ({how})")

    def learner(self, request_bytes: int) -> Callable[[bytes], None]:
        """What reads the usage in the pieces of one answer, to a request of that size."""
        end = b""

        def learn(piece: bytes) -> None:
            nonlocal end
            if not self.window or not request_bytes:
                return
            text = end + piece
            end = text[-_OVERLAP_BYTES:]
            tokens = max((int(number) for number in _USAGE.findall(text)), default=0)
            if tokens >= self.window:
                # a prompt that was cut counts as the whole window
                self.cut_bytes = min(self.cut_bytes or request_bytes, request_bytes)
            elif tokens:
                self.tokens_per_byte = tokens / request_bytes

        return learn
