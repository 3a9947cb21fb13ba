"""What a session's agent reached beside the model, as its sandbox knows it. Standard library only."""

from __future__ import annotations

import contextlib
import json
from typing import Any

#: The file of a session in which its sandbox's proxy says what was reached and refused (sandbox/proxy.py).
NETWORK = "network.json"
#: Places that are named.
_MOST = 5


def read(path: str) -> dict[str, Any]:
    """The proxy's report; empty if there was no proxy."""
    with contextlib.suppress(OSError, ValueError), open(path, encoding="utf-8") as file:
        return dict(json.load(file))
    return {}


def receipt(level: str, report: dict[str, Any]) -> str:
    """What the agent connected to, in one line."""
    if level != "strict":
        return f"Receipt: sandbox {level}; connections were not watched."
    reached = report.get("reached", {})
    went = _listed([f"{place} ({count})" for place, count in reached.items()])
    count = sum(reached.values())
    beyond = f"{count} connection{'s' if count != 1 else ''} beyond the model{': ' if went else ''}{went}"
    refused = _listed(list(report.get("refused", {})))
    return f"Receipt: sandbox strict; {beyond}{f'; refused: {refused}' if refused else ''}."


def refusals(report: dict[str, Any]) -> str:
    """What to say at the end of connections that the proxy refused; a line each."""
    rows = list(report.get("refused", {}).items())
    lines = [f"    {place}: {f'to allow it, {why}' if why.startswith('--') else why}\n" for place, why in rows[:_MOST]]
    more = f"    and {len(rows) - _MOST} more\n" if len(rows) > _MOST else ""
    return f"\n• The sandbox refused connections:\n{''.join(lines)}{more}" if rows else ""


def _listed(words: list[str]) -> str:
    more = f" and {len(words) - _MOST} more" if len(words) > _MOST else ""
    return ", ".join(words[:_MOST]) + more
