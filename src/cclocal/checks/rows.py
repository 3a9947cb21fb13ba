"""What a model must show to drive an agent: real requests to a running server, judged by what arrives.

Each row is pass, fail, or "not exercised": the model never did what the row is about. Such a row never passes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

from cclocal import http
from cclocal.checks.conversation import Server, TooSlowError, user, with_result
from cclocal.checks.picture import image, png
from cclocal.command import Endpoint
from cclocal.settings import Sight
from cclocal.wires.wire import Calls, Reply, Wire

#: Seconds for each step of a request but the reply itself, which has a limit of its own.
_LIMIT_S = 30.0
#: Quotes of both kinds, braces, backslashes, tabs and line ends: characters that JSON escapes.
_DENSE = 'a = "x" + \'y\'\nif a != \'"\':\n\tprint(f"{a!r} \\\\ {{}}")\n# end'
#: Text that some servers' tool and thinking parsers treat as their own marks.
_MARKED = "say <think> and <tool_call> and <|channel> as they are"
#: More than a reply of 24 tokens holds.
_LONG = " ".join(f"word{i}" for i in range(200))
#: The picture that is shown: large enough for every projector.
_SIDE, _RED = 256, (255, 0, 0)
_COLOUR = "What colour is it? Answer in one word."
_UNSEEN = "Pictures do not reach the model, or it does not understand them."
#: After so many replies without a tool call nothing more is tried.
ENOUGH_REPLIES = 3
Status = Literal["pass", "fail", "not exercised"]
#: A row's status, what was received, and what that means for the user.
Outcome = tuple[Status, str, str]

_UNTRIED: Outcome = ("not exercised", "not tried", f"The model called no tool in {ENOUGH_REPLIES} replies.")


class CheckRow(NamedTuple):
    """One thing that was tried: its outcome, and what that means for the user. `needed`: no agent works without it."""

    name: str
    status: Status
    detail: str
    meaning: str
    needed: bool


def can_work(rows: Sequence[CheckRow]) -> bool:
    """Whether the agent works: every needed row passed."""
    return all(row.status == "pass" for row in rows if row.needed)


def was_tried(row: CheckRow) -> bool:
    """Whether anything was asked for this row."""
    return (row.status, row.detail, row.meaning) != _UNTRIED


def run(
    endpoint: Endpoint, wire: Wire, calls: Calls, title: str, context_tokens: int, *, sees: Sight | None = None
) -> Iterator[tuple[str, Callable[[], CheckRow]]]:
    """Every row about the server: its name, and what tries it.

    `calls`: the agent's tools. `title`: its name in messages. `sees`: which pictures the model sees.
    """
    with http.client(endpoint.url, endpoint.key, limit_s=_LIMIT_S) as client:
        # one connection per request: a kept one that the server has just closed would look like a failure
        client.headers["connection"] = "close"
        server = Server(client, wire, calls, endpoint.model, title, context_tokens)
        for row in (*_ROWS, *_ROWS_OF_PICTURES.get(sees, ())):
            yield row.__doc__ or "", partial(_tried, row, server)


def _tried(row: Callable[[Server], Outcome], server: Server) -> CheckRow:
    try:
        # the rest would take minutes to show the same
        is_hopeless = len(server.calls_seen) >= ENOUGH_REPLIES and not any(server.calls_seen)
        outcome = _UNTRIED if is_hopeless else row(server)
    except TooSlowError as error:
        outcome = "fail", str(error), "The server hangs, or is too slow for an agent."
    except Exception as error:
        # any error is a failed row: the server sent something that cannot be read
        meaning = "The server closed the connection, or its answer cannot be read."
        outcome = "fail", f"{type(error).__name__}: {error}", meaning
    return CheckRow(row.__doc__ or "", *outcome, needed=row in _NEEDED)


# -- the rows ---------------------------------------------------------------------------------------------------


def _judged(good: bool, shown: Reply | str, if_good: str, if_bad: str) -> Outcome:
    return "pass" if good else "fail", str(shown), if_good if good else if_bad


def _dense_write(server: Server) -> Outcome:
    """A file full of quotes arrives byte for byte"""
    answer = server.ask(server.create("notes.py", _DENSE))
    good = answer.first_input == server.calls.written("notes.py", _DENSE) and answer.stop == "tool_use"
    return _judged(good, answer, "Files are written as the model meant them.", "Files come out wrong, or not at all.")


def _result(server: Server) -> Outcome:
    """A tool's result ends the turn"""
    messages = server.create("one.txt", "first")
    answer = server.ask(messages)
    if not answer.calls:
        return "fail", str(answer), "No tool is called, so nothing is done."
    after = server.ask(with_result(messages, answer))
    good = after.stop == "end_turn" and not after.calls
    bad = "The agent repeats itself or stops in the middle."
    return _judged(good, after, "The agent knows when it is done.", bad)


