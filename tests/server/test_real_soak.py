"""A few rounds of bench/soak.py: a random party of a real session is killed at a random moment, and nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT, Claude

# six rounds of two launches each; docs/trust.md tells of the long ones
pytestmark = pytest.mark.timeout(1800)

LAUNCHES = 6


@pytest.mark.wide
def test_nothing_is_left_whatever_is_killed_and_when(claude: Claude) -> None:
    if claude.version != "2.1.331":
        pytest.skip("one version of the agent is enough")
    done = subprocess.run(
        [sys.executable, "bench/soak.py", "--launches", str(LAUNCHES), "--seed", "30"],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{claude.path.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert f"{LAUNCHES} launches killed" in done.stdout
