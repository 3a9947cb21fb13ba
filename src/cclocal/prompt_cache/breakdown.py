"""`cclocal prompt`: where the bytes and tokens of an agent's first request go, block by block, against a plain launch.

Both launches are rehearsed, not remembered: the agent that is installed is started against a server of ours that
answers nothing, and what it sends is taken apart.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from cclocal.agents import AGENTS, Session
from cclocal.backends.llama_server import spec as llama_server
from cclocal.command import Endpoint
from cclocal.discovery.look import look_around
from cclocal.errors import UsageError
from cclocal.paths import Folders
from cclocal.planning.plan import check_agent
from cclocal.prompt_cache.capture import Request, first_requests, system_text
from cclocal.server.registry import sessions
from cclocal.ui import console as ui

#: Without a tokenizer: English and JSON have about so many bytes a token in today's vocabularies.
BYTES_PER_TOKEN = 4
#: What the prompt would be for; neither stands in it.
_CONTEXT_TOKENS, _OUT_TOKENS = 65536, 8192
_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Block:
    """One part of the request: its size as it is sent, as it would be in a plain launch, in bytes and tokens.

    `same`: byte by byte what every session of this kind sends, in any folder; only such blocks can be kept.
    """

    name: str
    bytes: int
    tokens: int
    plain_bytes: int
    same: bool


@dataclass(frozen=True, slots=True)
class Anatomy:
    """A first request in its blocks. `counted_by`: the model whose tokens were counted, or None if estimated."""

    agent: str
    blocks: tuple[Block, ...]
    counted_by: str | None


def dissect(arguments: Sequence[str], folders: Folders, environ: Mapping[str, str], *, lean: bool = False) -> Anatomy:
    """The first request of the agent that is installed, with these arguments.

    Raises AgentMissingError (35), or UsageError if it sends nothing that can be compared.
    """
    agent = AGENTS["claude"]
    facts = look_around(folders, environ)
    check_agent(agent, facts)
    assert facts.agent
    endpoint = Endpoint.of_session(None, "model")
    session = Session(endpoint, _CONTEXT_TOKENS, _OUT_TOKENS, arguments=tuple(arguments), lean=lean)
    rehearsal = agent.rehearsal(facts, session)
    if rehearsal is None:
        raise UsageError(
            "With these arguments the prompt is one of your own, and is not rehearsed.", hint="cclocal prompt"
        )
    with ui.busy(f"Rehearsing {agent.PROGRAM} {facts.agent.version}, as cclocal starts it and plain"):
        ours = first_requests(rehearsal, folders, environ, threading.Event())
        plain = first_requests(agent.plain(facts, session), folders, environ, threading.Event())
    if not ours:
        raise UsageError(f"{agent.PROGRAM} {facts.agent.version} sent nothing within its time.", hint="cclocal --tiny")
    first, second = (_parts(request) for request in ours)
    others = _parts(plain[0]) if plain else {}
    tokens, counted_by = _counted(first, folders)
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
    kind = "on a terminal" if agent.draws(arguments) else "in print mode"
    about = f"{agent.PROGRAM} {facts.agent.version} {kind}{', lean' if lean else ''}"
    return Anatomy(about, blocks, counted_by)


def _parts(request: Request) -> dict[str, str]:
    """The request's blocks as they are sent, by name."""
    found = {"system prompt": system_text(request)}
    for tool in request.get("tools", ()):
        found[f"tool {tool.get('name')}"] = _as_sent(tool)
    found["first message"] = _as_sent(request.get("messages", []))
    return found


def _as_sent(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _counted(parts: Mapping[str, str], folders: Folders) -> tuple[dict[str, int], str | None]:
    """(each part's tokens, whose they are): a llama-server of ours that runs counts them, else they are estimated."""
    import httpx

    for session in sessions(folders):
        if session.facts.get("backend") != llama_server.NAME or not session.is_alive("server"):
            continue
        with contextlib.suppress(OSError, httpx.HTTPError, ValueError, KeyError):
            headers = {"authorization": f"Bearer {(session.folder / 'key').read_text('utf-8').strip()}"}
            url = f"http://127.0.0.1:{session.port}"
            with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=_LIMIT_S) as client:
                counted = {}
                for name, text in parts.items():
                    reply = client.post("/tokenize", json={"content": text}).raise_for_status()
                    counted[name] = len(reply.json()["tokens"])
                return counted, session.model
    return {name: round(len(text.encode()) / BYTES_PER_TOKEN) for name, text in parts.items()}, None


def show(anatomy: Anatomy, *, as_json: bool = False) -> None:
    """A table, or JSON for scripts."""
    blocks = sorted(anatomy.blocks, key=lambda block: (-block.bytes, -block.plain_bytes))
    if as_json:
        told = {"agent": anatomy.agent, "counted_by": anatomy.counted_by, "blocks": [asdict(b) for b in blocks]}
        print(json.dumps(told, indent=1, ensure_ascii=False))
        return
    mine = [block for block in blocks if block.bytes]
    left_out = [block for block in blocks if not block.bytes]
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("block", no_wrap=True)
    for heading in ("bytes", "tokens", "plain, bytes", "fixed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for block in mine:
        sizes = map(_size, (block.bytes, block.tokens, block.plain_bytes))
        table.add_row(block.name, *sizes, "yes" if block.same else "no")
    if left_out:
        table.add_row(
            f"{len(left_out)} other tools", "—", "—", _size(sum(b.plain_bytes for b in left_out)), style="dim"
        )
    total = [sum(getattr(block, name) for block in blocks) for name in ("bytes", "tokens", "plain_bytes")]
    table.add_row("together", *map(_size, total), style="bold")
    out = ui.output()
    out.print(table)
    notes = [
        f"The first request of {anatomy.agent}, before your own words, and of a launch without cclocal.",
        f"Tokens: {anatomy.counted_by}'s."
        if anatomy.counted_by
        else "Tokens: a guess, bytes / 4; a server of ours that runs counts them.",
        "fixed: the same bytes in every session and folder.",
    ]
    if not total[2]:
        notes.append("The plain launch sent nothing within its time.")
    out.print(Text("\n" + "\n".join(notes), style="dim"))


def _size(number: int) -> str:
    return f"{number:,}" if number else "—"
