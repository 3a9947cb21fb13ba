"""Agents: the coding agents that a session can run. A new one is a folder with a spec and a look, and a row in AGENTS.

A spec is pure: it turns a session into a command. `LOOK` names the module that looks around for the agent: its program,
its version, the user's instructions for it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

from cclocal.agents.claude import spec as claude
from cclocal.agents.codex import spec as codex
from cclocal.agents.pi import spec as pi
from cclocal.agents.session import AgentSession, Asked, ByHand, Capture, CaptureRun, ConfigDir, Sends, Window
from cclocal.command import Binding, CommandAndFiles, Endpoint
from cclocal.facts import AgentFound
from cclocal.paths import Env
from cclocal.programs import Answers
from cclocal.settings import Prompt
from cclocal.turns import CONVERSATION_ID
from cclocal.wires.wire import Calls

#: The agent if none was asked for.
DEFAULT = claude.NAME


class Agent(Protocol):
    """What an agent's spec module offers."""

    NAME: str
    #: its name in messages
    TITLE: str
    PROGRAM: str
    INSTALL: str
    #: the versions that its profile was verified on
    VERIFIED: tuple[str, ...]
    #: what the newest of them sends first, on a terminal
    SENDS: Sends
    #: files that change a plain launch and are not read in a session: in the user's home, in the working folder
    IGNORED_IN_HOME: tuple[str, ...]
    IGNORED_IN_FOLDER: tuple[str, ...]
    #: files of an organisation that may change a session
    MANAGED: tuple[str, ...]
    #: where its configuration folder has its conversations, one file each, as a pattern; a file's name ends in the id
    CONVERSATIONS: str
    #: words among its arguments with which it goes on with a conversation
    CONTINUES: frozenset[str]
    #: the module that looks around for it
    LOOK: str
    #: the API that it speaks, by the names in cclocal.wires
    WIRE: str
    #: its tools, as the check asks a model to call them
    CALLS: Calls
    #: resets the terminal modes that it may leave switched on when it is killed
    TERMINAL_RESET: str
    #: words that must not be in a model's name, because the agent gives them a meaning
    TAKEN: re.Pattern[str]
    #: which of the settings web, mcp and also it can follow; the last: it can change the model within a session
    HAS: frozenset[str]
    #: the levels of --sandbox without a sandbox of ours, and what the agent's commands can reach at each
    OWN_LEVELS: Mapping[str, str]
    #: variables that must never reach it, beside those that no agent gets
    FORBIDDEN: re.Pattern[str]

    def unusable(self, found: AgentFound, arguments: Sequence[str], *, level: str) -> str | None:
        """Why this program is not launched with these arguments at a level of --sandbox, or None if it may be."""

    def window(self, context_tokens: int, out_tokens: int, prompt: Prompt = "full") -> Window:
        """How the agent uses a context window. `prompt`: which one it sends, which decides the least window."""

    def command(self, session: AgentSession, endpoint: Endpoint, binding: Binding) -> CommandAndFiles:
        """The agent's command, and the files it reads."""

    def is_interactive(self, arguments: Sequence[str]) -> bool:
        """Whether the agent takes over the terminal, rather than printing an answer."""

    def arguments(self, asked: Asked) -> tuple[str, ...]:
        """The arguments that have it do what the user asks of any agent."""

    def ask_for_file(self, path: str, content: str) -> str:
        """The prompt that has it write this file, also with the tiny model."""

    def config_dir(self, session: AgentSession) -> ConfigDir:
        """Its private configuration folder."""

    def capture(self, session: AgentSession, model: str) -> Capture | None:
        """How to see what it sends first; None if its arguments change what is the same in every session."""

    def plain(self, session: AgentSession, model: str) -> Capture:
        """The same for a plain launch, which gets only the server's address from cclocal; for comparison."""

    def capture_run(self, capture: Capture, binding: Binding, words: str) -> CaptureRun:
        """One run of a capture in the folder of `binding`, in which the user says `words`."""

    def by_hand(self, session: AgentSession, endpoint: Endpoint) -> ByHand:
        """What a plain launch of it needs to use a server."""

    def notes(self, session: AgentSession) -> tuple[str, ...]:
        """What the user should know about this folder and about the arguments they passed."""


class Look(Protocol):
    """What an agent's look module offers."""

    def look(self, env: Env, cwd: Path, git_root: Path | None, answers: Answers) -> AgentFound | None:
        """The agent on this machine; None if it is not there. Raises AgentMissingError if it does not run."""


#: One row per agent. (A plain dictionary, so that a test can add its own.)
AGENTS: dict[str, Agent] = {agent.NAME: agent for agent in (claude, codex, pi)}


def look_of(name: str) -> Look:
    """The module that looks around for an agent, imported now."""
    return cast(Look, importlib.import_module(AGENTS[name].LOOK))


def continued(agent: Agent, arguments: Sequence[str]) -> str | None:
    """The id of the conversation that an agent goes on with; empty if its arguments name none; None for a new one."""
    words = [part for word in arguments for part in word.split("=", 1)]
    if not agent.CONTINUES & set(words):
        return None
    return next((word for word in words if re.fullmatch(CONVERSATION_ID, word)), "")


def taken_names() -> re.Pattern[str]:
    """Words that no model may have in its name, whichever agent uses it."""
    return re.compile("|".join(agent.TAKEN.pattern for agent in AGENTS.values()), re.IGNORECASE)
