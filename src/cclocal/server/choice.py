"""Which of a session's models a request is for: they take turns in one server's place (--also). Standard library only,
because the relay imports it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class Choice:
    """The models of a session, by the names that requests call them. Option: `models`, the one it begins with first.

    With fewer than two, every request is for the one that is loaded; so is one for a name that is none of them.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.models: list[str] = options.get("models", [])
        self.loaded = self.models[0] if self.models else ""
        #: the one that the keeper was asked to load
        self.wanted = ""
        #: those that could not be loaded, and why
        self.failed: dict[str, str] = {}
        #: requests that are at the server
        self.at_server = 0

    @property
    def is_first(self) -> bool:
        """Whether the session's first model is loaded."""
        return self.loaded == "".join(self.models[:1])

    def of(self, body: bytes | bytearray) -> str:
        """The model that a request names; empty if any will do."""
        if len(self.models) < 2 or not body:
            return ""
        try:
            named = json.loads(body)["model"]
        except (ValueError, KeyError, TypeError):
            return ""
        return named if named in self.models else ""
