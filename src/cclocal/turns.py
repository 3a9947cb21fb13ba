"""The replies in a model server's log, in tokens and seconds. Standard library only: status lines import it too."""

from __future__ import annotations

import os
import re
from importlib.machinery import SourceFileLoader
from typing import Any, NamedTuple

#: The keeper's lines in a server's log begin with this, and this is how it calls a server's end.
OURS, STOPPED = "[keeper]", "The model server stopped"
#: The session's file in which a sandboxed agent's program says what it did, and what it says.
CONVERSATION = "Conversation"
#: The id of a conversation, as a pattern.
CONVERSATION_ID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
#: Which model a session began with: a line of the keeper's at the beginning of the log.
MODEL = "Model"
NOTES, SENT_ON = "notes", "The agent announced a step, made no call, and was sent on."
#: Speeds are not computed from fewer tokens.
LEAST_WRITTEN_TOKENS = 8
#: Keys as their services write them: of a request, Hugging Face, Anthropic and OpenAI, GitHub.
_SECRETS = re.compile(r"\b(Bearer\s+|hf_|sk-|gh[opsur]_|github_pat_)[\w.~+/=-]{12,}")


class Turn(NamedTuple):
    """One reply, in tokens and seconds; None where the engine does not report it.

    prompt: the whole request; read: the part of it that was evaluated; kept: the part that was in the KV cache already;
    written: the reply; accepted: the part of it that was guessed. first_s: until the first token; writing_s: from there
    to the last; whole_s: both. began_s: when the server began with it, since the server's start. window: the context
    window of one conversation. slot: the one of the server's that read it.
    """

    prompt_tokens: int | None = None
    read_tokens: int | None = None
    kept_tokens: int | None = None
    written_tokens: int | None = None
    first_s: float | None = None
    writing_s: float | None = None
    whole_s: float | None = None
    began_s: float | None = None
    window_tokens: int | None = None
    accepted_tokens: int | None = None
    slot: int | None = None

    @property
    def per_step(self) -> float | None:
        """Tokens written in one step of the model, where it speculates."""
        written, accepted = self.written_tokens or 0, self.accepted_tokens
        return written / (written - accepted) if accepted is not None and written > accepted else None

    @property
    def read_per_s(self) -> float | None:
        """Tokens of the prompt evaluated per second."""
        return self.read_tokens / self.first_s if self.read_tokens and self.first_s else None

    @property
    def write_per_s(self) -> float | None:
        """Tokens written per second, of replies that are long enough."""
        written = self.written_tokens or 0
        return written / self.writing_s if written >= LEAST_WRITTEN_TOKENS and self.writing_s else None

    @property
    def is_ours(self) -> bool:
        """Whether cclocal itself asked, for one token: to see that the server answers, or to have a prompt read."""
        return self.written_tokens == 1


class Now(NamedTuple):
    """A reply that is being made: its prompt, how much of it is read, how fast, and whether the last batch is read.

    write_per_s: tokens per second, once some were written. The log has no event for the end of prefill.
    """

    prompt_tokens: int
    place_tokens: int = 0
    read_per_s: float | None = None
    is_last: bool = False
    write_per_s: float | None = None
    read_tokens: int = 0
    first_s: float | None = None


def end_of(path: str, most_bytes: int) -> str:
    """The end of a log; empty if there is none."""
    try:
        with open(path, "rb") as log:  # noqa: PTH123 - pathlib is slower to import
            log.seek(max(0, log.seek(0, os.SEEK_END) - most_bytes))
            return log.read().decode("utf-8", "replace")
    except OSError:
        return ""


def plain_lines(text: str) -> list[str]:
    """Its lines that are not empty, without keys, and without control characters, which could steer a terminal."""
    text = without_keys(text)
    lines = ("".join(c for c in line if c.isprintable()).strip() for line in text.replace("\t", " ").splitlines())
    return [line for line in lines if line]


def without_keys(text: str) -> str:
    """A text that a user may paste into a bug report: of each key in it only what kind it is."""
    return _SECRETS.sub(r"\1…", text)


def news(text: str) -> list[str]:
    """What the keeper wrote into a log about its server, with the time of day."""
    return re.findall(rf"^{re.escape(OURS)} (\d\d:\d\d:\d\d (?!(?:{CONVERSATION}|{MODEL}) ).*)$", text, re.MULTILINE)


def conversation(text: str) -> str:
    """The agent's id of the conversation of a session, from its log; empty if it is not there."""
    return _said(CONVERSATION, text)


def model(text: str) -> str:
    """The model that a session began with, from its log; empty if it is not there."""
    return _said(MODEL, text)


def _said(about: str, text: str) -> str:
    found = re.findall(rf"^{re.escape(OURS)} \d\d:\d\d:\d\d {about} (\S+)$", text, re.MULTILINE)
    return found[-1] if found else ""


def turns(text: str, readers: tuple[str, ...]) -> tuple[list[Turn], Now | None]:
    """(the replies in a log, the one being made at its end), by the first reader that finds any.

    Every reader skips the lines it does not know, so that a log of unknown origin can be tried with all of them.
    """
    # a server that died never logged the end of its last reply
    parts = re.split(rf"^{re.escape(OURS)} [\d:]+ {re.escape(STOPPED)}.*\n", text, flags=re.MULTILINE)
    for reader in readers:
        namespace: dict[str, Any] = {"__name__": "log_reader"}
        # by its path: the package is not importable under -I -S, and its compiled code is kept beside the file
        exec(SourceFileLoader("log_reader", reader).get_code("log_reader") or "", namespace)  # noqa: S102
        read = [namespace["turns"](part) for part in parts]
        found, now = [row for rows, _ in read for row in rows], read[-1][1]
        if found or now:
            return [Turn(**row) for row in found], Now(**now) if now else None
    return [], None
