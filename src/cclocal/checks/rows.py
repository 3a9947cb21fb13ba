"""What a model must show to drive an agent: real requests to a running server, judged by what arrives.

Each row is pass, fail, or "not exercised": the model never did what the row is about. Such a row never passes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from cclocal import http
from cclocal.checks.conversation import LIMIT_S, SYSTEM, TOOLS, CheckedServer, create, user, with_result
from cclocal.command import Endpoint
from cclocal.wires import Wire
from cclocal.wires.reply import Reply

Status = Literal["pass", "fail", "not exercised"]
#: Quotes of both kinds, braces, backslashes, tabs and line ends: characters that JSON escapes.
DENSE = 'a = "x" + \'y\'\nif a != \'"\':\n\tprint(f"{a!r} \\\\ {{}}")\n# end'
#: Text that some servers' tool and thinking parsers treat as their own marks.
MARKED = "say <think> and <tool_call> and <|channel> as they are"


@dataclass(frozen=True, slots=True)
class CheckRow:
    """One thing that was tried: its outcome, and what that means for the user. `needed`: no agent works without it."""

    name: str
    status: Status
    detail: str
    meaning: str
    needed: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def run(endpoint: Endpoint, wire: Wire, title: str, context_tokens: int) -> Iterator[CheckRow]:
    """Every row about the server, as soon as its outcome is known. `title`: the agent's name in messages."""
    with http.client(endpoint.url, endpoint.key, limit_s=LIMIT_S) as client:
        # one connection per request: a kept one that the server has just closed would look like a failure
        client.headers["connection"] = "close"
        server = CheckedServer(client, wire, endpoint.model, title)
        for row in ROWS:
            try:
                found = row(server, context_tokens)
            except Exception as error:
                # any error is a failed row: the server sent something that cannot be read
                shown = f"{type(error).__name__}: {error}"
                found = CheckRow(
                    _name(row), "fail", shown, "The server closed the connection, or its answer cannot be read."
                )
            yield replace(found, needed=row in NEEDED)


# -- the rows ---------------------------------------------------------------------------------------------------


def _dense_write(server: CheckedServer, context_tokens: int) -> CheckRow:
    """A file full of quotes arrives byte for byte"""
    answer = server.ask(create("notes.py", DENSE))
    good = answer.first_call.get("input") == {"file_path": "notes.py", "content": DENSE} and answer.stop == "tool_use"
    meaning = "Files are written as the model meant them." if good else "Files come out wrong, or not at all."
    return CheckRow(_name(_dense_write), _passed(good), _shown(answer), meaning)


def _result(server: CheckedServer, context_tokens: int) -> CheckRow:
    """A tool's result ends the turn"""
    messages = create("one.txt", "first")
    answer = server.ask(messages)
    if not answer.calls:
        return CheckRow(_name(_result), "fail", _shown(answer), "No tool is called, so nothing is done.")
    after = server.ask(with_result(messages, answer, "The file was written."))
    good = after.stop == "end_turn" and not after.calls
    meaning = "The agent knows when it is done." if good else "The agent repeats itself or stops in the middle."
    return CheckRow(_name(_result), _passed(good), _shown(after), meaning)


def _chain(server: CheckedServer, context_tokens: int) -> CheckRow:
    """A second tool call after the first one's result"""
    messages = create("one.txt", "first")
    answer = server.ask(messages)
    after = server.ask(with_result(messages, answer, "The file was written.", "Run the command: wc -c one.txt"))
    call = after.first_call
    good = call.get("name") == "Bash" and str((call.get("input") or {}).get("command", "")).strip() == "wc -c one.txt"
    if not after.calls:
        meaning = "Not seen: the model answered without a tool call. Multi-step tasks may stop halfway."
        return CheckRow(_name(_chain), "not exercised", _shown(after), meaning)
    meaning = "Multi-step tasks continue." if good else "Multi-step tasks stop halfway."
    return CheckRow(_name(_chain), _passed(good), _shown(after), meaning)


