"""Reads replies from llama.cpp's log (from verbosity 4 on, both forms of the server). Standard library only.

The status line loads this file by its path, so it imports nothing of cclocal.
"""

from __future__ import annotations

import re
from typing import Any

#: With or without the time since the server's start (minutes, seconds, milliseconds, microseconds) and level in front.
_TASK = re.compile(r"(?:([\d.]+) [A-Z] )?slot [^|]*?(?:id +(\d+) )?\| task (\d+) \| +(.*)")
_PROMPT = re.compile(r"new prompt, (?:n_ctx_slot = +(\d+))?.*task\.n_tokens = +(\d+)")
_PLACE = re.compile(r"cached n_tokens = +(\d+)")
_PROGRESS = re.compile(r"prompt processing.* (\d+(?:\.\d+)?) tokens per second")
_WRITING = re.compile(r"n_gen = .* tg_3s = +(\d+(?:\.\d+)?) t/s")
_READ = re.compile(r"prompt eval time = +(\d+(?:\.\d+)?) ms / +(\d+) tokens")
_ACCEPTED = re.compile(r"draft acceptance.*\( *(\d+) accepted")
_WRITTEN = re.compile(r"eval time = +(\d+(?:\.\d+)?) ms / +(\d+) tokens")


def turns(text: str) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """(the replies in a log, the one that is being made at its end), as fields of Turn and Now in cclocal.turns.

    A line that is unknown, or only looks like a known one, is skipped.
    """
    found: list[dict[str, Any]] = []
    tasks: dict[str, dict[str, Any]] = {}
    newest = ""
    for line in text.splitlines():
        match = _TASK.match(line)
        if not match:
            continue
        time, slot, task, said = match.groups()
        now = tasks.get(task)
        if new := _PROMPT.match(said):
            began = {"began_s": _seconds(time), "window_tokens": int(new[1]) if new[1] else None}
            began["slot"] = int(slot) if slot else None
            tasks[task] = {"prompt_tokens": int(new[2]), "place_tokens": 0, "began": began}
        elif now is None:
            # told after the reply's own line
            if task == newest and (guessed := _ACCEPTED.match(said)):
                found[-1]["accepted_tokens"] = int(guessed[1])
        elif at := _PLACE.match(said):
            now["place_tokens"] = int(at[1])
        elif said.startswith("init sampler"):
            now["is_last"] = True
        elif going := _WRITING.match(said):
            now["write_per_s"] = float(going[1])
        elif going := _PROGRESS.match(said):
            now["read_per_s"] = float(going[1])
        elif done := _READ.match(said):
            now["first_s"], now["read_tokens"] = float(done[1]) / 1000, int(done[2])
        elif "first_s" in now and (done := _WRITTEN.match(said)):
            del tasks[task]
            found.append(_turn(now, float(done[1]) / 1000, int(done[2])))
            newest = task
        elif said.startswith("stop processing"):
            # cancelled by the client
            del tasks[task]
    now = next(reversed(tasks.values()), None)
    return found, now and {name: value for name, value in now.items() if name != "began"}


def _turn(now: dict[str, Any], writing_s: float, written_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": now["prompt_tokens"],
        "read_tokens": now["read_tokens"],
        "kept_tokens": now["prompt_tokens"] - now["read_tokens"],
        "written_tokens": written_tokens,
        "first_s": now["first_s"],
        "writing_s": writing_s,
        "whole_s": now["first_s"] + writing_s,
        **now["began"],
    }


def _seconds(time: str | None) -> float | None:
    """A time as llama.cpp writes it: 1.20.740.046."""
    parts = (time or "").split(".")
    if len(parts) != 4 or not all(parts):
        return None
    minutes, seconds, milliseconds, microseconds = map(int, parts)
    return minutes * 60 + seconds + milliseconds / 1e3 + microseconds / 1e6
