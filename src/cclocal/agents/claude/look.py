"""Looks around for Claude Code: its program and version, the user's instructions for it."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.version import Version

from cclocal.agents.claude import nudge, pictures, status_line
from cclocal.agents.claude.command import OWN_NEEDS, PROGRAM, Context
from cclocal.agents.claude.spec import INSTALL, OLDEST, TITLE
from cclocal.agents.version import version_of
from cclocal.facts import AgentFound
from cclocal.paths import Env, find_program, packaged
from cclocal.programs import Answers, is_mac

#: Imports in imported files are followed so far (Claude Code's documentation).
_MOST_HOPS = 5


def _imported(file: Path, home: Path, hops: int = _MOST_HOPS) -> Iterator[Path]:
    """The files that a CLAUDE.md imports: each @PATH, by its own folder or the user's home."""
    text = ""
    with contextlib.suppress(OSError, ValueError):
        text = file.read_text("utf-8")
    for word in re.findall(r"(?:^|\s)@([^\s`]+)", text) if hops else ():
        path = file.parent / Path(word.replace("~", str(home), 1) if word.startswith("~/") else word)
        if path.is_file():
            yield path
            yield from _imported(path, home, hops - 1)


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
    missing = [] if is_mac(env.environ) else [name for name in OWN_NEEDS if not find_program(name, env.environ)]
    context = Context(
        user_claude_md=of_user if of_user.is_file() else None,
        imported=tuple(_imported(of_user, Path(env.environ["HOME"]))),
        parent_claude_mds={path: path.stat().st_size for path in above},
        mcp_config=packaged("mcp-local.json"),
        status_line=(sys.executable, "-I", "-S", str(status_line.__file__)),
        nudge=(sys.executable, "-I", "-S", str(nudge.__file__)),
        pictures=(sys.executable, "-I", "-S", str(pictures.__file__)),
        sandbox_problem=f"{' and '.join(missing)} not found on PATH" if missing else "",
    )
    remedy = "apt install bubblewrap socat" if missing and Version(version) >= OLDEST else ""
    return AgentFound(path, version, context, remedy)
