"""A conversation with a running server in the agent's API, as checks hold it: two tools, and requests to use them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cclocal.wires import Wire
from cclocal.wires.reply import Reply

if TYPE_CHECKING:
    import httpx

#: Seconds for one answer: a slow machine takes minutes.
LIMIT_S = 1800.0
OUT_TOKENS = 1024
SYSTEM = (
    "You are a coding agent. Use the tools: when asked to create a file call Write with exactly the given path and "
    "content, when asked to run a command call Bash with exactly that command. After a tool's result say Done."
)
TOOLS: tuple[dict[str, Any], ...] = (
    {
        "name": "Write",
        "description": "Writes a file.",
        "input_schema": {
            "type": "object",
            "properties": {"file_path": {"type": "string"}, "content": {"type": "string"}},
            "required": ["file_path", "content"],
        },
    },
    {
        "name": "Bash",
        "description": "Runs a command.",
        "input_schema": {
            "type": "object",
            "properties": {"command": {"type": "string"}, "timeout": {"anyOf": [{"type": "number"}, {"type": "null"}]}},
            "required": ["command"],
        },
    },
)


class CheckedServer:
    """A running server, asked in the API of the agent."""

    def __init__(self, client: httpx.Client, wire: Wire, model: str, title: str) -> None:
        self.client, self.wire, self.model, self.title = client, wire, model, title

    def ask(self, messages: list[dict[str, Any]], *, out_tokens: int = OUT_TOKENS, stream: bool = False) -> Reply:
        body = self.wire.body(self.model, SYSTEM, list(TOOLS), messages, out_tokens, stream=stream)
        reply = self.client.post(self.wire.PATH, json=body, timeout=LIMIT_S)
        return self.wire.read(reply.status_code, reply.text, stream=stream)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def create(path: str, content: str) -> list[dict[str, Any]]:
    return [user(f"Create the file {path} with content: {content}")]


def with_result(messages: list[dict[str, Any]], answer: Reply, result: str, more: str = "") -> list[dict[str, Any]]:
    """The conversation after a tool was run."""
    calls = [{key: call[key] for key in ("type", "id", "name", "input")} for call in answer.calls]
    results: list[dict[str, Any]] = [
        {"type": "tool_result", "tool_use_id": call["id"], "content": result} for call in answer.calls
    ]
    said = [{"type": "text", "text": answer.text}] if answer.text.strip() else []
    asked = [{"type": "text", "text": more}] if more else []
    return [*messages, {"role": "assistant", "content": [*said, *calls]}, {"role": "user", "content": results + asked}]
