"""A model's reply, whichever API it came by."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

#: What is sent or received as JSON: a request, a message, a tool.
Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply. calls: tool calls with name, id and input. input_tokens, cached_tokens: the prompt's, as the server
    counted them, None where it does not count cached ones. raw: the whole text that was received.
    """

    status: int
    text: str
    calls: tuple[Body, ...]
    stop: str
    input_tokens: int
    cached_tokens: int | None
    raw: str

    @property
    def first_name(self) -> str:
        """The name of the first tool call; empty if there is none."""
        return str(self.calls[0].get("name")) if self.calls else ""

    @property
    def first_input(self) -> Body:
        """The input of the first tool call; empty if there is none."""
        return (self.calls[0].get("input") if self.calls else None) or {}

    def __str__(self) -> str:
        """Shortened to one line."""
        if self.status != 200:
            return f"status {self.status}: {self.raw[:80]}"
        calls = [f"{one.get('name')}({json.dumps(one.get('input'), ensure_ascii=False)[:50]})" for one in self.calls]
        return ", ".join(calls) or f"{self.stop or 'no stop reason'}: {self.text[:60]!r}"
