"""OpenAI's chat completions API, as pi speaks it. Pure: bodies in, replies out."""

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

NAME = "chat"
PATH = "/v1/chat/completions"
COUNT_PATH = ""
REQUEST_KEYS: tuple[str, ...] = ("messages", "tools")
ERRORS = OPENAI_ERRORS
_STOPS = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"}


def one_token(model: str) -> Body:
    return {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}


def ahead(request: Body, model: str) -> Body:
    return {**request, "model": model, "max_tokens": 1, "stream": True}


def body(model: str, system: str, tools: list[Body], messages: list[Body], out_tokens: int, *, stream: bool) -> Body:
    told = [{"role": "system", "content": system}, *(one for message in messages for one in _told(message))]
    offered = [as_function(tool) for tool in tools]
    more: Body = {"tools": offered} if offered else {}
    if stream:
        more["stream_options"] = {"include_usage": True}
    return {"model": model, "messages": told, "max_tokens": out_tokens, "stream": stream, **more}


def _told(message: Body) -> Iterator[Body]:
    """One neutral message as those of this API: each result of a tool is one of its own."""
    blocks = message["content"]
    if isinstance(blocks, str):
        yield message
        return
    for block in blocks:
        if block["type"] == "tool_result":
            yield {"role": "tool", "tool_call_id": block["tool_use_id"], "content": text_of(block["content"])}
    text = text_of(blocks)
    # this API has no pictures in results of tools: they follow in a message
    results = [block["content"] for block in blocks if block["type"] == "tool_result"]
    if shown := [url for content in (*results, blocks) for url in pictures_of(content)]:
        pictures = [{"type": "image_url", "image_url": {"url": url}} for url in shown]
        yield {"role": message["role"], "content": [*pictures, {"type": "text", "text": text}]}
        return
    calls = [
        {
            "id": block["id"],
            "type": "function",
            "function": {"name": block["name"], "arguments": json.dumps(block["input"])},
        }
        for block in blocks
        if block["type"] == "tool_use"
    ]
    if text or calls:
        yield {"role": message["role"], "content": text or None, **({"tool_calls": calls} if calls else {})}


def is_reply(status: int, text: str) -> bool:
    found = json_or_none(text)
    return status == 200 and isinstance(found, dict) and bool(found.get("choices"))


def read(status: int, text: str, *, stream: bool) -> Reply:
    found = _joined(text) if stream and status == 200 else json_or_none(text)
    found = found if isinstance(found, dict) else {}
    choice = next((one for one in found.get("choices") or [] if isinstance(one, dict)), {})
    message = choice.get("message") or {}
    usage = found.get("usage") or {}
    details = usage.get("prompt_tokens_details") or {}
    cached = int(details["cached_tokens"] or 0) if "cached_tokens" in details else None
    functions = [(one.get("id"), one.get("function") or {}) for one in message.get("tool_calls") or []]
    stop = str(choice.get("finish_reason") or "")
    return Reply(
        status=status,
        text=str(message.get("content") or ""),
        calls=tuple(called(id_, function.get("name"), function.get("arguments")) for id_, function in functions),
        stop=_STOPS.get(stop, stop),
        input_tokens=int(usage.get("prompt_tokens") or 0) - (cached or 0),
        cached_tokens=cached,
        raw=text,
    )


def _joined(text: str) -> Body:
    """The reply that a stream of pieces adds up to."""
    message: Body = {"content": "", "tool_calls": []}
    stop, usage = None, None
    for piece in events(text):
        usage = piece.get("usage") or usage
        for choice in piece.get("choices") or []:
            stop, delta = choice.get("finish_reason") or stop, choice.get("delta") or {}
            message["content"] += delta.get("content") or ""
            for part in delta.get("tool_calls") or []:
                calls = message["tool_calls"]
                while len(calls) <= part.get("index", 0):
                    calls.append({"id": None, "function": {"name": "", "arguments": ""}})
                call, function = calls[part.get("index", 0)], part.get("function") or {}
                call["id"] = part.get("id") or call["id"]
                call["function"]["name"] += function.get("name") or ""
                call["function"]["arguments"] += function.get("arguments") or ""
    return {"choices": [{"message": message, "finish_reason": stop}], "usage": usage}


def as_chat(request: Mapping[str, Any]) -> Body:
    return {"messages": request["messages"], "tools": request.get("tools", [])}


def has_late_system(request: Mapping[str, Any]) -> bool:
    return any(one.get("role") in ("system", "developer") for one in (request.get("messages") or [])[1:])


def parts(request: Mapping[str, Any]) -> tuple[str, list[Body], Any]:
    messages = request.get("messages") or []
    system = [one for one in messages if one.get("role") in ("system", "developer")]
    tools = [tool.get("function") or {} for tool in request.get("tools") or ()]
    text = "".join(text_of(one.get("content") or "") for one in system)
    return text, tools, [one for one in messages if one not in system]
