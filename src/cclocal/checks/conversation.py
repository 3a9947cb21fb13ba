"""A conversation with a running server, in the API of an agent and with the agent's own tools."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cclocal.wires.wire import Body, Calls, Reply, Wire

if TYPE_CHECKING:
    import httpx

#: Enough for each row's file and some words. A model that never ends a reply is cut here, in seconds or a minute.
_OUT_TOKENS = 512
#: Seconds for the first reply, when nothing is known of the model's speed: 512 tokens at less than one a second.
_FIRST_LIMIT_S = 900.0
#: Seconds for each later one: a multiple of the slowest so far, as a prompt may be longer, but not less than this.
_TIMES_SLOWEST, _LEAST_LIMIT_S = 5, 60.0


class TooSlowError(Exception):
    """A reply took longer than the model's speed explains."""


def _tool(name: str, description: str, *required: str, **optional: Body) -> Body:
    properties: Body = {**{key: {"type": "string"} for key in required}, **optional}
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return {"name": name, "description": description, "input_schema": schema}


@dataclass(frozen=True, slots=True)
class Server:
    """A running server, asked in the API of the agent."""

    client: httpx.Client
    wire: Wire
    calls: Calls
    model: str
    title: str
    context_tokens: int
    #: how many tool calls each reply had, and how many seconds it took
    calls_seen: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    first_limit_s: float = _FIRST_LIMIT_S

    @property
    def system(self) -> str:
        files = "when asked to create a file call {} with exactly the given path and content, "
        told = files.format(self.calls.write[0]) if self.calls.write else ""
        told += f"when asked to run a command call {self.calls.run[0]} with exactly that command."
        return f"You are a coding agent. Use the tools: {told} After a tool's result say Done."

    @property
    def tools(self) -> list[Body]:
        name, command = self.calls.run
        # a union of types, as many tools of MCP servers have
        run = _tool(name, "Runs a command.", command, timeout={"anyOf": [{"type": "number"}, {"type": "null"}]})
        write, *needed = self.calls.write or ("",)
        return [_tool(write, "Writes a file.", *needed), run] if write else [run]

    def ask(self, messages: list[Body], *, out_tokens: int = _OUT_TOKENS, stream: bool = False) -> Reply:
        """The reply to a conversation. Raises TooSlowError if it takes too long."""
        body = self.wire.body(self.model, self.system, self.tools, messages, out_tokens, stream=stream)
        status, text = self._post(body)
        answer = self.wire.read(status, text, stream=stream)
        self.calls_seen.append(len(answer.calls))
        return answer

    def _post(self, body: Body) -> tuple[int, str]:
        import httpx

        limit_s = max(_LEAST_LIMIT_S, _TIMES_SLOWEST * max(self.seconds)) if self.seconds else self.first_limit_s
        began, pieces = time.monotonic(), []
        timeout = self.client.timeout
        timeout.read = limit_s
        try:
            with self.client.stream("POST", self.wire.PATH, json=body, timeout=timeout) as reply:
                for piece in reply.iter_text():
                    pieces.append(piece)
                    if time.monotonic() - began > limit_s:
                        raise TooSlowError(f"no whole reply in {limit_s:.0f} s")
        except httpx.ReadTimeout:
            raise TooSlowError(f"no reply in {limit_s:.0f} s") from None
        self.seconds.append(time.monotonic() - began)
        return reply.status_code, "".join(pieces)

    def create(self, path: str, content: str) -> list[Body]:
        return [user(self.calls.ask_to_write(path, content))]

    def has_run(self, answer: Reply, command: str) -> bool:
        """Whether the answer's call runs exactly this command."""
        name, parameter = self.calls.run
        return answer.first_name == name and str(answer.first_input.get(parameter, "")).strip() == command


def user(text: str) -> Body:
    return {"role": "user", "content": text}


def with_result(messages: list[Body], answer: Reply, more: str = "") -> list[Body]:
    """The conversation after a call was answered."""
    calls = [{key: call[key] for key in ("type", "id", "name", "input")} for call in answer.calls]
    result = {"type": "tool_result", "content": "The file was written."}
    results = [{**result, "tool_use_id": call["id"]} for call in answer.calls]
    said, asked = ([{"type": "text", "text": text}] if text.strip() else [] for text in (answer.text, more))
    return [*messages, {"role": "assistant", "content": [*said, *calls]}, {"role": "user", "content": results + asked}]
