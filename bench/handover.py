"""From "the server can answer" to "the agent runs": python bench/handover.py [RUNS]

A scripted server notes when it first could answer a request and when it answered the readiness probe's message; a
scripted agent notes when it began. Printed: the median of both distances in milliseconds. Aim: at most 50 ms from the
probe's answer to the agent.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.world import World


def one_run(root: Path) -> tuple[float, float]:
    """(listening → agent, probe answered → agent) in seconds."""
    world = World(root)
    world.fake_server(load_s=1.0)
    agent = world.bin / "claude"
    # no interpreter to start: the shell's first act is the stamp
    agent.write_text(
        f'#!/bin/sh\ndate +%s.%N >{world.record}/agent\n[ "$1" = --version ] && echo "2.1.331 (Claude Code)"\n'
    )
    agent.chmod(0o755)
    world.run("--tiny")
    done = world.run("--tiny")
    assert done.returncode in (0, 1), done.stderr
    times = json.loads((world.record / "times.json").read_text())
    began = float((world.record / "agent").read_text())
    world.assert_clean()
    return began - times["listening"], began - times["probe_answered"]


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with tempfile.TemporaryDirectory() as folder:
        rows = [one_run(Path(folder, str(number))) for number in range(runs)]
    listening, answered = (statistics.median(column) * 1000 for column in zip(*rows, strict=True))
    print(f"listening → agent {listening:.0f} ms, of it probe answered → agent {answered:.0f} ms (aim ≤ 50)")


if __name__ == "__main__":
    main()
