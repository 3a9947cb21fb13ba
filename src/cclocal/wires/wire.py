"""What every wire offers, and a model's reply, whichever API it came by."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

#: What is sent or received as JSON: a request, a message, a tool.
Body = dict[str, Any]
#: What a server refuses: a prompt beyond its window, a picture that the model cannot see, its own key.
Meaning = Literal["too long", "no pictures", "wrong key"]


@dataclass(frozen=True, slots=True)
class Calls:
    """The tools by which an agent runs a command and writes a file.

    run: a name and the parameter for the command. write: a name and the parameters for path and content; empty if the
    agent writes files by commands.
    """

    run: tuple[str, str]
    write: tuple[str, ...] = ()

    def ask_to_write(self, path: str, content: str) -> str:
        """How a user asks for a file."""
        return f"Create the file {path} with content: {content}" if self.write else f"Run the command: {content}"

    def written(self, path: str, content: str) -> Body:
        """The input of the call that does it."""
        return dict(zip(self.write[1:], (path, content), strict=True)) if self.write else {self.run[1]: content}


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


_INVALID = "invalid_request_error"


def errors(too_long: str) -> Mapping[Meaning, dict[str, str]]:
    """How an agent is told what an engine refuses, in Anthropic's words. `too_long`: the kind of that error."""
    rows: tuple[tuple[Meaning, str, str], ...] = (
        ("too long", too_long, r"prompt is too long: \g<tokens> tokens > \g<window> maximum"),
        ("wrong key", _INVALID, "The model server refuses its key. Was it changed there?"),
        ("no pictures", _INVALID, "Could not process image: the model cannot see it"),
    )
    return {meaning: {"becomes": "400 Bad Request", "kind": kind, "message": words} for meaning, kind, words in rows}


#: Claude Code compacts after the first, and after the last it takes the picture out of the conversation.
ANTHROPIC_ERRORS = errors(_INVALID)
#: pi compacts after the first, by its words; Codex after none (docs/agents.md).
OPENAI_ERRORS = errors("context_length_exceeded")


def json_or_none(text: str) -> Any:
    """What a JSON text says; None if it is none, or is nested too deeply to be read."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def events(text: str) -> Iterator[Body]:
    """The data of a stream's events, those that are JSON objects."""
    for line in text.splitlines():
        found = json_or_none(line[6:]) if line.startswith("data: ") else None
        if isinstance(found, dict):
            yield found


def text_of(content: Any) -> str:
    """The text of a message's content, which is a text or a list of blocks."""
    if isinstance(content, str):
        return content
    return "".join(str(block.get("text") or "") for block in content if isinstance(block, dict) and "text" in block)


def pictures_of(content: Any) -> list[str]:
    """The pictures of a message's content, as data URLs."""
    blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    sources = [block["source"] for block in blocks if block.get("type") == "image"]
    return [f"data:{source['media_type']};base64,{source['data']}" for source in sources]


def as_function(tool: Mapping[str, Any]) -> Body:
    """A tool in the neutral form as one of OpenAI's chat API."""
    function = {"name": tool.get("name", ""), "description": tool.get("description", "")}
    return {"type": "function", "function": {**function, "parameters": tool.get("input_schema", {})}}


def beginning(chat: Mapping[str, Any]) -> Body:
    """Of a request of the chat API what comes before the first reply: to the first user message, without pictures."""
    kept: list[Body] = []
    for message in chat["messages"]:
        content = message["content"]
        if isinstance(content, list):
            content = [block for block in content if block.get("type") == "text"]
        kept.append({**message, "content": content})
        if message["role"] == "user":
            break
    return {**chat, "messages": kept}


def called(id_: Any, name: Any, arguments: Any) -> Body:
    """A tool call in the neutral form. Its input is None if the arguments are not whole: cut off, they are no input."""
    return {"type": "tool_use", "id": id_, "name": name, "input": json_or_none(arguments or "null")}


class Wire(Protocol):
    """What a wire's module offers.

    Messages come in a neutral form, Anthropic's: {"role": user, assistant or system, "content": a text, or blocks
    {"type": "text", "text"}, {"type": "image", "source": {"type": "base64", "media_type", "data"}},
    {"type": "tool_use", "id", "name", "input"} and {"type": "tool_result", "tool_use_id", "content"}}; tools as
    {"name", "description", "input_schema"}.
    """

    NAME: str
    #: the path of a message, and of a question for its size in tokens; "" = there is none
    PATH: str
    COUNT_PATH: str
    #: what of an agent's request decides its prompt
    REQUEST_KEYS: tuple[str, ...]
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

    def as_chat(self, request: Mapping[str, Any]) -> Body:
        """A request as llama.cpp's server converts it for its chat template: {"messages", "tools"} of OpenAI's API."""

    def has_late_system(self, request: Mapping[str, Any]) -> bool:
        """Whether a request has a system message that is not its first message: strict chat templates refuse it."""

    def parts(self, request: Mapping[str, Any]) -> tuple[str, list[Body], Any]:
        """(the system prompt of a request, its tools, its other messages)."""
