"""The APIs that agents and servers speak, each a module of pure functions.

Readiness, remote servers, checks and the prompt cache all send their messages through a wire, so that an agent that
speaks another API needs no change there.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Protocol

from cclocal.wires import anthropic
from cclocal.wires.reply import Body, Reply


class Wire(Protocol):
    """What a wire's module offers."""

    NAME: str
    #: the path of a message, and of a question for its size in tokens
    PATH: str
    COUNT_PATH: str

    def one_token(self, model: str) -> Body:
        """The body of the shortest message that makes a server compute."""

    def ahead(self, request: Body, model: str) -> Body:
        """The body that has a recorded request of an agent's read ahead: one token, as a stream."""

    def body(
        self, model: str, system: str, tools: list[Body], messages: list[Body], out_tokens: int, *, stream: bool
    ) -> Body:
        """The body of a message in a conversation."""

    def is_reply(self, status: int, body: Any) -> bool:
        """Whether an answer to `one_token` is a message."""

    def read(self, status: int, text: str, *, stream: bool) -> Reply:
        """A reply, put together the same way whether it was streamed or not."""


WIRES: MappingProxyType[str, Wire] = MappingProxyType({anthropic.NAME: anthropic})
