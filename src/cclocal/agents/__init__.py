"""Agents: each turns an endpoint into the command of a coding agent. None of them runs anything.

A new agent is one module with these names and one row in AGENTS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

from cclocal.agents.claude import spec as claude
from cclocal.command import Command, Endpoint, SessionFile
from cclocal.facts import Facts


@dataclass(frozen=True, slots=True)
class Session:
    """What an agent is told: where the model is, how large its window, how long a reply may be.

    `passed` are the variables handed on by name (--pass-env), `arguments` go to the agent unchanged.
    """

    endpoint: Endpoint
    context_tokens: int
    out_tokens: int
    passed: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    #: without them it is a talk
    tools: bool = True
    #: with the shortest prompt that lets it work
    lean: bool = False
    #: the server's log, for the line that tells what it does; empty if it is not ours
    log: str = ""


@dataclass(frozen=True, slots=True)
class Home:
    """The agent's private configuration folder, which lasts from session to session.

    `seed` holds JSON files: the given keys are set, of what else is in them only the keys in `known` stay. `links` are
    names in the folder that point at a file of the user's, or None where there is nothing to point at. `keeps` are the
    entries that stay from session to session. `renewed` are entries that the agent makes again by itself; what else is
    in the folder was put there by hand or by a tool, and is set aside before each start.
    """

    path: Path
    seed: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    links: Mapping[str, Path | None] = field(default_factory=dict)
    keeps: frozenset[str] = frozenset()
    renewed: frozenset[str] = frozenset()
    known: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """A session that goes nowhere: started to see what an agent sends first.

    Its folder, port and key are placeholders. `about` names what the request depends on; `draws`: on a terminal;
    `said` is put on its standard input.
    """

    about: str
    command: Command
    files: tuple[SessionFile, ...]
    home: Home
    draws: bool
    said: str = ""


class Agent(Protocol):
    """What an agent module offers."""

    NAME: str
    PROGRAM: str
    INSTALL: str
    WIRE: Literal["anthropic", "responses"]

    def command(self, facts: Facts, session: Session) -> tuple[Command, tuple[SessionFile, ...]]:
        """The agent's command, and the files it reads."""

    def unusable(self, version: str) -> str | None:
        """Why a version is not launched, or None if it may be."""

    def draws(self, arguments: Sequence[str]) -> bool:
        """Whether the agent takes over the terminal, rather than printing an answer."""

    def home(self, facts: Facts) -> Home:
        """Its private configuration folder."""

    def rehearsal(self, facts: Facts, session: Session) -> Rehearsal | None:
        """The same session as a rehearsal; None if its arguments change what is the same in every session."""

    def plain(self, facts: Facts, session: Session) -> Rehearsal:
        """The agent without anything of ours but the server's address, for comparison."""

    def notes(self, facts: Facts, session: Session) -> tuple[str, ...]:
        """What the user should know of this folder and of the arguments they passed."""


AGENTS: MappingProxyType[str, Agent] = MappingProxyType({claude.NAME: claude})