def _chain(server: Server) -> Outcome:
    """A second tool call after the first one's result"""
    messages = server.create("one.txt", "first")
    answer = server.ask(messages)
    after = server.ask(with_result(messages, answer, "Run the command: wc -c one.txt"))
    if not after.calls:
        meaning = "Not seen: the model answered without a tool call. Multi-step tasks may stop halfway."
        return "not exercised", str(after), meaning
    return _judged(
        server.has_run(after, "wc -c one.txt"), after, "Multi-step tasks continue.", "Multi-step tasks stop halfway."
    )


def _parallel(server: Server) -> Outcome:
    """Two calls in one reply"""
    answer = server.ask([user("In one reply, run the command: echo one — and in a second call run: echo two")])
    if len(answer.calls) < 2:
        detail = "one call at a time" if answer.calls else str(answer)
        return "not exercised", detail, "Not seen. Several files are read one after the other, which is slower."
    good = len({call.get("id") for call in answer.calls}) == len(answer.calls)
    return _judged(good, answer, "Several files are read at once.", "Several files are read at once.")


def _union(server: Server) -> Outcome:
    """A tool with a union in its schema"""
    answer = server.ask([user("Run the command: echo union")])
    return _judged(
        server.has_run(answer, "echo union"),
        answer,
        "Tools of MCP servers work.",
        "Tools with such schemas do not work.",
    )


def _late_system(server: Server) -> Outcome:
    """A system message in the middle of a conversation"""
    messages = [user("Hello"), {"role": "assistant", "content": "Hello."}, {"role": "system", "content": "Be brief."}]
    answer = server.ask([*messages, *server.create("late.txt", "still here")])
    good = answer.first_input == server.calls.written("late.txt", "still here")
    accepted = f"Reminders that {server.title} sends during a session are accepted."
    return _judged(good, answer, accepted, "Long sessions may break off.")


def _count(server: Server) -> Outcome:
    """Tokens are counted before they are sent"""
    if not server.wire.COUNT_PATH:
        return "not exercised", "this API cannot", f"{server.title} goes by what earlier replies reported."
    body = {"model": server.model, "system": server.system, "tools": server.tools, "messages": [user("Hello")]}
    reply = server.client.post(server.wire.COUNT_PATH, json=body)
    counted = reply.json().get("input_tokens", 0) if reply.status_code == 200 else 0
    detail = f"{counted} tokens" if counted else str(reply.status_code)
    estimates = f"{server.title} estimates; compaction may start early or late."
    return _judged(bool(counted), detail, "/context is exact.", estimates)


def _stream(server: Server) -> Outcome:
    """A stream says the same as a whole reply"""
    whole, streamed = (server.ask(server.create("s.txt", "the same twice"), stream=stream) for stream in (False, True))
    whole_calls, streamed_calls = (
        [(call.get("name"), call.get("input")) for call in answer.calls] for answer in (whole, streamed)
    )
    good = bool(whole.calls) and whole_calls == streamed_calls and whole.stop == streamed.stop
    bad = f"{server.title} streams its replies, so tool calls will break."
    return _judged(good, streamed, "Streamed replies are complete.", bad)


def _usage(server: Server) -> Outcome:
    """A stream reports the prompt's token count"""
    answer = server.ask(server.create("u.txt", "count me"), stream=True)
    tokens = answer.input_tokens + (answer.cached_tokens or 0)
    bad = f"{server.title} cannot see its context window fill up."
    return _judged(tokens > 0, f"{tokens} tokens", "The used part of the context window is known.", bad)


