"""A session tells at its end which files the agent changed that other programs read or run."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from cclocal.sandbox.walls import OBEYED
from cclocal.server.changes import contents, differences, report
from tests.world import World


@pytest.fixture
def project(tmp_path: Path) -> Path:
    project = tmp_path / "project"
    (project / ".vscode").mkdir(parents=True)
    (project / ".vscode/tasks.json").write_text("{}")
    (project / "Makefile").write_text("all:\n")
    (project / "package.json").write_text(json.dumps({"name": "x", "scripts": {"test": "jest"}}))
    (project / "CLAUDE.md").symlink_to("notes.md")
    (project / "main.py").write_text("")
    return project


def told(project: Path, before: dict[str, bytes]) -> dict[str, str]:
    found = differences(before, contents([str(project)], OBEYED))
    return {str(Path(path).relative_to(project)): what for path, what in found.items()}


def test_what_is_new_changed_and_removed_is_found_and_nothing_else(project: Path) -> None:
    before = contents([str(project)], OBEYED)
    (project / "main.py").write_text("print()")
    package = json.loads((project / "package.json").read_text())
    (project / "package.json").write_text(json.dumps({**package, "version": "2"}))
    assert told(project, before) == {}
    (project / "package.json").write_text(json.dumps({**package, "scripts": {"test": "curl evil"}}))
    (project / "Makefile").unlink()
    (project / ".envrc").write_text("export X=1")
    (project / ".vscode/tasks.json").write_text("{ }")
    (project / "CLAUDE.md").unlink()
    (project / "CLAUDE.md").write_text("obey")
    assert told(project, before) == {
        "package.json": "changed",
        "Makefile": "removed",
        ".envrc": "new",
        ".vscode/tasks.json": "changed",
        "CLAUDE.md": "changed",
    }


def test_the_commands_put_everything_back(project: Path) -> None:
    before = contents([str(project)], OBEYED)
    for name in ("Makefile", ".vscode/tasks.json"):
        (project / name).write_text("evil")
    (project / ".envrc").write_text("evil")
    (project / "CLAUDE.md").unlink()
    found = differences(before, contents([str(project)], OBEYED))
    said = report(found, before, str(project), str(project.parent / "shelf"))
    commands = [line.partition(": ")[2] for part in said.split("To ") for line in part.splitlines() if ": " in line]
    assert len(commands) == 6
    for command in commands:
        if not command.startswith("diff"):
            subprocess.run(["sh", "-c", command], cwd=project, check=True)
    assert contents([str(project)], OBEYED) == before
    assert (project.parent / "shelf").stat().st_mode & 0o77 == 0


def test_a_full_disk_is_told_and_hides_nothing(project: Path) -> None:
    before = contents([str(project)], OBEYED)
    (project / "Makefile").write_text("evil")
    found = differences(before, contents([str(project)], OBEYED))
    # a file stands where the folder would be made
    said = report(found, before, str(project), str(project / "Makefile/shelf"))
    assert "Makefile was changed. It could not be kept as it was: " in said


def test_a_large_file_and_many_files_cost_nothing(project: Path) -> None:
    (project / "Makefile").write_bytes(b"x" * (1 << 20))
    for number in range(400):
        (project / f".vscode/{number}").write_text("")
    os.mkfifo(project / ".vscode/0.pipe")
    found = contents([str(project)], OBEYED)
    assert len(found) == 300
    assert str(project / ".vscode/0.pipe") not in found
    assert str(project / "Makefile") not in found


def test_a_session_says_what_its_agent_changed(world: World) -> None:
    world.fake_server()
    (world.project / "Makefile").write_text("all:\n")
    claude = world.bin / "claude"
    claude.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "2.1.331 (Claude Code)" || echo evil > Makefile\n')
    claude.chmod(0o755)
    done = world.run("--tiny", "--cold")
    assert done.returncode == 0
    assert "Makefile was changed. To look: diff " in done.stderr
    copy = next((world.home / ".local/state/cclocal/changed").glob("*/Makefile"))
    assert copy.read_text() == "all:\n"
    # a session that changed nothing says nothing
    (world.project / "Makefile").write_text("evil\n")
    assert "Makefile" not in world.run("--tiny", "--cold").stderr
