"""Anthropic's Messages API, as Claude Code speaks it. Pure: bodies in, replies out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from cclocal.wires.reply import Reply

NAME = "anthropic"
PATH = "/v1/messages"
COUNT_PATH = "/v1/messages/count_tokens"


def one_token(model: str) -> dict[str, Any]:
    return {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}


def ahead(request: dict[str, Any], model: str) -> dict[str, Any]:
    # vllm-mlx keeps what it read only for streams
    return {**request, "model": model, "max_tokens": 1, "stream": True}


def body(
    model: str,
    system: str,
    tools: list[dict[str, Any]],
    messages: list[dict[str, Any]],
    out_tokens: int,
    *,
    stream: bool,
) -> dict[str, Any]:
    return {
        "model": model,
        "max_tokens": out_tokens,
        "system": system,
        "tools": tools,
        "messages": messages,
        "stream": stream,
    }


def is_reply(status: int, body: Any) -> bool:
    return status == 200 and isinstance(body, dict) and body.get("type") == "message" and "content" in body


def read(status: int, text: str, *, stream: bool) -> Reply:
    try:
        message = _joined(text) if stream and status == 200 else json.loads(text)
    except ValueError:
        message = {}
    if not isinstance(message, dict):
        message = {}
    blocks = [block for block in message.get("content") or [] if isinstance(block, dict)]
    usage = message.get("usage") or {}
    return Reply(
        status=status,
        text="".join(str(block.get("text", "")) for block in blocks if block.get("type") == "text"),
        calls=tuple(block for block in blocks if block.get("type") == "tool_use"),
        stop=str(message.get("stop_reason", "")),
        input_tokens=int(usage.get("input_tokens") or 0),
        cached_tokens=int(usage.get("cache_read_input_tokens") or 0),
        raw=text,
        reports_cache="cache_read_input_tokens" in usage,
    )


def _joined(text: str) -> dict[str, Any]:
    """The message that a stream of events adds up to. Raises ValueError if an event is no JSON."""
    message: dict[str, Any] = {"content": []}
    parts: dict[int, str] = {}
    for line in text.splitlines():
        if not line.startswith("data: "):
            continue
        event = json.loads(line[6:])
        kind = event.get("type")
        if kind == "message_start":
            message |= {**event["message"], "content": []}
        elif kind == "content_block_start":
            message["content"].append(dict(event["content_block"]))
            parts[len(message["content"]) - 1] = ""
        elif kind == "content_block_delta" and message["content"]:
            block, delta = message["content"][-1], event["delta"]
            if "text" in delta:
                block["text"] = block.get("text", "") + delta["text"]
            parts[len(message["content"]) - 1] += delta.get("partial_json", "")
        elif kind == "message_delta":
            message |= event.get("delta", {})
            message["usage"] = {**message.get("usage", {}), **event.get("usage", {})}
    for at, given in parts.items():
        if given and message["content"][at].get("type") == "tool_use":
            # an input that was cut off is no input
            message["content"][at]["input"] = None
            with contextlib.suppress(ValueError):
                message["content"][at]["input"] = json.loads(given)
    return message


def system_text(request: Mapping[str, Any]) -> str:
    """A request's system prompt as engines read it: its blocks joined without separators."""
    system = request.get("system") or ""
    if isinstance(system, str):
        return system
    return "".join(block.get("text", "") for block in system if block.get("type") == "text")