def _cut(server: Server) -> Outcome:
    """A reply that is cut off has the stop reason for it"""
    answer = server.ask(server.create("long.txt", _LONG), out_tokens=24)
    bad = "A half-written file may be taken for a complete one."
    return _judged(answer.stop == "max_tokens", answer, f"{server.title} notices and goes on.", bad)


def _cut_call(server: Server) -> Outcome:
    """A tool call that is cut off is not reported as complete"""
    answer = server.ask(server.create("long.txt", _LONG), out_tokens=24, stream=True)
    good = answer.stop == "max_tokens" or answer.first_input == server.calls.written("long.txt", _LONG)
    bad = "A cut-off call looks complete: files are lost."
    return _judged(good, answer, "A tool call that was cut off is reported.", bad)


def _no_thinking(server: Server) -> Outcome:
    """Thinking stays out of the text"""
    answer = server.ask([user("How are you?")])
    if not answer.text:
        return "not exercised", str(answer), "The model wrote no text."
    leaks = [mark for mark in ("<think>", "</think>", "<|channel|>", "<|channel>", "reasoning:") if mark in answer.text]
    detail = ", ".join(leaks) or answer.text[:60]
    bad = "Thinking appears in the answer and in later requests."
    return _judged(not leaks, detail, "Answers contain no thinking.", bad)


def _marks(server: Server) -> Outcome:
    """A file that contains a parser's own marks arrives byte for byte"""
    answer = server.ask(server.create("marks.txt", _MARKED))
    good = answer.first_input == server.calls.written("marks.txt", _MARKED)
    return _judged(good, answer, "Files may contain such marks.", "Files that contain such marks are damaged.")


def _cache(server: Server) -> Outcome:
    """A second turn does not read the whole prompt again"""
    filler = " ".join(f"line {i} of the notes." for i in range(300))
    messages = [user(f"{filler} How are you?")]
    first = server.ask(messages)
    said = {"role": "assistant", "content": first.text or "Fine."}
    second = server.ask([*messages, said, user("How are you?")])
    if second.cached_tokens is None:
        return "not exercised", "the server does not report it", "How many tokens are read again is unknown."
    good = second.cached_tokens > second.input_tokens
    detail = f"{second.cached_tokens} tokens kept, {second.input_tokens} read"
    return _judged(good, detail, "A turn reads only its new tokens.", "Every turn reads the whole prompt again.")


def _picture_read(server: Server) -> Outcome:
    """A picture that a tool returns is seen"""
    call = {"type": "tool_use", "id": "call_1", "name": "Read", "input": {"file_path": "shot.png"}}
    result = {"type": "tool_result", "tool_use_id": "call_1", "content": [image(png(_RED, _SIDE, _SIDE))]}
    asked = [user(f"Read shot.png. {_COLOUR}"), {"role": "assistant", "content": [call]}]
    answer = server.ask([*asked, {"role": "user", "content": [result]}])
    return _judged("red" in answer.text.lower(), answer, "Screenshots can be shown to it.", _UNSEEN)


def _picture_named(server: Server) -> Outcome:
    """A picture in a message is seen"""
    answer = server.ask(
        [{"role": "user", "content": [image(png(_RED, _SIDE, _SIDE)), {"type": "text", "text": _COLOUR}]}]
    )
    good = "Screenshots can be shown to it in a message; this engine drops those that a tool returns."
    return _judged("red" in answer.text.lower(), answer, good, _UNSEEN)


def _too_long(server: Server) -> Outcome:
    """A prompt beyond the window is refused, not cut"""
    # one token per word in nearly every vocabulary
    answer = server.ask([user(f"{' the' * server.context_tokens} How are you?")], out_tokens=16)
    said = re.search(r"context|too long|exceed|length|tokens", answer.raw, re.IGNORECASE)
    loud = answer.status in (400, 413, 422) and bool(said)
    bad = "The beginning of the conversation is dropped silently."
    return _judged(loud, f"status {answer.status}", f"{server.title} compacts and goes on.", bad)


_ROWS: tuple[Callable[[Server], Outcome], ...] = (
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
#: For a model that sees pictures.
_ROWS_OF_PICTURES: Mapping[Sight | None, tuple[Callable[[Server], Outcome], ...]] = {
    "messages": (_picture_named,),
    "all": (_picture_read,),
}
#: Without these the agent cannot work.
_NEEDED = (_dense_write, _result, _union, _stream)
