"""The line below Claude Code's prompt: how full the window is, and what the model server is doing.

A separate program that Claude Code runs every other second, with what it knows on standard input:

    python -I -S status_line.py READER LOG WINDOW MODEL

READER is the program file of the backend that reads its server's log (Backend.LOG_READER). Nothing is asked of the
server: while it evaluates a prompt it answers too late.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time

if __name__ == "__main__":
    # -I -S: our own package is not on the path; two of its modules are needed, which import nothing but this library
    sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "../../..")))  # noqa: PTH100, PTH118, PTH120

from cclocal.turns import OURS, Now, Turn, end_of, news, turns

#: The end of a log that holds the turn that is going on.
TAIL_BYTES = 262_144
#: A last batch of unknown speed counts as read after this.
UNTOLD_S = 3.0


def tail(path: str, most_bytes: int = TAIL_BYTES) -> tuple[str, float]:
    """(the end of a log, the seconds since it grew); empty if there is none."""
    silent_s = 0.0
    with contextlib.suppress(OSError):
        silent_s = max(0.0, time.time() - os.stat(path).st_mtime)  # noqa: PTH116 - pathlib is slower to import
    return end_of(path, most_bytes), silent_s


def line(
    status: dict[str, object],
    found: tuple[list[Turn], Now | None],
    silent_s: float,
    window_tokens: int,
    model: str,
    event: str = "",
) -> str:
    """The status line, from Claude Code's own status and the turns in the log's end. What changes comes first.

    `event`: what happened to the server, as long as it has finished no reply since.
    """
    if event and not found[1]:
        return f"{event} · {model}"
    every, now = found
    done = [turn for turn in every if not turn.is_ours]
    used = _used(status)
    if used is None and done:
        used = (done[-1].prompt_tokens or 0) + (done[-1].written_tokens or 0)
    parts = []
    if used:
        parts.append(f"{_short(used)} of {_short(window_tokens)} tokens ({used / window_tokens:.0%})")
    if now:
        parts.append(_doing(now, silent_s))
    elif used and done and done[-1].first_s is not None:
        parts += _last(done[-1])
    return " · ".join((*parts, model))


def _short(tokens: int) -> str:
    return f"{tokens / 1000:.1f}k" if tokens >= 1000 else str(tokens)


def _used(status: dict[str, object]) -> int | None:
    """How much of the window the newest reply and its prompt fill, in tokens as the server counted them.

    None if Claude Code does not report it, 0 if there is no reply yet, as after /clear.
    """
    window = status.get("context_window")
    if window is None:
        return None
    usage = window.get("current_usage") if isinstance(window, dict) else None
    counts = usage.items() if isinstance(usage, dict) else ()
    return sum(count for name, count in counts if name.endswith("_tokens") and isinstance(count, int))


def _doing(now: Now, silent_s: float) -> str:
    left = now.prompt_tokens - now.place_tokens
    if now.write_per_s:
        return f"writing, {now.write_per_s:.0f} tokens/s"
    # the log has no event for the end of prefill; infer it from the time the last batch should take
    if now.is_last and silent_s > (left / now.read_per_s if now.read_per_s else UNTOLD_S):
        return "writing"
    text = f"reading prompt: {now.place_tokens:,} of {now.prompt_tokens:,}"
    if now.read_per_s and left > 0:
        seconds = left / now.read_per_s
        text += f", {seconds:.0f} s left" if seconds < 100 else f", {seconds / 60:.0f} min left"
    return text


def _last(turn: Turn) -> list[str]:
    if turn.read_tokens is not None and turn.kept_tokens is not None and turn.prompt_tokens:
        kept = turn.kept_tokens / turn.prompt_tokens
        text = [f"read {turn.read_tokens:,} in {turn.first_s:.1f} s, {kept:.0%} kept"]
    else:
        text = [f"first word after {turn.first_s:.1f} s"]
    text += [f"{turn.write_per_s:.0f} tokens/s"] if turn.write_per_s else []
    return [*text, f"{turn.per_step:.1f} a step"] if turn.per_step else text


def main() -> None:
    """Print the line for the arguments on the command line."""
    try:
        status = json.load(sys.stdin)
    except ValueError:
        status = {}
    _, reader, log, window, model = sys.argv
    # an old locale prints ? for characters that it does not have
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    text, silent_s = tail(log)
    readers = (reader,) if reader else ()
    found = turns(text, readers)
    since = turns(text.rpartition(OURS)[2], readers)[0]
    event = "" if since else "".join(news(text)[-1:])
    status = status if isinstance(status, dict) else {}
    chosen = status.get("model")
    # another one after /model
    model = str(chosen.get("id") or model) if isinstance(chosen, dict) else model
    print(line(status, found, silent_s, int(window), model, event))


if __name__ == "__main__":
    main()
