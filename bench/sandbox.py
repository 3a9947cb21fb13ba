"""What the strict sandbox costs: python bench/sandbox.py CLAUDE [RUNS]

Sessions of the real Claude Code on the tiny model, at --sandbox strict and off in turns: the time from the command to
the end of `claude --version` in a session, and the duration that Claude Code reports of a turn with one tool call.
Medians. Aims: a start of at most 0.3 s more, a turn of at most 1.15 times as long.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LEVELS = ("off", "strict")
TURN = ("-p", "Run the command: echo done", "--output-format", "json")


def session(level: str, environ: dict[str, str], cwd: Path, *words: str) -> tuple[float, str]:
    """(seconds, what the agent printed)."""
    began = time.monotonic()
    command = [sys.executable, "-m", "cclocal", "--tiny", "--cold", "--sandbox", level, "--", *words]
    done = subprocess.run(command, env=environ, cwd=cwd, capture_output=True, text=True, check=True)
    return time.monotonic() - began, done.stdout


def main() -> None:
    claude, runs = Path(sys.argv[1]).absolute(), int(sys.argv[2]) if len(sys.argv) > 2 else 7
    starts: dict[str, list[float]] = {level: [] for level in LEVELS}
    turns: dict[str, list[float]] = {level: [] for level in LEVELS}
    with tempfile.TemporaryDirectory() as folder:
        project, home = Path(folder, "project"), Path(folder, "home")
        project.mkdir()
        home.mkdir()
        path = f"{claude.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        environ = {"HOME": str(home), "PATH": path, "LANG": "C.UTF-8"}
        for run in range(runs + 1):
            for level in LEVELS:
                start_s, _ = session(level, environ, project, "--version")
                turn_s = json.loads(session(level, environ, project, *TURN)[1])["duration_ms"] / 1000
                if run:
                    # the first run fills the caches
                    starts[level].append(start_s)
                    turns[level].append(turn_s)
    for name, found, aim in (("start", starts, "≤ + 0.3 s"), ("turn", turns, "≤ 1.15 ×")):
        off, strict = (statistics.median(found[level]) for level in LEVELS)
        print(
            f"{name}: off {off:.2f} s, strict {strict:.2f} s: {strict - off:+.2f} s, {strict / off:.2f} × (aim {aim})"
        )


if __name__ == "__main__":
    main()
