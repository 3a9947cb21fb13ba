"""Answers in words where Claude Code would send what the model cannot see: a hook, python -I -S pictures.py WHICH

WHICH pictures the model sees: none; those in the user's messages, as its engine drops those that a tool returns; all.
No engine reads webp or PDF. Claude Code asks before each call of Read (PreToolUse) and before each message of the
user's (UserPromptSubmit), which may name files as @PATH. What is not refused here stays in the conversation, and an
engine that cannot read it refuses every later message too, or drops it without a word. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from pathlib import Path
from typing import Any

#: What Claude Code sends as a picture or a document, by the ends of names.
PICTURES, DOCUMENTS = (".png", ".jpg", ".jpeg", ".gif", ".webp"), (".pdf",)
#: For a user who only wants to name the file.
WITHOUT = "Without the “@” the message is sent, and the file is only named."
#: A file in a message: @PATH, or @"PATH" with spaces in it.
_NAMED = re.compile(r'(?:^|\s)@(?:"([^"]+)"|(\S+))')


def refusal(path: str, folder: str, *, sees: str, by_tool: bool) -> str:
    """Why a file is not shown to the model, and what helps; empty if it may be. `by_tool`: in a result of Read."""
    name, low = Path(path).name, path.lower()
    if low.endswith(DOCUMENTS):
        return f"{name} was not read: a local model gets no PDF. Convert it first: pdftotext {name} -"
    if not low.endswith(PICTURES):
        return ""
    if sees == "none":
        return f"This model cannot see pictures, so {name} was not read. A model that can: cclocal --list-models"
    # Claude Code goes by the name, engines by the bytes
    if low.endswith(".webp") or _begins(_at(path, folder))[8:] == b"WEBP":
        return f"{name} was not read: the engine reads no webp. Convert it first: magick {name} {name}.png"
    if by_tool and sees == "messages":
        return f"{name} was not read: the engine drops pictures that a tool returns. The user may name it: @{name}"
    return ""


def _at(path: str, folder: str) -> Path:
    """A path as it was written, relative to a folder or to the user's home."""
    with contextlib.suppress(RuntimeError):
        return Path(folder, Path(path).expanduser())
    return Path(folder, path)


def _begins(path: Path) -> bytes:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(12)
    return b""


def answer(asked: dict[str, Any], *, sees: str) -> dict[str, Any]:
    """The answer to Claude Code's question; empty = go on."""
    folder = str(asked.get("cwd") or ".")
    if asked.get("hook_event_name") == "UserPromptSubmit":
        named = ("".join(words) for words in _NAMED.findall(str(asked.get("prompt") or "")))
        files = [path for path in named if _at(path, folder).is_file()]
        reasons = filter(None, (refusal(path, folder, sees=sees, by_tool=False) for path in files))
        reason = " ".join(dict.fromkeys(reasons))
        return {"decision": "block", "reason": f"{reason} {WITHOUT}"} if reason else {}
    path = str((asked.get("tool_input") or {}).get("file_path") or "")
    reason = refusal(path, folder, sees=sees, by_tool=True)
    told = {"hookEventName": "PreToolUse", "permissionDecision": "deny", "permissionDecisionReason": reason}
    return {"hookSpecificOutput": told} if reason else {}


def main(argv: list[str]) -> None:
    """Answer one question."""
    if found := answer(json.load(sys.stdin), sees=argv[1]):
        print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv)
