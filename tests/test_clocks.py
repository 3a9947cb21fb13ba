"""A clock that jumps changes no wait and no limit: durations come from the monotonic clock."""

from __future__ import annotations

import re

from tests.conftest import ROOT

#: Where the time of day is meant: file → why.
OF_THE_DAY = {
    "server/registry.py": "the age of a session's folder, against the time that the file system gave it",
    "agents/claude/status_line.py": "how long a log has not changed, the same way",
    "prompt_cache/capture.py": "when an agent was last asked for its first request",
    "ui/tables.py": "how many days ago something was used",
    "checks/results.py": "when a check was run",
    "models/storage.py": "when a model was used",
    "server/keep.py": "when a conversation was saved",
    "session/running.py": "how long ago a session began, against the time that the kernel gave it",
    "server/keeper.py": "which conversations changed in a session, against the times of their files",
}


def test_durations_are_measured_by_a_clock_that_does_not_jump() -> None:
    source = ROOT / "src/cclocal"
    found = {
        str(path.relative_to(source))
        for path in source.rglob("*.py")
        if re.search(r"\btime\.time\(|datetime\.now|\bfrom time import time\b", path.read_text())
    }
    assert found == OF_THE_DAY.keys()
