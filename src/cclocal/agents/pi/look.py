"""Looks around for pi: its program and version, and a folder in which it would run what that folder says."""

from __future__ import annotations

from pathlib import Path

from cclocal.agents.pi.spec import INSTALL, PROGRAM, TITLE
from cclocal.agents.version import version_of
from cclocal.errors import AgentMissingError
from cclocal.facts import AgentFound
from cclocal.paths import Env, find_program
from cclocal.programs import Answers


def look(env: Env, cwd: Path, git_root: Path | None, answers: Answers) -> AgentFound | None:
    """Pi on PATH. Raises AgentMissingError if it does not run, or if this folder has settings of its own for it."""
    found = find_program(PROGRAM, env.environ)
    if not found:
        return None
    path = Path(found).absolute()
    version = answers.of(answers.key(path), lambda: version_of(path, TITLE, INSTALL, env, may_be_on_stderr=True))
    settings = cwd / ".pi" / "settings.json"
    if settings.exists():
        # its shellCommandPrefix runs before each command, its packages are installed: no flag switches it off
        raise AgentMissingError(
            f"pi obeys {settings}, which can have it run any program, so it is not started in this folder.",
            hint="look at that file, and move it away",
        )
    return AgentFound(path, version)
