"""Does this model, on this engine, drive the agent? Real requests to a running server, judged by what arrives.

Each row is pass, fail, or "not exercised" (the model never did what the row is about); a row that nothing was seen of
never passes.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from cclocal.command import Endpoint

if TYPE_CHECKING:
    import httpx

Status = Literal["pass", "fail", "not exercised"]
#: A slow machine may take minutes over one answer.
LIMIT_S = 1800.0
_OUT_TOKENS = 1024
#: Quotes of both kinds, braces, backslashes, tabs, lines: what a file body is full of and JSON escapes.
DENSE = 'a = "x" + \'y\'\nif a != \'"\':\n\tprint(f"{a!r} \\\\ {{}}")\n# end'
#: Marks that some parsers take for their own.
MARKED = "say <think> and <tool_call> and <|channel> as they are"
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


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that was tried: what came of it, and what that means for the user."""

    name: str
    status: Status
    detail: str
    meaning: str
    needed: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply, put together the same way whether it was streamed or not."""

    status: int
    text: str
    calls: tuple[dict[str, Any], ...]
    stop: str
    input_tokens: int
    cached_tokens: int
    raw: str
    tells_cache: bool = False

    @property
    def first_call(self) -> dict[str, Any]:
        return self.calls[0] if self.calls else {}


class _Server:
    def __init__(self, client: httpx.Client, model: str) -> None:
        self.client, self.model = client, model

    def ask(self, messages: list[dict[str, Any]], *, out_tokens: int = _OUT_TOKENS, stream: bool = False) -> Answer:
        body = {
            "model": self.model,
            "max_tokens": out_tokens,
            "system": SYSTEM,
            "tools": list(TOOLS),
            "messages": messages,
            "stream": stream,
        }
        reply = self.client.post("/v1/messages", json=body, timeout=LIMIT_S)
        try:
            message = _of_stream(reply.text) if stream and reply.status_code == 200 else reply.json()
        except ValueError:
            message = {}
        content = message.get("content") if isinstance(message, dict) else None
        blocks = [block for block in content or [] if isinstance(block, dict)]
        usage = message.get("usage") or {} if isinstance(message, dict) else {}
        return Answer(
            status=reply.status_code,
            text="".join(str(block.get("text", "")) for block in blocks if block.get("type") == "text"),
            calls=tuple(block for block in blocks if block.get("type") == "tool_use"),
            stop=str(message.get("stop_reason", "")) if isinstance(message, dict) else "",
            input_tokens=int(usage.get("input_tokens") or 0),
            cached_tokens=int(usage.get("cache_read_input_tokens") or 0),
            raw=reply.text,
            tells_cache="cache_read_input_tokens" in usage,
        )


def _of_stream(text: str) -> dict[str, Any]:
    """The message that a stream of events adds up to. Raises ValueError if one is no JSON."""
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
            # what was cut off in the middle is no input at all
            with contextlib.suppress(ValueError):
                message["content"][at]["input"] = None
                message["content"][at]["input"] = json.loads(given)
    return message


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _create(path: str, content: str) -> list[dict[str, Any]]:
    return [_user(f"Create the file {path} with content: {content}")]


def _with_result(messages: list[dict[str, Any]], answer: Answer, result: str, more: str = "") -> list[dict[str, Any]]:
    """The conversation after a tool was run."""
    calls = [{key: call[key] for key in ("type", "id", "name", "input")} for call in answer.calls]
    results: list[dict[str, Any]] = [
        {"type": "tool_result", "tool_use_id": call["id"], "content": result} for call in answer.calls
    ]
    said = [{"type": "text", "text": answer.text}] if answer.text.strip() else []
    asked = [{"type": "text", "text": more}] if more else []
    return [*messages, {"role": "assistant", "content": [*said, *calls]}, {"role": "user", "content": results + asked}]


def prove(endpoint: Endpoint, context_tokens: int) -> Iterator[Row]:
    """Every row but the agent's own, as they are known."""
    import httpx

    # a connection each: one that the server has just closed would look like a failure
    headers = {"authorization": f"Bearer {endpoint.key}", "x-api-key": endpoint.key, "connection": "close"}
    with httpx.Client(base_url=endpoint.url, headers=headers, trust_env=False, timeout=LIMIT_S) as client:
        server = _Server(client, endpoint.model)
        for row in ROWS:
            try:
                found = row(server, context_tokens)
            except Exception as error:
                # whatever a server may send: it is no answer
                told = f"{type(error).__name__}: {error}"
                found = Row(_name(row), "fail", told, "The server broke off or answered nonsense.")
            # needed is what is tried, however it went
            yield replace(found, needed=row in NEEDED)


# -- the rows ---------------------------------------------------------------------------------------------------


