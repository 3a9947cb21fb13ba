"""Asks an agent's program for its version."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from cclocal.errors import AgentMissingError
from cclocal.paths import Env
from cclocal.programs import ask

#: A version at the beginning of what is printed.
AT_START = r"\A(\d+(\.\d+)+)"


def version_of(
    path: Path, title: str, install: str, env: Env, *, pattern: str = AT_START, may_be_on_stderr: bool = False
) -> str:
    """The first group of `pattern` in what `--version` prints. Raises AgentMissingError if there is none."""
    try:
        done = ask([str(path), "--version"], env.environ)
    except (OSError, subprocess.SubprocessError) as error:
        raise AgentMissingError(f"{path} does not run: {error}.") from None
    said = (done.stdout or done.stderr) if may_be_on_stderr else done.stdout
    version = re.search(pattern, said.strip())
    if not version:
        raise AgentMissingError(
            f"{path} does not print its version, so it is probably not {title}.",
            cause=(done.stdout + done.stderr).strip().splitlines()[-3:],
            hint=install,
        )
    return version[1]