def _parallel(server: CheckedServer, context_tokens: int) -> CheckRow:
    """Two calls in one reply"""
    answer = server.ask([user("In one reply, run the command: echo one — and in a second call run: echo two")])
    ids = {call.get("id") for call in answer.calls}
    if len(answer.calls) < 2:
        detail = "one call at a time" if answer.calls else _shown(answer)
        return CheckRow(
            _name(_parallel),
            "not exercised",
            detail,
            "Not seen. Several files are read one after the other, which is slower.",
        )
    return CheckRow(
        _name(_parallel), _passed(len(ids) == len(answer.calls)), _shown(answer), "Several files are read at once."
    )


def _union(server: CheckedServer, context_tokens: int) -> CheckRow:
    """A tool with a union in its schema"""
    answer = server.ask([user("Run the command: echo union")])
    call = answer.first_call
    good = call.get("name") == "Bash" and (call.get("input") or {}).get("command") == "echo union"
    meaning = "Tools of MCP servers work." if good else "Tools with such schemas do not work."
    return CheckRow(_name(_union), _passed(good), _shown(answer), meaning)


def _late_system(server: CheckedServer, context_tokens: int) -> CheckRow:
    """A system message in the middle of a conversation"""
    messages = [user("Hello"), {"role": "assistant", "content": "Hello."}, {"role": "system", "content": "Be brief."}]
    answer = server.ask([*messages, *create("late.txt", "still here")])
    good = (answer.first_call.get("input") or {}).get("content") == "still here"
    meaning = (
        f"Reminders that {server.title} sends during a session are accepted."
        if good
        else "Long sessions may break off."
    )
    return CheckRow(_name(_late_system), _passed(good), _shown(answer), meaning)


def _count(server: CheckedServer, context_tokens: int) -> CheckRow:
    """Tokens are counted before they are sent"""
    body = {"model": server.model, "system": SYSTEM, "tools": list(TOOLS), "messages": [user("Hello")]}
    reply = server.client.post(server.wire.COUNT_PATH, json=body)
    counted = reply.json().get("input_tokens", 0) if reply.status_code == 200 else 0
    meaning = "/context is exact." if counted else f"{server.title} estimates; compaction may start early or late."
    return CheckRow(
        _name(_count), _passed(bool(counted)), f"{counted} tokens" if counted else str(reply.status_code), meaning
    )


def _stream(server: CheckedServer, context_tokens: int) -> CheckRow:
    """A stream says the same as a whole reply"""
    whole, streamed = (server.ask(create("s.txt", "the same twice"), stream=stream) for stream in (False, True))
    same = [(call.get("name"), call.get("input")) for call in whole.calls] == [
        (call.get("name"), call.get("input")) for call in streamed.calls
    ] and whole.stop == streamed.stop
    good = same and bool(whole.calls)
    meaning = (
        "Streamed replies are complete." if good else f"{server.title} streams its replies, so tool calls will break."
    )
    return CheckRow(_name(_stream), _passed(good), _shown(streamed), meaning)


def _usage(server: CheckedServer, context_tokens: int) -> CheckRow:
    """A stream reports the prompt's token count"""
    answer = server.ask(create("u.txt", "count me"), stream=True)
    tokens = answer.input_tokens + answer.cached_tokens
    meaning = (
        "The used part of the context window is known."
        if tokens
        else f"{server.title} cannot see its context window fill up."
    )
    return CheckRow(_name(_usage), _passed(tokens > 0), f"{tokens} tokens", meaning)


def _cut(server: CheckedServer, context_tokens: int) -> CheckRow:
    """A reply that is cut off has the stop reason for it"""
    answer = server.ask(create("long.txt", " ".join(f"word{i}" for i in range(200))), out_tokens=24)
    good = answer.stop == "max_tokens"
    meaning = f"{server.title} notices and goes on." if good else "A half-written file may be taken for a complete one."
    return CheckRow(_name(_cut), _passed(good), _shown(answer), meaning)


