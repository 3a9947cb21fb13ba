"""Keeps the KV cache of a session's conversation on disk, for the session that goes on with it.

The server writes it; here is decided when, and under which name. A state is a file NAME.bin with a note NAME.json,
which is written last: a state without a note is incomplete. Standard library only, because the keeper imports it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cclocal.turns import Turn, end_of, turns

#: The names of conversations' states begin with this; those of prompts do not.
PREFIX = "c-"
#: Fewer new tokens are read again faster than a file is worth.
LEAST_TOKENS = 512
#: An engine that keeps less of a conversation's first turn did not use the state.
LEAST_KEPT_TOKENS = 64
#: Seconds without a request after which a conversation is saved in mid-session.
IDLE_S = 20.0
#: It has grown by this share since the last time, so that all saves of a session together write a few times its size.
GROWTH = 1.25
#: A save that took longer is not repeated before the session's end: a request would have to wait for it.
MOST_SECONDS = 1.0
#: Nothing is saved with less free disk space; the states of all conversations together take at most so much.
SPARE_BYTES, CAP_BYTES = 4 * 10**9, 16 * 10**9
_TAIL_BYTES = 262_144


class Conversation:
    """The saved state of one session's conversation.

    Options: `folder`, in which the server saves; `save` and `restore`, [method, path, body] of its requests, with
    `{name}` for a file's name; `counted`, a pattern of the saved tokens in its answer; `log` and `log_reader`; `about`,
    what a state depends on beside the conversation; `restores`, the file and the key of what is known of this engine;
    `idle_s`, seconds without a request after which it is saved; `most_bytes`, of a state; `note`, what goes
    into the note with it.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options
        self.folder: str = options["folder"]
        #: tokens that are on disk or need not be, and the bytes of a token, as far as that is known
        self.kept_tokens, self.kept_at_first, self.token_bytes = 0, 0, 0.0
        #: of the part that every conversation begins with, if it is known
        self.prompt_tokens = 0
        self.written_bytes, self.state = 0, ""
        #: the conversation and the file that a save is running for
        self.saving = self.part = ""
        self.took_s = 0.0
        self.answered = 0

    def begin(self, kept: Mapping[str, Any]) -> None:
        """Learn from the launcher what the session began with: `tokens` that are on disk already, and their `bytes`.

        `state`: the file of a conversation that it goes on with.
        """
        self.kept_tokens = self.kept_at_first = kept.get("tokens", 0)
        self.state = kept.get("state", "")
        self.prompt_tokens = 0 if self.state else self.kept_tokens
        self.token_bytes = kept.get("bytes", 0) / self.kept_tokens if self.kept_tokens else 0.0

    def carry(self, conversation: str) -> None:
        """Let a branch of the conversation that the session went on with have its state, if it has none of its own."""
        if self.state and not self.written_bytes and conversation:
            with contextlib.suppress(OSError, ValueError):
                self._carry(conversation)

    def _carry(self, conversation: str) -> None:
        old, new = os.path.join(self.folder, self.state.removesuffix(".bin")), self._path(conversation)
        with open(f"{old}.json", encoding="utf-8") as file:
            note = json.load(file)
        if note["conversation"] != conversation and not os.path.exists(f"{new}.bin"):
            os.link(f"{old}.bin", f"{new}.bin")
            self._write_json(f"{new}.json", {**note, "conversation": conversation})

    def is_due(self, relay: Mapping[str, Any]) -> bool:
        """Whether to save now, in mid-session. `relay`: its status."""
        if self.saving or self.took_s > MOST_SECONDS or relay["answered"] == self.answered:
            return False
        if (relay["idle_s"] or 0.0) < self.options["idle_s"]:
            return False
        self.answered = relay["answered"]
        return self.is_worth_it()

    def is_worth_it(self) -> bool:
        """Whether a state saves more time than it costs: by the speeds of this session and of earlier saves.

        False if nothing can be saved: somebody may have removed the folder.
        """
        with contextlib.suppress(OSError):
            return self._is_worth_it()
        return False

    def _is_worth_it(self) -> bool:
        # in other slots are subagents
        found = [turn for turn in self._turns() if not (turn.is_ours or turn.slot) and turn.prompt_tokens]
        if not found:
            return False
        tokens = (found[-1].prompt_tokens or 0) + (found[-1].written_tokens or 0)
        # a conversation that was compacted, or begun anew, has little to do with what was saved
        new = tokens - (self.kept_tokens if tokens >= self.kept_tokens else self.prompt_tokens)
        is_soon = self.written_bytes and self.kept_tokens <= tokens < GROWTH * self.kept_tokens
        if new < LEAST_TOKENS or is_soon:
            return False
        size = tokens * self.token_bytes
        disk = os.statvfs(self.folder)
        if disk.f_bavail * disk.f_frsize < SPARE_BYTES + size or size > self.options["most_bytes"]:
            return False
        speeds = [turn.read_per_s for turn in found if turn.read_per_s and (turn.read_tokens or 0) >= LEAST_TOKENS]
        per_s = self._disk_speed()
        # written once, read once
        return not (speeds and per_s) or 2 * size / per_s < new / min(speeds)

    def _turns(self) -> list[Turn]:
        return turns(end_of(self.options["log"], _TAIL_BYTES), (self.options["log_reader"],))[0]

    def _disk_speed(self) -> float:
        """Bytes per second of the newest save on this machine; 0.0 if there was none."""
        found = [(note["at_s"], note["size_bytes"] / max(note["took_s"], 0.001)) for _, note in self._notes()]
        return float(max(found, default=(0.0, 0.0))[1])

    def _notes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The path of each state, and its note."""
        for name in os.listdir(self.folder):
            if name.startswith(PREFIX) and name.endswith(".json"):
                path = os.path.join(self.folder, name)
                with contextlib.suppress(OSError, ValueError, KeyError), open(path, encoding="utf-8") as file:
                    note = json.load(file)
                    if {"at_s", "size_bytes", "took_s"} <= note.keys():
                        yield path.removesuffix("json") + "bin", note

    def learn(self) -> None:
        """Remember whether the state that was restored was of use to the first turn."""
        if self.state:
            with contextlib.suppress(OSError):
                self._learn()

    def _learn(self) -> None:
        """Little use is no sign: another conversation may have been chosen. No use at all is one, as even another
        conversation begins with the same prompt.
        """
        with open(self.options["log"], encoding="utf-8", errors="replace") as log:
            every = turns(log.read(_TAIL_BYTES), (self.options["log_reader"],))[0]
        kept = next((turn.kept_tokens for turn in every if not turn.is_ours and turn.kept_tokens is not None), None)
        if kept is None or LEAST_KEPT_TOKENS <= kept <= self.kept_at_first // 2:
            return
        path, about = self.options["restores"]
        known: dict[str, bool] = {}
        with contextlib.suppress(OSError, ValueError), open(path, encoding="utf-8") as file:
            known = json.load(file)
        if about not in known:
            self._write_json(path, {**known, about: kept > self.kept_at_first // 2})

    def save(self, conversation: str) -> list[str]:
        """The request that saves a conversation, by its id."""
        self.saving, self.part = conversation, f"{os.path.basename(self._path(conversation))}.{os.getpid()}.part"
        return [word.replace("{name}", self.part) for word in self.options["save"]]

    def _path(self, conversation: str) -> str:
        """A state's path without its ending."""
        import hashlib

        about = f"{conversation} | {self.options['about']}"
        return os.path.join(self.folder, PREFIX + hashlib.sha256(about.encode()).hexdigest()[:24])

    def give_up(self) -> None:
        """Forget a save whose relay was killed: no answer will come. (A later launch removes the part file.)"""
        self.saving = ""

    def saved(self, answer: str, took_s: float) -> tuple[str, list[str]]:
        """Give what the server wrote its name and its note.

        Returns (a line for the log, the request that restores it), both empty if nothing was saved.
        """
        conversation, part, self.saving = self.saving, os.path.join(self.folder, self.part), ""
        counted = re.search(self.options["counted"], answer)
        try:
            if not counted:
                return "", []
            self.took_s = took_s
            return self._keep(conversation, part, int(counted[1]))
        except OSError:
            # a full disk: the next session reads it again
            return "", []
        finally:
            with contextlib.suppress(OSError):
                os.unlink(part)

    def _keep(self, conversation: str, part: str, tokens: int) -> tuple[str, list[str]]:
        os.chmod(part, 0o600)
        path, size = self._path(conversation), os.path.getsize(part)
        note = {
            **self.options["note"],
            "conversation": conversation,
            "about": self.options["about"],
            "tokens": tokens,
            "size_bytes": size,
            "took_s": round(self.took_s, 3),
            "at_s": time.time(),
            "sha256": checksum(part),
        }
        with contextlib.suppress(FileNotFoundError):
            # from here to its end the state is incomplete
            os.unlink(f"{path}.json")
        os.replace(part, f"{path}.bin")
        self._write_json(f"{path}.json", note)
        self.kept_tokens, self.token_bytes = tokens, size / max(tokens, 1)
        self.written_bytes += size
        remove_oldest((state for state, _ in self._notes()), CAP_BYTES)
        words = f"The conversation was saved: {tokens:,} tokens, {size / 1e6:,.1f} MB in {self.took_s:.1f} s"
        if self.written_bytes > size:
            words += f"; {self.written_bytes / 1e6:,.1f} MB in this session"
        state = f"{os.path.basename(path)}.bin"
        return f"{words}.", [word.replace("{name}", state) for word in self.options["restore"]]

    def _write_json(self, path: str, table: Mapping[str, Any]) -> None:
        with open(os.open(f"{path}.part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(table, file)
        os.replace(f"{path}.part", path)


def request_file(folder: str, note: Mapping[str, Any]) -> str:
    """The file of a conversation's last request: of the agent's, whichever model answered it."""
    import hashlib

    about = hashlib.sha256(f"{note['agent']} {note['conversation']}".encode()).hexdigest()
    return os.path.join(folder, f"{PREFIX}{about[:24]}.request")


def remove_oldest(states: Iterable[str], cap_bytes: int) -> None:
    """Remove the states that were used longest ago, and their notes, until the others are below the cap."""
    total = 0
    for state in sorted(states, key=os.path.getmtime, reverse=True):
        total += os.path.getsize(state)
        if total > cap_bytes:
            for path in (state.removesuffix("bin") + "json", state):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)


def checksum(path: str) -> str:
    """The SHA-256 of a file."""
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
