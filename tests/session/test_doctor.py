"""`cclocal doctor`: what it finds, and that a problem is its exit status."""

from __future__ import annotations

import json
import re
import shutil
import signal
from typing import Any

import pytest

from tests.conftest import CI, NEWEST, OLDEST, OTHERS, ROOT, Claude
from tests.world import HAS_SANDBOX, World, wait_for


def findings(world: World, *args: str, status: int = 0, **env: str) -> list[dict[str, Any]]:
    done = world.run("doctor", "--json", *args, **env)
    assert done.returncode == status, done.stdout + done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def texts(rows: list[dict[str, Any]], about: str, state: str) -> str:
    return "\n".join(f"{row['text']} {row['hint']}" for row in rows if (row["about"], row["state"]) == (about, state))


def test_what_would_stop_a_launch_is_the_exit_status(world: World) -> None:
    world.fake_server()
    rows = findings(world, status=1)
    assert "claude was not found on PATH. npm install" in texts(rows, "agent", "problem")
    done = world.run("doctor")
    assert done.returncode == 1
    assert "✗ claude was not found on PATH." in done.stdout
    world.fake_claude()
    assert not [row for row in findings(world) if row["state"] == "problem"]


def test_what_redirects_a_plain_launch_is_named(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    (world.home / ".claude").mkdir()
    (world.home / ".claude/settings.json").write_text("{}")
    (world.project / ".mcp.json").write_text("{}")
    rows = findings(world, ANTHROPIC_BASE_URL="http://elsewhere", HTTPS_PROXY="http://proxy:1")
    said = texts(rows, "settings", "info")
    assert "ANTHROPIC_BASE_URL: set here; Claude Code does not get it" in said
    assert "HTTPS_PROXY: used for downloads; Claude Code does not get it" in said
    assert "~/.claude/settings.json, .mcp.json: there, and not read in a session" in said
    assert "elsewhere" not in said


def test_what_runs_and_what_was_left_is_listed(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    folder = world.home / ".local/state/cclocal/sessions/aa"
    folder.mkdir(parents=True)
    (folder / "session.json").write_text(json.dumps({"model": "x", "port": 1, "boot": "other", "machine": "other"}))
    rows = findings(world)
    assert "x on port 1: of another machine, which shares this home" in texts(rows, "sessions", "info")
    assert folder.exists()
    child = world.start("--server", "--tiny")
    wait_for(lambda: (world.record / "out").read_text(), "the server's address")
    port = (world.record / "out").read_text().split()[-1]
    assert f"tiny on port {port} is running" in texts(findings(world), "sessions", "info")
    child.send_signal(signal.SIGINT)
    child.wait(20)
    # that start left it alone too
    shutil.rmtree(folder)


def test_a_version_is_compared_by_what_it_sends(world: World, claude: Claude) -> None:
    world.fake_server()
    world.real("claude", claude.path)
    rows = findings(world)
    notes = texts(rows, "agent", "note")
    if claude.version == NEWEST:
        assert "the same as" in texts(rows, "agent", "ok")
        assert not notes
    if claude.version == OLDEST:
        assert "Other than Claude Code 2.1.331: the folder in the fixed part" in notes


@pytest.mark.skipif(not CI, reason="several agents: CI=true runs them")
@pytest.mark.parametrize("name", OTHERS)
def test_the_other_agents_send_what_is_recorded(world: World, name: str) -> None:
    world.fake_server()
    world.real(name, OTHERS[name][0])
    rows = findings(world, "--agent", name)
    assert "the same as" in texts(rows, "agent", "ok")


def test_a_self_test_runs_what_the_suite_cannot_run_on_the_users_machine(world: World) -> None:
    done = world.run("doctor", "--self-test", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout)
    about = {row["about"] for row in rows}
    assert {"machine", "processes", "memory", "server", "lock", "keeper", "sandbox"} <= about
    assert not [row for row in rows if row["state"] == "problem"]
    if HAS_SANDBOX:
        assert sum("refused; done without it" in row["text"] for row in rows) == 6
    # its rows are the ones that the list of what is not verified names
    named = set(re.findall(r"self-test: ([\w ]+)\)", (ROOT / "docs/unverified.md").read_text()))
    assert named
    assert named <= about | {"GPU", "wired limit"}
    assert not (world.home / ".cclocal-self-test").exists()
