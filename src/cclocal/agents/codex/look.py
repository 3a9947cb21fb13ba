"""Looks around for Codex: its program, version and features, and whether this folder brings settings of its own."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from cclocal.agents.codex.command import PROGRAM, Context
from cclocal.agents.codex.spec import INSTALL, TITLE
from cclocal.agents.version import version_of
from cclocal.errors import AgentMissingError
from cclocal.facts import AgentFound
from cclocal.paths import Env, find_program, make_folder
from cclocal.programs import Answers, ask

#: Lines around the cause, in what a failed command of the sandbox prints.
_ABOUT_IT = re.compile(r"(note:|stack backtrace|thread |warning:)", re.IGNORECASE)
_REMEDY = "apt install bubblewrap    or, after “--”, with commands as you: --sandbox danger-full-access"


def look(env: Env, cwd: Path, git_root: Path | None, answers: Answers) -> AgentFound | None:
    """Codex on PATH. Raises AgentMissingError if it does not run."""
    found = find_program(PROGRAM, env.environ)
    if not found:
        return None
    path = _native(Path(found).absolute())
    told = answers.of(answers.key(path, "codex 1"), lambda: _ask(path, env))
    untrusted = next((place for place in (cwd, git_root) if place and _has_settings(place)), None)
    problem = _sandbox_problem(path, env)
    context = Context(frozenset(told["features"]), untrusted, problem)
    return AgentFound(path, told["version"], context, _REMEDY if problem else "")


def _has_settings(place: Path) -> bool:
    """Whether a folder has settings of Codex's. An empty folder is none: another session's sandbox mounts on it."""
    folder = place / ".codex"
    return any(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else os.path.lexists(folder)


def _sandbox_problem(path: Path, env: Env) -> str:
    """Why no command runs in Codex's sandbox; empty if one does. Asked each time: the kernel's settings can change."""
    with tempfile.TemporaryDirectory(dir=make_folder(env.folders.cache)) as home:
        # as in a session: it makes no helper in a folder below that for temporary files
        tmp = make_folder(Path(home, "tmp"))
        try:
            done = ask([str(path), "sandbox", "--", "true"], env.environ, CODEX_HOME=home, TMPDIR=str(tmp))
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
    lines = [line for line in done.stderr.splitlines() if line and not _ABOUT_IT.match(line)]
    return "" if done.returncode == 0 else (lines or [f"exit {done.returncode}"])[0]


def _native(path: Path) -> Path:
    """The program itself: npm's codex is a script that starts it, and would leave it running when it is killed."""
    real = path.resolve()
    if real.name != "codex.js":
        return path
    package = real.parents[1]
    places = (*package.glob("vendor/*/bin/codex"), *package.parent.glob("codex-*/vendor/*/bin/codex"))
    nested = package.glob("node_modules/@openai/codex-*/vendor/*/bin/codex")
    return next(iter((*places, *nested)), path)


def _ask(path: Path, env: Env) -> dict[str, Any]:
    version = version_of(path, TITLE, INSTALL, env, pattern=r"codex-cli (\d+(\.\d+)+)")
    try:
        features = ask([str(path), "features", "list"], env.environ)
    except (OSError, subprocess.SubprocessError) as error:
        raise AgentMissingError(f"{path} does not run: {error}.") from None
    lines = (line.split() for line in features.stdout.splitlines())
    return {"version": version, "features": [words[0] for words in lines if len(words) > 2 and words[-1] == "true"]}
