"""Reads replies from llama.cpp's log (from verbosity 4 on, both forms of the server). Standard library only.

The status line loads this file by its path, so it imports nothing of cclocal.
"""

from __future__ import annotations

import re
from typing import Any

#: With or without the time and level in front.
_TASK = re.compile(r"(?:[\d.]+ [A-Z] )?slot .*?\| task (\d+) \| +(.*)")
_PROMPT = re.compile(r"new prompt, .*task\.n_tokens = +(\d+)")
_PLACE = re.compile(r"cached n_tokens = +(\d+)")
_PROGRESS = re.compile(r"prompt processing.* ([\d.]+) tokens per second")
_WRITING = re.compile(r"n_gen = .* tg_3s = +([\d.]+) t/s")
_READ = re.compile(r"prompt eval time = +([\d.]+) ms / +(\d+) tokens")
_WRITTEN = re.compile(r"eval time = +([\d.]+) ms / +(\d+) tokens")


def turns(text: str) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """(the replies in a log, the one that is being made at its end), as fields of Turn and Now in cclocal.turns.

    A line that is unknown, or only looks like a known one, is skipped.
    """
    found: list[dict[str, Any]] = []
    tasks: dict[str, dict[str, Any]] = {}
    for line in text.splitlines():
        match = _TASK.match(line)
        try:
            turn = _after(tasks, match[1], match[2]) if match else None
        except ValueError:
            continue
        found += [turn] if turn else []
    return found, next(reversed(tasks.values()), None)


def _after(tasks: dict[str, dict[str, Any]], task: str, text: str) -> dict[str, Any] | None:
    """Note what a line says of a task. Returns the turn that ends with it, if one does."""
    if new := _PROMPT.match(text):
        tasks[task] = {"prompt_tokens": int(new[1]), "place_tokens": 0}
        return None
    now = tasks.get(task)
    if now is None:
        return None
    if at := _PLACE.match(text):
        now["place_tokens"] = int(at[1])
    elif text.startswith("init sampler"):
        now["is_last"] = True
    elif going := _WRITING.match(text):
        now["write_per_s"] = float(going[1])
    elif going := _PROGRESS.match(text):
        now["read_per_s"] = float(going[1])
    elif done := _READ.match(text):
        now["first_s"], now["read_tokens"] = float(done[1]) / 1000, int(done[2])
    elif "first_s" in now and (done := _WRITTEN.match(text)):
        del tasks[task]
        writing_s, read, first_s = float(done[1]) / 1000, now["read_tokens"], now["first_s"]
        return {
            "prompt_tokens": now["prompt_tokens"],
            "read_tokens": read,
            "kept_tokens": now["prompt_tokens"] - read,
            "written_tokens": int(done[2]),
            "first_s": first_s,
            "writing_s": writing_s,
            "whole_s": first_s + writing_s,
        }
    elif text.startswith("stop processing"):
        # cancelled by the client
        del tasks[task]
    return None
