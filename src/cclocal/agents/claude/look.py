"""Looks around for Claude Code: its program and version, the user's instructions for it."""

from __future__ import annotations

import sys
from pathlib import Path

from cclocal.agents.claude import nudge, status_line
from cclocal.agents.claude.command import PROGRAM, Context
from cclocal.agents.claude.spec import INSTALL, TITLE
from cclocal.agents.version import version_of
from cclocal.facts import AgentFound
from cclocal.paths import Env, find_program, packaged
from cclocal.programs import Answers


def look(env: Env, cwd: Path, git_root: Path | None, answers: Answers) -> AgentFound | None:
    """Claude Code on PATH, and what a session in this folder would give it to read."""
    found = find_program(PROGRAM, env.environ)
    if not found:
        return None
    path = Path(found).absolute()
    version = answers.of(answers.key(path), lambda: version_of(path, TITLE, INSTALL, env))
    of_user = Path(env.environ.get("CLAUDE_CONFIG_DIR") or Path(env.environ["HOME"], ".claude"), "CLAUDE.md")
    folders = [folder for folder in reversed(cwd.parents) if git_root and folder.is_relative_to(git_root)]
    above = [folder / "CLAUDE.md" for folder in folders if (folder / "CLAUDE.md").is_file()]
    context = Context(
        user_claude_md=of_user if of_user.is_file() else None,
        parent_claude_mds={path: path.stat().st_size for path in above},
        mcp_config=packaged("mcp-local.json"),
        status_line=(sys.executable, "-I", "-S", str(status_line.__file__)),
        nudge=(sys.executable, "-I", "-S", str(nudge.__file__)),
    )
    return AgentFound(path, version, context)
