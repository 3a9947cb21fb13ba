"""Reads replies from the lines that wrapper.py adds to vllm-mlx's log. Standard library only.

The status line loads this file by its path, so it imports nothing of cclocal.
"""

from __future__ import annotations

import json
import re
from typing import Any

_TURN = re.compile(r"\[cclocal\] turn (\{.*\})$")


def turns(text: str) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """(the replies in a log, None), as fields of Turn in cclocal.turns."""
    found = []
    for line in text.splitlines():
        match = _TURN.match(line)
        try:
            row = json.loads(match[1]) if match else None
            if row:
                first, writing = row["first_s"], row["writing_s"]
                found.append(
                    {
                        "prompt_tokens": row["prompt_tokens"],
                        "written_tokens": row["written_tokens"],
                        "first_s": first,
                        "writing_s": writing,
                        "whole_s": round(first + writing, 3),
                    }
                )
        except (ValueError, KeyError, TypeError):
            continue
    return found, None
