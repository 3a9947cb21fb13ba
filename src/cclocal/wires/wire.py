"""What every wire offers, and a model's reply, whichever API it came by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

#: What is sent or received as JSON: a request, a message, a tool.
Body = dict[str, Any]
#: What a server refuses: a prompt beyond its window, a picture that the model cannot see, its own key.
Meaning = Literal["too long", "no pictures", "wrong key"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """How an engine says that it refuses a request: a pattern of its error's text.

    That of "too long" has the groups `tokens` and `window`.
    """

    meaning: Meaning
    pattern: str


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


class Wire(Protocol):
    """What a wire's module offers."""

    NAME: str
    #: the path of a message, and of a question for its size in tokens
    PATH: str
    COUNT_PATH: str
    #: how an agent must be told what an engine refuses: {"becomes": status, "kind": …, "message": a template of groups}
    ERRORS: Mapping[Meaning, dict[str, str]]

    def one_token(self, model: str) -> Body:
        """The body of the shortest message that makes a server compute."""

    def ahead(self, request: Body, model: str) -> Body:
        """The body that has a recorded request of an agent's read ahead: one token, as a stream."""

    def body(
        self, model: str, system: str, tools: list[Body], messages: list[Body], out_tokens: int, *, stream: bool
    ) -> Body:
        """The body of a message in a conversation."""

    def is_reply(self, status: int, text: str) -> bool:
        """Whether an answer to `one_token` is a message."""

    def read(self, status: int, text: str, *, stream: bool) -> Reply:
        """A reply, put together the same way whether it was streamed or not."""
