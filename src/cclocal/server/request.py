"""What a keeper is asked to hold: a session, its server's command, and what is said at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cclocal.command import Command


@dataclass(frozen=True, slots=True)
class Turn:
    """One of a session's models that take turns. word: what --model is given to mean it. For the rest: ServerStart."""

    word: str
    command: Command
    less_memory: Command


@dataclass(frozen=True, slots=True)
class ServerStart:
    """What a keeper needs to know of a session; without a command it has no server, only a relay to another one.

    about: goes into the state file. advice: printed after the exit status and the last lines of the log, if the server
    dies while the agent runs. terminal_reset: written to the terminal after an agent that took it over; empty for one
    that does not. held_open: a descriptor that must stay open as long as the session lasts. less_memory: the command
    with which a server is started again if memory ran out. turns: each of several models, by its name in requests.
    workers: other machines that its server uses. fewer: by those that are left when it died, with commas: the command
    that does with them, None if nothing does, and what the user is told. is_tunnel: it is an ssh tunnel to one, which
    may be idle while that one computes. in_sandbox: all of them are commands of bubblewrap. looks_at: the agent's
    folders, in which files that other programs obey are compared at the end (server/changes.py). level: what holds the
    agent; empty without one.
    conversations: the agent's files of them, as a pattern. farewell: what is said at the end, with `{id}` for the
    conversation. receipt: say at the end what it connected to. relay: the options of the relay (server/relay.py).
    keeps: how the conversation's KV cache is saved (server/keep.py); None = it is not. requests: the folder and the
    note of its last request, which is kept for the session that goes on with it; None = it is not.
    """

    files: Mapping[str, str]
    about: Mapping[str, Any]
    relay: Mapping[str, Any]
    command: Command | None = None
    less_memory: Command | None = None
    turns: Mapping[str, Turn] = field(default_factory=dict)
    workers: Sequence[str] = ()
    fewer: Mapping[str, tuple[Command | None, str]] = field(default_factory=dict)
    is_tunnel: bool = False
    in_sandbox: bool = False
    stop: Sequence[tuple[str, float]] = ()
    advice: str = ""
    looks_at: Sequence[Path] = ()
    level: str = ""
    conversations: str = ""
    farewell: str = ""
    receipt: bool = False
    terminal_reset: str = ""
    held_open: int | None = None
    keeps: Mapping[str, Any] | None = None
    requests: Mapping[str, Any] | None = None
