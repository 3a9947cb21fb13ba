"""OpenAI's Responses API, as Codex speaks it. Pure: bodies in, replies out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from cclocal.wires.wire import (
    OPENAI_ERRORS,
    Body,
    Reply,
    as_function,
    called,
    events,
    json_or_none,
    pictures_of,
    text_of,
)

NAME = "responses"
PATH = "/v1/responses"
COUNT_PATH = ""
REQUEST_KEYS: tuple[str, ...] = ("instructions", "input", "tools")
ERRORS = OPENAI_ERRORS


def one_token(model: str) -> Body:
    return {"model": model, "max_output_tokens": 1, "input": [_message("user", "Hi")], "store": False}


def ahead(request: Body, model: str) -> Body:
    return {**request, "model": model, "max_output_tokens": 1, "stream": True, "store": False}


def body(model: str, system: str, tools: list[Body], messages: list[Body], out_tokens: int, *, stream: bool) -> Body:
    told = [_message("developer", system), *(one for message in messages for one in _told(message))]
    offered = [
        {
            "type": "function",
            "name": tool["name"],
            "description": tool["description"],
            "parameters": tool["input_schema"],
            "strict": False,
        }
        for tool in tools
    ]
    sizes = {"max_output_tokens": out_tokens, "stream": stream, "store": False}
    return {"model": model, "input": told, **({"tools": offered} if offered else {}), **sizes}


def _message(role: str, text: str) -> Body:
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


def _shown(content: Any) -> list[Body]:
    return [{"type": "input_image", "image_url": url} for url in pictures_of(content)]


def _told(message: Body) -> Iterator[Body]:
    """One neutral message as items of this API: calls and their results are items of their own."""
    blocks, role = message["content"], "developer" if message["role"] == "system" else message["role"]
    blocks = [{"type": "text", "text": blocks}] if isinstance(blocks, str) else blocks
    for block in blocks:
        if block["type"] == "tool_result":
            output = _shown(block["content"]) or block["content"]
            yield {"type": "function_call_output", "call_id": block["tool_use_id"], "output": output}
    shown = _shown(blocks)
    if (text := text_of(blocks)) or shown:
        said = _message(role, text)
        yield {**said, "content": [*shown, *said["content"]]}
    for block in blocks:
        if block["type"] == "tool_use":
            arguments = json.dumps(block["input"])
            yield {"type": "function_call", "call_id": block["id"], "name": block["name"], "arguments": arguments}


def is_reply(status: int, text: str) -> bool:
    found = json_or_none(text)
    return status == 200 and isinstance(found, dict) and found.get("object") == "response"


def read(status: int, text: str, *, stream: bool) -> Reply:
    found = _last(text) if stream and status == 200 else json_or_none(text)
    found = found if isinstance(found, dict) else {}
    items = [item for item in found.get("output") or [] if isinstance(item, dict)]
    usage = found.get("usage") or {}
    details = usage.get("input_tokens_details") or {}
    cached = int(details["cached_tokens"] or 0) if "cached_tokens" in details else None
    calls = tuple(
        called(item.get("call_id"), item.get("name"), item.get("arguments"))
        for item in items
        if item.get("type") == "function_call"
    )
    cut = (found.get("incomplete_details") or {}).get("reason") == "max_output_tokens"
    state = str(found.get("status") or "")
    ended = "tool_use" if calls else "end_turn" if state == "completed" else state
    return Reply(
        status=status,
        text="".join(text_of(item.get("content") or "") for item in items if item.get("type") == "message"),
        calls=calls,
        stop="max_tokens" if cut else ended,
        input_tokens=int(usage.get("input_tokens") or 0) - (cached or 0),
        cached_tokens=cached,
        raw=text,
    )


def _last(text: str) -> Any:
    """The response as a stream's last event has it."""
    found: Any = {}
    for event in events(text):
        if event.get("type") in ("response.completed", "response.incomplete", "response.failed"):
            found = event.get("response")
    return found


def as_chat(request: Mapping[str, Any]) -> Body:
    """As llama.cpp's server converts it: a developer's message is a system message."""
    instructions = request.get("instructions")
    messages: list[Body] = [{"role": "system", "content": instructions}] if instructions else []
    for item in request.get("input") or ():
        role = "system" if item.get("role") == "developer" else item.get("role")
        messages.append({"role": role, "content": text_of(item.get("content") or "")})
    functions = (tool for tool in request.get("tools") or () if tool.get("type") == "function")
    tools = [as_function({**tool, "input_schema": tool.get("parameters", {})}) for tool in functions]
    return {"messages": messages, "tools": tools}


def has_late_system(request: Mapping[str, Any]) -> bool:
    later = (request.get("input") or [])[0 if request.get("instructions") else 1 :]
    return any(item.get("role") in ("system", "developer") for item in later)


def parts(request: Mapping[str, Any]) -> tuple[str, list[Body], Any]:
    items = request.get("input") or []
    system = [item for item in items if item.get("role") in ("system", "developer")]
    text = str(request.get("instructions") or "") + "".join(text_of(item.get("content") or "") for item in system)
    return text, list(request.get("tools") or ()), [item for item in items if item not in system]
