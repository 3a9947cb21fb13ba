"""Gives each conversation a slot of its own in a server that has several, so that none costs another what it has read.

llama.cpp takes the idle slot whose tokens have the longest beginning in common with a prompt, of equal ones the first;
its messages API cannot name one. All conversations of an agent begin with the same instructions, so a new one would
take the slot of another. Therefore a new conversation is begun in the slot that it is given: its instructions are
restored there, or evaluated and saved for the next one, and a few words more than any other slot has in common with it.
The request itself then goes there.

Standard library only, because the relay imports it.
"""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from cclocal.server.backing import POLL_S, Backing
from cclocal.server.framing import check_client

#: Characters that are evaluated beyond what a prompt has in common with those in other slots: a few tokens.
MARGIN_CHARACTERS = 200
#: Shorter instructions are evaluated faster than they are saved and restored.
LEAST_CHARACTERS = 2000
#: At most so many states of instructions are kept, some hundred MB each; none is saved with less free disk space.
MOST_SAVED, SPARE_BYTES = 4, 4 * 10**9
#: Limits in seconds: of a request that renders, saves or restores, and of one that evaluates instructions.
ASK_LIMIT_S, READ_LIMIT_S = 60.0, 1800.0


class Asked(NamedTuple):
    """A request: a number for its instructions and tools, one for each message, and its beginning for the chat API."""

    kind: int
    messages: list[int]
    beginning: dict[str, Any]


