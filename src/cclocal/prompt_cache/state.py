"""A saved KV cache of the fixed part of a prompt: a file NAME.bin with a note NAME.json.

The note is written last: a state without a note is incomplete.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import psutil

from cclocal.paths import read_table, write_private
from cclocal.prompt_cache.conversation import is_whole
from cclocal.server.keep import PREFIX, checksum, remove_oldest

#: The states of all prompts together; the least recently used are removed first.
CAP_BYTES = 8 * 10**9
#: Conversations whose last request is kept: some 100 kB each.
MOST_REQUESTS = 200


class PromptState:
    """The state of a prompt, or of its beginning: a first session may be left while the prompt is read.

    `about`: what the prompt depends on, for the user who looks into the note.
    """

    def __init__(self, path: Path, tokens: list[int], about: str) -> None:
        self.path, self.tokens, self.about = path, tokens, about

    @property
    def note(self) -> Path:
        return self.path.with_suffix(".json")

    def count(self) -> int:
        """How many of the prompt's tokens the file holds; 0 if there is none, or if it is not what was written.

        By the tokens, not by the name alone: a template may put the date first.
        """
        note = read_table(self.note)
        count = int(note.get("tokens") or 0)
        is_prompts = 0 < count <= len(self.tokens) and note.get("digest") == digest(self.tokens[:count])
        return count if is_prompts and is_whole(self.path, note) else 0

    def keep(self, part: Path, count: int) -> None:
        """Give a file that a server wrote for so many tokens its name and its note. Raises OSError or FolderError."""
        part.chmod(0o600)
        note = {
            "size_bytes": part.stat().st_size,
            "sha256": checksum(str(part)),
            "tokens": count,
            "digest": digest(self.tokens[:count]),
            "about": self.about,
        }
        # a note beside another file would be wrong
        self.forget()
        part.replace(self.path)
        write_private(self.note, json.dumps(note))
        make_room(self.path.parent)

    def forget(self) -> None:
        """Never use the file again."""
        self.note.unlink(missing_ok=True)

    def kept(self) -> dict[str, int | str]:
        """What a session has of it, for its keeper; the time of its file decides which state is removed first."""
        self.path.touch()
        return {"tokens": len(self.tokens), "bytes": self.path.stat().st_size}


def digest(tokens: list[int]) -> str:
    """A checksum of tokens."""
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def make_room(folder: Path) -> None:
    """Remove incomplete states, and the least recently used until the others are below the cap."""
    for path in folder.iterdir():
        is_left = path.suffix == ".part" and not psutil.pid_exists(int(f"0{path.stem.rpartition('.')[2]}"))
        if is_left or (path.suffix == ".bin" and not path.with_suffix(".json").exists()):
            path.unlink(missing_ok=True)
    remove_oldest((str(path) for path in folder.glob("*.bin") if not path.name.startswith(PREFIX)), CAP_BYTES)
    for path in sorted(folder.glob("*.request"), key=lambda one: one.stat().st_mtime)[:-MOST_REQUESTS]:
        path.unlink(missing_ok=True)
