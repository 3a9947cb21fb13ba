"""What the model is doing, for the line below the agent's prompt, and the turns of a session from its server's log.

A program of its own that the agent runs every other second, with what it knows on standard input:

    python -I -S status_line.py LOG WINDOW MODEL

It reads, and asks nobody: a server that is busy with a prompt answers nobody in time. Formats: llama.cpp's log from
verbosity 4 on (both forms, as run in the tests), the lines of our own in vllm-mlx's, and Gin's in Ollama's, which tell
only how long a reply took.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from typing import NamedTuple

#: So much of a log's end holds the turn that is going on.
TAIL_BYTES = 262_144

#: A speed of fewer is one of chance.
LEAST_WRITTEN_TOKENS = 8
#: A prompt that is read within this time is read without a word about its speed.
UNTOLD_S = 3.0

#: with or without the time and level in front
_TASK = re.compile(r"(?:[\d.]+ [A-Z] )?slot .*?\| task (\d+) \| +(.*)")
_PROMPT = re.compile(r"new prompt, .*task\.n_tokens = +(\d+)")
_PLACE = re.compile(r"cached n_tokens = +(\d+)")
_PROGRESS = re.compile(r"prompt processing.* ([\d.]+) tokens per second")
_WRITING = re.compile(r"n_gen = .* tg_3s = +([\d.]+) t/s")
_READ = re.compile(r"prompt eval time = +([\d.]+) ms / +(\d+) tokens")
_WRITTEN = re.compile(r"eval time = +([\d.]+) ms / +(\d+) tokens")
_MLX = re.compile(r"\[cclocal\] turn (\{.*\})$")
#: Claude Code asks for the beta; what cclocal asks itself does not
_GIN = re.compile(r'\[GIN\] .*\| 200 \| +([\dµa-z.]+) \|.*POST +"/v1/messages\?beta=true"')
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "µs": 1e-6}


class Turn(NamedTuple):
    """One reply, in tokens and seconds; None where the engine does not tell.

    prompt: all that was asked; read: what of it was evaluated; kept: what was in the KV cache already; written: the
    reply. first_s: until the first token; writing_s: from there to the last; whole_s: both.
    """

    prompt_tokens: int | None = None
    read_tokens: int | None = None
    kept_tokens: int | None = None
    written_tokens: int | None = None
    first_s: float | None = None
    writing_s: float | None = None
    whole_s: float | None = None

    @property
    def read_per_s(self) -> float | None:
        """Tokens of the prompt evaluated a second."""
        return self.read_tokens / self.first_s if self.read_tokens and self.first_s else None

    @property
    def write_per_s(self) -> float | None:
        """Tokens written a second, of replies long enough to tell."""
        written = self.written_tokens or 0
        return written / self.writing_s if written >= LEAST_WRITTEN_TOKENS and self.writing_s else None

    @property
    def is_ours(self) -> bool:
        """Whether cclocal itself asked: if the server answers, or to have a prompt read. Then one token is written."""
        return self.written_tokens == 1


class Now(NamedTuple):
    """A reply that is being made: its prompt, how far the reading is, how fast, and whether the last batch is read.

    write_per_s: tokens per second, once some were written. The log does not tell when reading ends and writing begins.
    """

    prompt_tokens: int
    place_tokens: int = 0
    read_per_s: float | None = None
    is_last: bool = False
    write_per_s: float | None = None
    #: known when all is over
    read_tokens: int = 0
    first_s: float | None = None


def turns(text: str) -> tuple[list[Turn], Now | None]:
    """(the turns that a log tells of, what is being done at its end).

    A line that is not known, or only looks like one, is passed over.
    """
    found: list[Turn] = []
    doing: dict[str, Now] = {}
    for line in text.splitlines():
        try:
            if match := _TASK.match(line):
                turn = _after(doing, *match.groups())
            elif match := _MLX.match(line):
                turn = _of_mlx(match[1])
            elif match := _GIN.match(line):
                turn = Turn(whole_s=_seconds(match[1]))
            else:
                continue
        except (ValueError, KeyError, TypeError):
            continue
        found += [turn] if turn else []
    return found, next(reversed(doing.values()), None)


def _after(doing: dict[str, Now], task: str, told: str) -> Turn | None:
    """Take note of what a line of llama.cpp's says of a task; the turn that ends with it, if one does."""
    if new := _PROMPT.match(told):
        doing[task] = Now(int(new[1]))
        return None
    now = doing.get(task)
    if now is None:
        return None
    if at := _PLACE.match(told):
        doing[task] = now._replace(place_tokens=int(at[1]))
    elif told.startswith("init sampler"):
        doing[task] = now._replace(is_last=True)
    elif going := _WRITING.match(told):
        doing[task] = now._replace(write_per_s=float(going[1]))
    elif going := _PROGRESS.match(told):
        doing[task] = now._replace(read_per_s=float(going[1]))
    elif done := _READ.match(told):
        doing[task] = now._replace(first_s=float(done[1]) / 1000, read_tokens=int(done[2]))
    elif now.first_s is not None and (done := _WRITTEN.match(told)):
        del doing[task]
        seconds, read = float(done[1]) / 1000, now.read_tokens
        whole_s = now.first_s + seconds
        return Turn(now.prompt_tokens, read, now.prompt_tokens - read, int(done[2]), now.first_s, seconds, whole_s)
    elif told.startswith("stop processing"):
        # broken off by whoever asked
        del doing[task]
    return None


