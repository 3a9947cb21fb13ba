"""For `make site`: a link to a file outside docs/, which is no page of the site, becomes the name of that file."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?!adr)[^)]*\)")
_FOLDER = re.compile(r"\[([^\]]+)\]\(adr/\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page's text without such links."""
    return _FOLDER.sub(r"\1: docs/adr", _OUTSIDE.sub(r"\1", markdown))
