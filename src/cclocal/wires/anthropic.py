"""Anthropic's Messages API, as Claude Code speaks it. Pure: bodies in, replies out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cclocal.wires.wire import ANTHROPIC_ERRORS, Body, Reply, as_function, events, json_or_none

NAME = "anthropic"
PATH = "/v1/messages"
COUNT_PATH = "/v1/messages/count_tokens"
REQUEST_KEYS: tuple[str, ...] = ("system", "tools", "messages")
ERRORS = ANTHROPIC_ERRORS


def one_token(model: str) -> Body:
    return {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}


def ahead(request: Body, model: str) -> Body:
    # vllm-mlx keeps what it read only for streams
    return {**request, "model": model, "max_tokens": 1, "stream": True}


def body(model: str, system: str, tools: list[Body], messages: list[Body], out_tokens: int, *, stream: bool) -> Body:
    told = {"model": model, "system": system, "tools": tools, "messages": messages}
    return {**told, "max_tokens": out_tokens, "stream": stream}


def is_reply(status: int, text: str) -> bool:
    found = json_or_none(text)
    return status == 200 and isinstance(found, dict) and found.get("type") == "message" and "content" in found


def read(status: int, text: str, *, stream: bool) -> Reply:
    message = _joined(text) if stream and status == 200 else json_or_none(text)
    message = message if isinstance(message, dict) else {}
    blocks = [block for block in message.get("content") or [] if isinstance(block, dict)]
    usage = message.get("usage") or {}
    return Reply(
        status=status,
        text="".join(str(block.get("text", "")) for block in blocks if block.get("type") == "text"),
        calls=tuple(block for block in blocks if block.get("type") == "tool_use"),
        stop=str(message.get("stop_reason", "")),
        input_tokens=int(usage.get("input_tokens") or 0),
        cached_tokens=int(usage["cache_read_input_tokens"] or 0) if "cache_read_input_tokens" in usage else None,
        raw=text,
    )


def _joined(text: str) -> Body:
    """The message that a stream of events adds up to."""
    message: Body = {"content": []}
    for event in events(text):
        kind = event.get("type")
        if kind == "message_start":
            message |= {**event["message"], "content": []}
        elif kind == "content_block_start":
            message["content"].append(dict(event["content_block"]))
        elif kind == "content_block_delta" and message["content"]:
            block, delta = message["content"][-1], event["delta"]
            for key in {"text", "partial_json"} & delta.keys():
                block[key] = block.get(key, "") + delta[key]
        elif kind == "message_delta":
            message |= event.get("delta", {})
            message["usage"] = {**message.get("usage", {}), **event.get("usage", {})}
    for block in message["content"]:
        given = block.pop("partial_json", "")
        if given and block.get("type") == "tool_use":
            # an input that was cut off is no input
            block["input"] = json_or_none(given)
    return message


def as_chat(request: Mapping[str, Any]) -> Body:
    """As llama.cpp's server_chat_convert_anthropic_to_oai: system blocks joined, tools as functions."""
    system = system_text(request)
    messages = [{"role": "system", "content": system}] if system else []
    tools = [as_function(tool) for tool in request.get("tools", ())]
    return {"messages": [*messages, *request["messages"]], "tools": tools}


def has_late_system(request: Mapping[str, Any]) -> bool:
    return any(message.get("role") == "system" for message in request.get("messages", []))


def parts(request: Mapping[str, Any]) -> tuple[str, list[Body], Any]:
    return system_text(request), list(request.get("tools", ())), request.get("messages", [])


def system_text(request: Mapping[str, Any]) -> str:
    """A request's system prompt as engines read it: its blocks joined without separators."""
    system = request.get("system") or ""
    if isinstance(system, str):
        return system
    return "".join(block.get("text", "") for block in system if block.get("type") == "text")
