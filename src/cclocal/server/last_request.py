"""The agent's last request of a session, for the next one that goes on with its conversation: it is read ahead there.

Standard library only, because the relay imports it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

#: Only requests with tools are a conversation's: agents ask for titles and the like without.
_WITH_TOOLS = re.compile(rb'"tools": ?\[ ?\{')
#: A larger one, with pictures in it, is not kept.
MOST_BYTES = 8 << 20


class LastRequest:
    """The newest request to one of the paths of messages, held in memory."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = frozenset(paths)
        self.path, self.body = "", b""

    def take(self, path: str, body: bytearray) -> None:
        """Hold a request, if it is of a conversation."""
        if path in self.paths and len(body) <= MOST_BYTES and _WITH_TOOLS.search(body):
            self.path, self.body = path, bytes(body)

    def write(self, file: str, note: Mapping[str, Any]) -> int:
        """Write it to a file that only the user can read, after a line with a note. Returns its bytes; 0 = none."""
        if not self.body:
            return 0
        part = f"{file}.{os.getpid()}.part"
        with contextlib.suppress(OSError):
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
                out.write(json.dumps({**note, "path": self.path}).encode() + b"\n" + self.body)
            os.replace(part, file)
            return len(self.body)
        return 0