class Slot:
    """One slot: the conversation in it, as the relay saw it last, and whether a request is there now."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.kind, self.messages = 0, list[int]()
        #: its prompt up to the first message
        self.text = ""
        self.is_busy, self.used_at = False, 0.0

    def goes_on(self, asked: Asked) -> bool:
        """Whether a request goes on with this conversation. The last message of it may have been changed."""
        same = _shared(self.messages, asked.messages)
        return bool(self.messages) and asked.kind == self.kind and same >= max(1, len(self.messages) - 1)


class Slots:
    """The slots of a session's server.

    Option: `slots`, absent where there is one: {"count": of them, "has_main": the first conversation is the session's
    own and keeps slot 0; "render": the path that turns a chat request into the text of its prompt, "read": [path, body]
    of the request that evaluates a text in a slot, "state": the path that saves and restores one, with `{slot}` and
    `{action}`, "folder": where, empty if nothing may be saved}.
    """

    def __init__(self, options: Mapping[str, Any], backing: Backing) -> None:
        self.options: dict[str, Any] = options.get("slots", {})
        self.backing, self.lock = backing, _thread.allocate_lock()
        self.generation, self.slots = -1, list[Slot]()
        #: the slot of a new conversation whose first answer has not begun; no other conversation begins meanwhile
        self.starting: Slot | None = None
        #: of the session's own conversation; whether its prompt is in slot 0 before its first request
        self.main_kind, self.is_filled = 0, False
        #: the saved states, each as (instructions, file name); and how many were written so far
        self.saved, self.written = list[tuple[str, str]](), 0

    def obey(self, message: Mapping[str, Any]) -> None:
        """Take one message of the keeper's."""
        self.is_filled = self.is_filled or bool(message.get("restore"))

    @contextlib.contextmanager
    def held(self, client: socket.socket, path: str, body: bytearray, generation: int) -> Iterator[Slot | None]:
        """Hold the slot of a request's conversation while it is at the server; None = it needs none. Raises HungUp."""
        asked = read_request(path, body) if self.options else None
        if asked is None:
            yield None
            return
        while (found := self._take(asked, generation)) is None:
            check_client(client, POLL_S)
        slot, is_new = found
        try:
            if is_new:
                self._begin(slot, asked)
            yield slot
        finally:
            self.answers(slot)
            with self.lock:
                slot.is_busy, slot.used_at = False, time.monotonic()

    def answers(self, slot: Slot | None) -> None:
        """The server has begun to answer: a conversation that is new is in its slot, and the next one may begin."""
        with self.lock:
            self.starting = None if self.starting is slot else self.starting

    def _take(self, asked: Asked, generation: int) -> tuple[Slot, bool] | None:
        """(the slot for a request, whether it begins a conversation there); None while it has to wait."""
        with self.lock:
            if generation > self.generation:
                self.generation, self.starting = generation, None
                self.slots = [Slot(index) for index in range(self.options["count"])]
            slot = next((slot for slot in self.slots if slot.goes_on(asked)), None)
            is_new = slot is None
            slot = slot or self._place(asked.kind)
            if slot.is_busy or (is_new and self.starting):
                return None
            slot.kind, slot.messages, slot.is_busy = asked.kind, asked.messages, True
            self.starting = slot if is_new else self.starting
            return slot, is_new

    def _place(self, kind: int) -> Slot:
        """The slot for a new conversation: the one that was used longest ago."""
        free = self.slots
        if self.options["has_main"]:
            self.main_kind = self.main_kind or kind
            free = free[:1] if kind == self.main_kind else free[1:]
        return min(free, key=lambda slot: (slot.is_busy, slot.used_at))

    def _begin(self, slot: Slot, asked: Asked) -> None:
        """Make the slot the one that has most in common with a new conversation."""
        before, slot.text = slot.text, self._text_of(asked.beginning)
        others = [one.text for one in self.slots if one is not slot]
        if not slot.text or (self.is_filled and slot.index == 0 and not any((before, *others))):
            # the launcher, or the start of this server, has put its prompt there
            return
        *earlier, last = asked.beginning["messages"]
        bare = {**asked.beginning, "messages": [*earlier, {**last, "content": ""}]}
        fixed, there = _shared(slot.text, self._text_of(bare)), _shared(slot.text, before)
        if there < fixed and fixed >= LEAST_CHARACTERS and self._restore(slot, there) < fixed:
            self._read(slot, fixed)
            self._save(slot, fixed)
        most = max(fixed, there, *(_shared(slot.text, text) for text in others))
        self._read(slot, most + MARGIN_CHARACTERS)

    def _text_of(self, chat: Mapping[str, Any]) -> str:
        """The prompt of a request as the model reads it; empty if the server does not say."""
        status, answer = self.backing.upstream.ask("POST", self.options["render"], json.dumps(chat), ASK_LIMIT_S)
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return str(json.loads(answer)["prompt"]) if status == 200 else ""
        return ""

    def _read(self, slot: Slot, characters: int) -> None:
        """Have the beginning of a prompt evaluated in a slot. It ends between two words, because a word that is cut may
        have other tokens than the whole one.
        """
        end = slot.text.rfind(" ", 0, characters)
        path, body = self.options["read"]
        asked = {**body, "prompt": slot.text[:end], "id_slot": slot.index}
        self.backing.upstream.ask("POST", path, json.dumps(asked), READ_LIMIT_S)

    def _restore(self, slot: Slot, there: int) -> int:
        """Restore the instructions that have most in common with a prompt, if that is more than what is `there`.

        Returns how many characters of the prompt the slot has then.
        """
        text, name = max(self.saved, key=lambda one: _shared(slot.text, one[0]), default=("", ""))
        most = _shared(slot.text, text)
        return most if there < most and self._state(slot, "restore", name) else there

    def _save(self, slot: Slot, characters: int) -> None:
        """Save the instructions that were evaluated, in the place of the oldest."""
        try:
            disk = os.statvfs(self.options["folder"])
        except OSError:
            # saving is switched off, or the folder was removed
            return
        if disk.f_bavail * disk.f_frsize < SPARE_BYTES:
            return
        # a later launch removes a file whose process has ended
        name = f"{self.backing.session}-{self.written % MOST_SAVED}.{os.getpid()}.part"
        self.written += 1
        self.saved = [one for one in self.saved if one[1] != name]
        if self._state(slot, "save", name):
            self.saved.append((slot.text[:characters], name))

    def _state(self, slot: Slot, action: str, name: str) -> bool:
        path = self.options["state"].format(slot=slot.index, action=action)
        return self.backing.upstream.ask("POST", path, json.dumps({"filename": name}), ASK_LIMIT_S)[0] == 200


def _shared(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items two sequences have in common at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def read_request(path: str, body: bytearray) -> Asked | None:
    """What a request asks; None if it is no message of an agent's."""
    from cclocal.wires import WIRES
    from cclocal.wires.wire import beginning

    wire = next((wire for wire in WIRES.values() if path == wire.PATH), None)
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        request = json.loads(body, object_hook=_without_marks) if wire else None
        if wire and request:
            *kind, messages = wire.parts(request)
            numbers = [hash(json.dumps(message)) for message in messages]
            begins = beginning(wire.as_chat(request))
            return Asked(hash(json.dumps(kind)), numbers, begins) if begins["messages"] else None
    return None


def _without_marks(table: dict[str, Any]) -> dict[str, Any]:
    """Without the marks for a cache, which move from message to message."""
    table.pop("cache_control", None)
    return table
