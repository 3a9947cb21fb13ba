"""An agent of a few dozen lines, spec and look in one: what a new one has to say. It asks the server one thing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cclocal.agents.session import AgentSession, Asked, ByHand, Capture, CaptureRun, ConfigDir, Sends, Window
from cclocal.command import BASE_NAMES, Binding, Command, CommandAndFiles, Endpoint
from cclocal.facts import AgentFound
from cclocal.paths import Env, find_program
from cclocal.programs import Answers
from cclocal.settings import Prompt
from cclocal.wires.wire import Calls

NAME = PROGRAM = "small-agent"
TITLE = "Small agent"
INSTALL = "install small-agent"
VERIFIED: tuple[str, ...] = ("1.0",)
SENDS = Sends(("Bash", "Write"))
IGNORED_IN_HOME: tuple[str, ...] = ()
IGNORED_IN_FOLDER: tuple[str, ...] = ()
MANAGED: tuple[str, ...] = ()
CONVERSATIONS = "*.jsonl"
CONTINUES: frozenset[str] = frozenset(("again",))
LOOK = __name__
WIRE = "anthropic"
CALLS = Calls(("Bash", "command"), ("Write", "file_path", "content"))
TERMINAL_RESET = ""
HAS: frozenset[str] = frozenset()
OWN_LEVELS: Mapping[str, str] = {"off": "it runs no commands"}
TAKEN = re.compile("forbidden-model")
FORBIDDEN = re.compile("SMALL_.*")


def look(env: Env, cwd: Path, git_root: Path | None, answers: Answers) -> AgentFound | None:
    path = find_program(PROGRAM, env.environ)
    return AgentFound(Path(path), "1.0") if path else None


def unusable(found: AgentFound, arguments: Sequence[str], *, level: str) -> str | None:
    return None


def window(context_tokens: int, out_tokens: int, prompt: Prompt = "full") -> Window:
    return Window(out_tokens + 1024, context_tokens - out_tokens, 1024)


def command(session: AgentSession, endpoint: Endpoint, binding: Binding) -> CommandAndFiles:
    program = str(session.found.path) if session.found else PROGRAM
    env = {"SMALL_URL": endpoint.url, "SMALL_KEY": endpoint.key, "SMALL_MODEL": endpoint.model}
    return Command((program, *session.arguments), env, BASE_NAMES | set(session.passed)), {}


def is_interactive(arguments: Sequence[str]) -> bool:
    return False


def ask_for_file(path: str, content: str) -> str:
    return f"Create the file {path} with content: {content}"


def arguments(asked: Asked) -> tuple[str, ...]:
    return ("again",) if asked.continues else ("once", asked.prompt)


def config_dir(session: AgentSession) -> ConfigDir:
    return ConfigDir(session.home, seed={"small.json": {"model": "local"}})


def capture(session: AgentSession, model: str) -> Capture | None:
    return None


def plain(session: AgentSession, model: str) -> Capture:
    raise NotImplementedError


def capture_run(capture: Capture, binding: Binding, words: str) -> CaptureRun:
    raise NotImplementedError


def by_hand(session: AgentSession, endpoint: Endpoint) -> ByHand:
    return ByHand({"SMALL_URL": endpoint.url, "SMALL_KEY": endpoint.key}, (PROGRAM,))


def notes(session: AgentSession) -> tuple[str, ...]:
    return ("The small agent talks to itself.",)