def _of_mlx(told: str) -> Turn:
    table = json.loads(told)
    first, writing = table["first_s"], table["writing_s"]
    return Turn(table["prompt_tokens"], None, None, table["written_tokens"], first, writing, round(first + writing, 3))


def _seconds(told: str) -> float:
    """A duration as Go writes it: 1m2.5s, 350.1ms."""
    parts = re.findall(r"([\d.]+)(h|ms|µs|m|s)", told)
    return round(sum(float(number) * _UNITS[unit] for number, unit in parts), 3)


def tail(path: str, most_bytes: int = TAIL_BYTES) -> tuple[str, float]:
    """(the end of a log, for how many seconds nothing was added to it); empty if there is none."""
    try:
        with open(path, "rb") as log:  # noqa: PTH123 - it starts again and again
            silent_s = max(0.0, time.time() - os.fstat(log.fileno()).st_mtime)
            log.seek(max(0, log.seek(0, os.SEEK_END) - most_bytes))
            return log.read().decode("utf-8", "replace"), silent_s
    except OSError:
        return "", 0.0


def line(told: dict[str, object], log: str, silent_s: float, window_tokens: int, model: str) -> str:
    """The status line, for what the agent tells of itself and what the log's end says. What changes comes first."""
    every, now = turns(log)
    done = [turn for turn in every if not turn.is_ours]
    used = _used(told)
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


def _used(told: dict[str, object]) -> int | None:
    """How much of the window the agent's newest reply and its prompt fill, as the server counted them.

    None if the agent does not tell, 0 if there is no reply yet, as after /clear.
    """
    window = told.get("context_window")
    if window is None:
        return None
    usage = window.get("current_usage") if isinstance(window, dict) else None
    counts = usage.items() if isinstance(usage, dict) else ()
    return sum(count for name, count in counts if name.endswith("_tokens") and isinstance(count, int))


def _doing(now: Now, silent_s: float) -> str:
    left = now.prompt_tokens - now.place_tokens
    if now.write_per_s:
        return f"writing, {now.write_per_s:.0f} tokens/s"
    # nothing tells that the last batch was read, but the time it takes
    if now.is_last and silent_s > (left / now.read_per_s if now.read_per_s else UNTOLD_S):
        return "writing"
    said = f"reading {now.place_tokens:,} of {now.prompt_tokens:,}"
    if now.read_per_s and left > 0:
        seconds = left / now.read_per_s
        said += f", {seconds:.0f} s left" if seconds < 100 else f", {seconds / 60:.0f} min left"
    return said


def _last(turn: Turn) -> list[str]:
    said = []
    if turn.read_tokens is not None and turn.kept_tokens is not None and turn.prompt_tokens:
        said.append(
            f"read {turn.read_tokens:,} in {turn.first_s:.1f} s, {turn.kept_tokens / turn.prompt_tokens:.0%} kept"
        )
    else:
        said.append(f"first word after {turn.first_s:.1f} s")
    if turn.write_per_s:
        said.append(f"{turn.write_per_s:.0f} tokens/s")
    return said


def main() -> None:
    """Print the line for the log, the window and the model on the command line."""
    try:
        told = json.load(sys.stdin)
    except ValueError:
        told = {}
    _, log, window, model = sys.argv
    # an old locale prints ? for what it does not have
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    print(line(told if isinstance(told, dict) else {}, *tail(log), int(window), model))


if __name__ == "__main__":
    main()
