"""Reads replies from Ollama's log, which has only how long each one took. Standard library only.

The status line loads this file by its path, so it imports nothing of cclocal.
"""

from __future__ import annotations

import re
from typing import Any

#: Claude Code asks for the beta; cclocal's own requests do not.
_GIN = re.compile(r'\[GIN\] .*?(\d\d):(\d\d):(\d\d) \| 200 \| +([\dµa-z.]+) \|.*POST +"/v1/messages\?beta=true"')
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "µs": 1e-6}


def turns(text: str) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """(the replies in a log, None), as fields of Turn in cclocal.turns."""
    found: list[dict[str, Any]] = []
    first_s = None
    for line in text.splitlines():
        if match := _GIN.match(line):
            # the time of day, in whole seconds, at which the reply ended
            hours, minutes, seconds = map(int, match.groups()[:3])
            whole_s, end_s = _seconds(match[4]), float(hours * 3600 + minutes * 60 + seconds)
            first_s = end_s - whole_s if first_s is None else first_s
            # a session may go on after midnight
            found.append({"whole_s": whole_s, "began_s": round((end_s - whole_s - first_s) % 86400, 3)})
    return found, None


def _seconds(text: str) -> float:
    """A duration as Go writes it: 1m2.5s, 350.1ms."""
    parts = re.findall(r"([\d.]+)(h|ms|µs|m|s)", text)
    return round(sum(float(number) * _UNITS[unit] for number, unit in parts), 3)
