"""A model's reply, whichever API it came by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply. calls: tool calls with name, id and input. input_tokens, cached_tokens: the prompt's, as the server
    counted them; reports_cache: whether it counts cached ones. raw: the whole text that was received.
    """

    status: int
    text: str
    calls: tuple[dict[str, Any], ...]
    stop: str
    input_tokens: int
    cached_tokens: int
    raw: str
    reports_cache: bool = False

    @property
    def first_call(self) -> dict[str, Any]:
        """The first tool call; empty if there is none."""
        return self.calls[0] if self.calls else {}
