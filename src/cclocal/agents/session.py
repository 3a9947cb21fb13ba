"""What cclocal tells an agent about a session, and what an agent's spec returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cclocal.command import Command
from cclocal.facts import AgentFound
from cclocal.settings import OFF, Sight


@dataclass(frozen=True, slots=True)
class AgentSession:
    """One session: the agent's program, the window, the longest reply, the folder, the user's arguments.

    found: None if the agent is not installed; a dry run then shows its bare name. passed: variables handed on by name
    (--pass-env). nudge: send it on once after a reply that announced a call and made none. log_reader: the program file
    that reads the server's log, empty if there is none. level: what holds it, a level of --sandbox. web: it may fetch
    pages. subagents: it may start some. mcp: MCP servers of the user's by name, each as a JSON configuration has it.
    proxied: variables name a proxy to the hosts that the user opened. also: other models that the server has and that
    `/model` may choose. sees: which pictures the model sees, None if that is not known.
    """

    found: AgentFound | None
    context_tokens: int
    out_tokens: int
    cwd: Path
    home: Path
    git_root: Path | None = None
    passed: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    tools: bool = True
    lean: bool = False
    nudge: bool = True
    log_reader: str = ""
    level: str = OFF
    web: bool = False
    subagents: bool = False
    mcp: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    proxied: bool = False
    also: tuple[str, ...] = ()
    sees: Sight | None = None

    @property
    def folders(self) -> tuple[Path, ...]:
        """The working folder, and the root of its repository."""
        return tuple(dict.fromkeys((self.cwd, self.git_root or self.cwd)))


@dataclass(frozen=True, slots=True)
class Window:
    """How an agent uses a context window, in tokens.

    least: the smallest window in which a session can work. compacts_at: the length at which a conversation is
    compacted. result: the longest result of one tool.
    """

    least_tokens: int
    compacts_at_tokens: int
    result_tokens: int


@dataclass(frozen=True, slots=True)
class ConfigDir:
    """The agent's private configuration folder, which lasts from session to session.

    `seed` holds JSON files: the given keys are set, of the other keys only those in `known` stay. `links` are names in
    the folder that point at a file of the user's, or None where there is none. `keeps` are the entries that stay from
    session to session (`kept_patterns`: by a pattern), `renewed` those that the agent makes again by itself. Everything
    else was put there by hand or by a tool call, and is set aside before each start. `folders` are made, empty.
    `reads` are files of the user's elsewhere that the agent reads too.
    """

    path: Path
    seed: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    links: Mapping[str, Path | None] = field(default_factory=dict)
    keeps: frozenset[str] = frozenset()
    renewed: frozenset[str] = frozenset()
    known: frozenset[str] = frozenset()
    kept_patterns: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    reads: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Capture:
    """A run of the agent against a server that answers nothing, to see its first request.

    about: what that request depends on. is_plain: without anything of ours but the address. is_interactive: on a
    terminal.
    """

    about: str
    session: AgentSession
    model: str
    is_plain: bool
    is_interactive: bool


@dataclass(frozen=True, slots=True)
class Sends:
    """What a version of an agent sends first.

    tools: their names, sorted. roles: of the messages. has_late_system: one of them is a system message after another
    message. names_folder: instructions or tools differ from folder to folder. fixed_bytes: of the instructions.
    """

    tools: tuple[str, ...]
    roles: tuple[str, ...] = ("user",)
    has_late_system: bool = False
    names_folder: bool = False
    fixed_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asks of whichever agent it is.

    prompt: its first prompt. prints: print the answer and end. continues: go on with the folder's last conversation.
    resumes: go on with the conversation of this id; empty: let the user choose one; None: begin a new one.
    """

    prompt: str = ""
    prints: bool = False
    continues: bool = False
    resumes: str | None = None


@dataclass(frozen=True, slots=True)
class ByHand:
    """How an agent uses a server without cclocal: variables, further lines for a shell, and the command to type."""

    env: Mapping[str, str]
    command: tuple[str, ...]
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CaptureRun:
    """One such run: its command, the files it reads, its configuration folder, its standard input."""

    command: Command
    files: Mapping[str, str]
    config_dir: ConfigDir
    stdin: str = ""