def _cut_call(server: CheckedServer, context_tokens: int) -> CheckRow:
    """A tool call that is cut off is not reported as complete"""
    content = " ".join(f"word{i}" for i in range(200))
    answer = server.ask(create("long.txt", content), out_tokens=24, stream=True)
    given = answer.first_call.get("input") or {}
    silent = answer.stop not in ("max_tokens",) and (
        not answer.calls or given != {"file_path": "long.txt", "content": content}
    )
    meaning = (
        "A tool call that was cut off is reported." if not silent else "A cut-off call looks complete: files are lost."
    )
    return CheckRow(_name(_cut_call), _passed(not silent), _shown(answer), meaning)


def _no_thinking(server: CheckedServer, context_tokens: int) -> CheckRow:
    """Thinking stays out of the text"""
    answer = server.ask([user("How are you?")])
    if not answer.text:
        return CheckRow(_name(_no_thinking), "not exercised", _shown(answer), "The model wrote no text.")
    leaks = [mark for mark in ("<think>", "</think>", "<|channel|>", "<|channel>", "reasoning:") if mark in answer.text]
    meaning = "Answers contain no thinking." if not leaks else "Thinking appears in the answer and in later requests."
    return CheckRow(_name(_no_thinking), _passed(not leaks), ", ".join(leaks) or answer.text[:60], meaning)


def _marks(server: CheckedServer, context_tokens: int) -> CheckRow:
    """A file that contains a parser's own marks arrives byte for byte"""
    answer = server.ask(create("marks.txt", MARKED))
    given = (answer.first_call.get("input") or {}).get("content")
    meaning = "Files may contain such marks." if given == MARKED else "Files that contain such marks are damaged."
    return CheckRow(_name(_marks), _passed(given == MARKED), _shown(answer), meaning)


def _too_long(server: CheckedServer, context_tokens: int) -> CheckRow:
    """A prompt beyond the window is refused, not cut"""
    # one token per word in nearly every vocabulary
    answer = server.ask([user(f"{' the' * context_tokens} How are you?")], out_tokens=16)
    said = re.search(r"context|too long|exceed|length|tokens", answer.raw, re.IGNORECASE)
    loud = answer.status in (400, 413, 422) and bool(said)
    meaning = (
        f"{server.title} compacts and goes on." if loud else "The beginning of the conversation is dropped silently."
    )
    return CheckRow(_name(_too_long), _passed(loud), f"status {answer.status}", meaning)


def _cache(server: CheckedServer, context_tokens: int) -> CheckRow:
    """A second turn does not read the whole prompt again"""
    filler = " ".join(f"line {i} of the notes." for i in range(300))
    messages = [user(f"{filler} How are you?")]
    first = server.ask(messages)
    turn = [*messages, {"role": "assistant", "content": first.text or "Fine."}, user("How are you?")]
    second = server.ask(turn)
    if not second.reports_cache:
        return CheckRow(
            _name(_cache),
            "not exercised",
            "the server does not report it",
            "How many tokens are read again is unknown.",
        )
    good = second.cached_tokens > second.input_tokens
    detail = f"{second.cached_tokens} tokens kept, {second.input_tokens} read"
    return CheckRow(
        _name(_cache),
        _passed(good),
        detail,
        "A turn reads only its new tokens." if good else "Every turn reads the whole prompt again.",
    )


ROWS: tuple[Callable[[CheckedServer, int], CheckRow], ...] = (
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


def _name(row: Callable[..., CheckRow]) -> str:
    return (row.__doc__ or "").splitlines()[0]


def _passed(good: bool) -> Status:
    return "pass" if good else "fail"


def _shown(answer: Reply) -> str:
    """A reply, shortened to one line."""
    if answer.status != 200:
        return f"status {answer.status}: {answer.raw[:80]}"
    if answer.calls:
        return ", ".join(
            f"{call.get('name')}({json.dumps(call.get('input'), ensure_ascii=False)[:50]})" for call in answer.calls
        )
    return f"{answer.stop or 'no stop reason'}: {answer.text[:60]!r}"


def can_work(rows: Sequence[CheckRow]) -> bool:
    """Whether the agent works: every needed row passed."""
    return all(row.status == "pass" for row in rows if row.needed)
