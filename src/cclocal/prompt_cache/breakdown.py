"""`cclocal prompt`: the bytes and tokens of an agent's first request, block by block, against a plain launch.

Both launches are captured from the agent that is installed.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cclocal import http
from cclocal.backends import runtime_of
from cclocal.discovery.look import look_around
from cclocal.errors import UsageError
from cclocal.paths import Env
from cclocal.planning.choose import agent_session, check_agent, choose_agent
from cclocal.prompt_cache.capture import Request, first_requests
from cclocal.server.registry import running
from cclocal.settings import Settings
from cclocal.wires import WIRES, Wire

#: Without a tokenizer: English and JSON have about so many bytes a token in today's vocabularies.
BYTES_PER_TOKEN = 4
#: The window that the captured session has; it is not in the prompt.
_CONTEXT_TOKENS, _OUT_TOKENS = 65536, 8192
_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Block:
    """One part of the request: its size in bytes and tokens, and its size in a plain launch.

    `same`: every session of this kind sends the same bytes, in any folder; only such blocks can be cached.
    """

    name: str
    bytes: int
    tokens: int
    plain_bytes: int
    same: bool


@dataclass(frozen=True, slots=True)
class Breakdown:
    """A first request, block by block. `counted_by`: the model whose tokens were counted, or None if estimated."""

    agent: str
    blocks: tuple[Block, ...]
    counted_by: str | None


def break_down(settings: Settings, env: Env) -> Breakdown:
    """The first request of the agent that is installed, with the arguments in `settings`.

    Raises AgentMissingError (35), or UsageError if it sends nothing that can be compared.
    """
    agent, facts = choose_agent(settings), look_around(env, settings)
    check_agent(agent, facts, settings)
    assert facts.agent
    session = agent_session(settings, facts, _CONTEXT_TOKENS, _OUT_TOKENS)
    capture = agent.capture(session, "model")
    if capture is None:
        raise UsageError("These arguments replace the prompt, so there is nothing to compare.", hint="cclocal prompt")
    program = f"{agent.PROGRAM} {facts.agent.version}"
    never = threading.Event()
    ours = first_requests(agent.NAME, capture, env, never)
    plain = first_requests(agent.NAME, agent.plain(session, "model"), env, never)
    if not ours:
        raise UsageError(f"{program} sent no request within its time limit.", hint="cclocal --tiny")
    wire = WIRES[agent.WIRE]
    first, second = (_parts(wire, request) for request in ours)
    others = _parts(wire, plain[0]) if plain else {}
    tokens, counted_by = _counted(first, env)
    blocks = tuple(
        Block(
            name=name,
            bytes=len(first.get(name, "").encode()),
            tokens=tokens.get(name, 0),
            plain_bytes=len(others.get(name, "").encode()),
            same=name in first and first[name] == second.get(name),
        )
        for name in dict.fromkeys((*first, *others))
    )
    kind = "on a terminal" if capture.is_interactive else "in print mode"
    return Breakdown(f"{program} {kind}{', lean' if session.lean else ''}", blocks, counted_by)


def _parts(wire: Wire, request: Request) -> dict[str, str]:
    """The request's blocks as they are sent, by name."""
    system, tools, messages = wire.parts(request)
    named = {f"tool {tool.get('name')}": _as_sent(tool) for tool in tools}
    return {"system prompt": system, **named, "first message": _as_sent(messages)}


def _as_sent(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _counted(parts: Mapping[str, str], env: Env) -> tuple[dict[str, int], str | None]:
    """(each part's tokens, the model they were counted for): by a running server of ours, else estimated."""
    import httpx

    for session in running(env):
        with contextlib.suppress(OSError, httpx.HTTPError, ValueError, KeyError):
            runtime = runtime_of(session.facts["backend"])
            key = Path(session.folder, "key").read_text("utf-8").strip()
            with http.client(str(session.facts["server_url"]), key, limit_s=_LIMIT_S) as client:
                counted = {name: runtime.count_tokens(client, text) for name, text in parts.items()}
                known = {name: tokens for name, tokens in counted.items() if tokens is not None}
                if len(known) == len(parts):
                    return known, session.model
    return {name: round(len(text.encode()) / BYTES_PER_TOKEN) for name, text in parts.items()}, None