def _dense_write(server: _Server, context_tokens: int) -> Row:
    """A file full of quotes arrives byte for byte"""
    answer = server.ask(_create("notes.py", DENSE))
    good = answer.first_call.get("input") == {"file_path": "notes.py", "content": DENSE} and answer.stop == "tool_use"
    meaning = "Files are written as the model meant them." if good else "Files come out wrong, or not at all."
    return Row(_name(_dense_write), _passed(good), _told(answer), meaning)


def _result(server: _Server, context_tokens: int) -> Row:
    """A tool's result ends the turn"""
    messages = _create("one.txt", "first")
    answer = server.ask(messages)
    if not answer.calls:
        return Row(_name(_result), "fail", _told(answer), "No tool is called, so nothing is done.")
    after = server.ask(_with_result(messages, answer, "The file was written."))
    good = after.stop == "end_turn" and not after.calls
    meaning = "The agent knows when it is done." if good else "The agent repeats itself or stops in the middle."
    return Row(_name(_result), _passed(good), _told(after), meaning)


def _chain(server: _Server, context_tokens: int) -> Row:
    """A second call after the first one's result"""
    messages = _create("one.txt", "first")
    answer = server.ask(messages)
    after = server.ask(_with_result(messages, answer, "The file was written.", "Run the command: wc -c one.txt"))
    call = after.first_call
    good = call.get("name") == "Bash" and str((call.get("input") or {}).get("command", "")).strip() == "wc -c one.txt"
    if not after.calls:
        meaning = "Not seen: it answered instead. Tasks of several steps may stop halfway."
        return Row(_name(_chain), "not exercised", _told(after), meaning)
    meaning = "Tasks of several steps go on." if good else "Tasks stop halfway."
    return Row(_name(_chain), _passed(good), _told(after), meaning)


def _parallel(server: _Server, context_tokens: int) -> Row:
    """Two calls in one reply"""
    answer = server.ask([_user("In one reply, run the command: echo one — and in a second call run: echo two")])
    ids = {call.get("id") for call in answer.calls}
    if len(answer.calls) < 2:
        detail = "one call at a time" if answer.calls else _told(answer)
        return Row(_name(_parallel), "not exercised", detail, "Not seen: slower where several files are read, no harm.")
    return Row(
        _name(_parallel), _passed(len(ids) == len(answer.calls)), _told(answer), "Several files are read at once."
    )


def _union(server: _Server, context_tokens: int) -> Row:
    """A tool with a union in its schema"""
    answer = server.ask([_user("Run the command: echo union")])
    call = answer.first_call
    good = call.get("name") == "Bash" and (call.get("input") or {}).get("command") == "echo union"
    meaning = "Tools of other people's servers work." if good else "Tools with such schemas do not work."
    return Row(_name(_union), _passed(good), _told(answer), meaning)


def _late_system(server: _Server, context_tokens: int) -> Row:
    """A system message in the middle of a conversation"""
    messages = [_user("Hello"), {"role": "assistant", "content": "Hello."}, {"role": "system", "content": "Be brief."}]
    answer = server.ask([*messages, *_create("late.txt", "still here")])
    good = (answer.first_call.get("input") or {}).get("content") == "still here"
    meaning = "Reminders that Claude Code sends on its way are taken." if good else "Long sessions may break off."
    return Row(_name(_late_system), _passed(good), _told(answer), meaning)


def _count(server: _Server, context_tokens: int) -> Row:
    """Tokens are counted before they are sent"""
    body = {"model": server.model, "system": SYSTEM, "tools": list(TOOLS), "messages": [_user("Hello")]}
    reply = server.client.post("/v1/messages/count_tokens", json=body)
    counted = reply.json().get("input_tokens", 0) if reply.status_code == 200 else 0
    meaning = "/context tells the truth." if counted else "Claude Code estimates; compaction may come early or late."
    return Row(
        _name(_count), _passed(bool(counted)), f"{counted} tokens" if counted else str(reply.status_code), meaning
    )


def _stream(server: _Server, context_tokens: int) -> Row:
    """A stream says the same as a whole reply"""
    whole, streamed = (server.ask(_create("s.txt", "the same twice"), stream=stream) for stream in (False, True))
    same = [(call.get("name"), call.get("input")) for call in whole.calls] == [
        (call.get("name"), call.get("input")) for call in streamed.calls
    ] and whole.stop == streamed.stop
    good = same and bool(whole.calls)
    meaning = "What you see while it writes is what is done." if good else "Claude Code streams: expect broken calls."
    return Row(_name(_stream), _passed(good), _told(streamed), meaning)


def _usage(server: _Server, context_tokens: int) -> Row:
    """A stream tells how large the prompt was"""
    answer = server.ask(_create("u.txt", "count me"), stream=True)
    tokens = answer.input_tokens + answer.cached_tokens
    meaning = "The window is accounted for." if tokens else "Claude Code cannot see its window fill up."
    return Row(_name(_usage), _passed(tokens > 0), f"{tokens} tokens", meaning)


def _cut(server: _Server, context_tokens: int) -> Row:
    """A reply that is cut off is said to be"""
    answer = server.ask(_create("long.txt", " ".join(f"word{i}" for i in range(200))), out_tokens=24)
    good = answer.stop == "max_tokens"
    meaning = "Claude Code notices and goes on." if good else "A half-written file may pass for a whole one."
    return Row(_name(_cut), _passed(good), _told(answer), meaning)


def _cut_call(server: _Server, context_tokens: int) -> Row:
    """A call that is cut off is never carried out as if whole"""
    content = " ".join(f"word{i}" for i in range(200))
    answer = server.ask(_create("long.txt", content), out_tokens=24, stream=True)
    given = answer.first_call.get("input") or {}
    silent = answer.stop not in ("max_tokens",) and (
        not answer.calls or given != {"file_path": "long.txt", "content": content}
    )
    meaning = (
        "A cut call is loud." if not silent else "A cut call looks like a finished one: files are lost in silence."
    )
    return Row(_name(_cut_call), _passed(not silent), _told(answer), meaning)


def _no_thinking(server: _Server, context_tokens: int) -> Row:
    """Thinking stays out of the text"""
    answer = server.ask([_user("How are you?")])
    if not answer.text:
        return Row(_name(_no_thinking), "not exercised", _told(answer), "Nothing was said.")
    leaks = [mark for mark in ("<think>", "</think>", "<|channel|>", "<|channel>", "reasoning:") if mark in answer.text]
    meaning = "Answers are clean." if not leaks else "Thoughts are shown as answers, and sent back as such."
    return Row(_name(_no_thinking), _passed(not leaks), ", ".join(leaks) or answer.text[:60], meaning)


def _marks(server: _Server, context_tokens: int) -> Row:
    """A file that holds a parser's own marks arrives byte for byte"""
    answer = server.ask(_create("marks.txt", MARKED))
    given = (answer.first_call.get("input") or {}).get("content")
    meaning = "Code about models can be written." if given == MARKED else "Files that hold such marks are damaged."
    return Row(_name(_marks), _passed(given == MARKED), _told(answer), meaning)


def _too_long(server: _Server, context_tokens: int) -> Row:
    """A prompt beyond the window is refused, not cut"""
    # a token each, with nearly every vocabulary
    answer = server.ask([_user(f"{' the' * context_tokens} How are you?")], out_tokens=16)
    said = re.search(r"context|too long|exceed|length|tokens", answer.raw, re.IGNORECASE)
    loud = answer.status in (400, 413, 422) and bool(said)
    meaning = "Claude Code compacts and goes on." if loud else "What was said first is forgotten without a word."
    return Row(_name(_too_long), _passed(loud), f"status {answer.status}", meaning)


def _cache(server: _Server, context_tokens: int) -> Row:
    """A second turn does not read the whole prompt again"""
    filler = " ".join(f"line {i} of the notes." for i in range(300))
    messages = [_user(f"{filler} How are you?")]
    first = server.ask(messages)
    turn = [*messages, {"role": "assistant", "content": first.text or "Fine."}, _user("How are you?")]
    second = server.ask(turn)
    if not second.tells_cache:
        return Row(_name(_cache), "not exercised", "the server does not tell", "Nobody knows how much is read again.")
    good = second.cached_tokens > second.input_tokens
    detail = f"{second.cached_tokens} tokens kept, {second.input_tokens} read"
    return Row(
        _name(_cache),
        _passed(good),
        detail,
        "Turns begin at once." if good else "Every turn waits for the whole prompt.",
    )


ROWS: tuple[Callable[[_Server, int], Row], ...] = (
    _dense_write,
    _result,
    _chain,
    _parallel,
    _union,
    _late_system,
    _count,
    _stream,
    _usage,
    _cut,
    _cut_call,
    _no_thinking,
    _marks,
    _cache,
    _too_long,
)
#: Without these the agent cannot work.
NEEDED = (_dense_write, _result, _union, _stream)


def _name(row: Callable[..., Row]) -> str:
    return (row.__doc__ or "").splitlines()[0]


def _passed(good: bool) -> Status:
    return "pass" if good else "fail"


def _told(answer: Answer) -> str:
    """What came, short enough for a line."""
    if answer.status != 200:
        return f"status {answer.status}: {answer.raw[:80]}"
    if answer.calls:
        return ", ".join(
            f"{call.get('name')}({json.dumps(call.get('input'), ensure_ascii=False)[:50]})" for call in answer.calls
        )
    return f"{answer.stop or 'no stop reason'}: {answer.text[:60]!r}"


def can_work(rows: list[Row]) -> bool:
    """Whether the agent can be relied on: every needed row passed."""
    return all(row.status == "pass" for row in rows if row.needed)
