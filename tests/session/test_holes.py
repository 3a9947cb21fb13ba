"""What must hold whatever an earlier session, another pid namespace or another user of this machine does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import in_a_namespace
from tests.world import World, alive, wait_for


def config_dir(world: World) -> Path:
    return world.home / ".local/share/cclocal/claude"


def test_what_one_session_plants_does_not_run_in_the_next(world: World) -> None:
    world.fake_server()
    world.fake_claude(exits=0)
    assert world.run("--tiny").returncode == 0
    folder = config_dir(world)
    hook = {"hooks": {"SessionStart": [{"hooks": [{"type": "command", "command": "touch /tmp/planted"}]}]}}
    for name in ("settings.json", "settings.local.json"):
        (folder / name).write_text(json.dumps(hook))
    for name in ("hooks", "plugins", "agents", "commands", "skills", "output-styles"):
        (folder / name).mkdir()
        (folder / name / "planted.md").write_text("planted")
    (folder / "CLAUDE.md").write_text("Planted.")
    (folder / "projects/-here").mkdir(parents=True)
    (folder / "projects/-here/talk.jsonl").write_text("{}\n")
    known = json.loads((folder / ".claude.json").read_text())
    planted = {"mcpServers": {"x": {"command": "touch"}}, "env": {"ANTHROPIC_BASE_URL": "http://elsewhere"}}
    here = {**known["projects"][str(world.project)], "allowedTools": ["Bash(*)"], "mcpServers": planted["mcpServers"]}
    projects = {"projects": {"/": {"hasTrustDialogAccepted": True}, str(world.project): here}}
    (folder / ".claude.json").write_text(json.dumps({**known, **planted, **projects, "userID": "x", "theme": "dark"}))
    done = world.run("--tiny")
    assert done.returncode == 0
    assert "Moved out" in done.stderr
    assert "settings.json" in done.stderr
    kept = {path.name for path in folder.iterdir()}
    assert kept <= {".claude.json", ".cclocal.lock", "projects"}
    # a conversation stays, for --continue
    assert (folder / "projects/-here/talk.jsonl").exists()
    assert json.loads((folder / ".claude.json").read_text()) == {**known, "userID": "x", "theme": "dark"}
    # nothing that a user made is lost
    assert (folder.with_name("claude-set-aside") / "CLAUDE.md").read_text() == "Planted."
    assert "Moved out" not in world.run("--tiny").stderr


def test_what_is_planted_in_the_place_of_a_file_does_not_stop_the_next_session(world: World) -> None:
    world.fake_server()
    world.fake_claude(exits=0)
    assert world.run("--tiny").returncode == 0
    folder = config_dir(world)
    elsewhere = world.root / "elsewhere"
    elsewhere.mkdir()
    for name in (".claude.json", ".cclocal.lock"):
        (folder / name).unlink()
        (folder / name).mkdir()
    shutil.rmtree(folder / "projects", ignore_errors=True)
    (folder / "projects").symlink_to(elsewhere)
    (folder / "session-env").mkdir()
    (folder / "session-env/hook.sh").write_text("touch planted")
    folder.with_name("claude-set-aside").symlink_to(elsewhere)
    done = world.run("--tiny")
    assert done.returncode == 0, done.stderr
    assert (folder / ".claude.json").is_file()
    assert not (folder / "projects").is_symlink()
    assert not (folder / "session-env").exists()
    assert not list(elsewhere.iterdir())


def test_a_start_in_another_pid_namespace_ends_nothing(world: World) -> None:
    # as a container would start it: with process ids of its own
    words = in_a_namespace("--fork", "--pid", "--mount-proc")
    world.fake_server()
    world.fake_claude()
    child = world.start("--tiny")
    agent = world.watched()
    who = world.server_pids()
    folder = next(world.sessions.iterdir())
    (world.record / "pids.json").rename(world.record / "first.json")
    world.fake_claude(exits=0)
    done = subprocess.run(
        [*words, *world.command, "--tiny"], env=world.env, cwd=world.project, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Cleaned up" not in done.stderr
    assert alive(who["server"])
    assert folder.exists()
    os.kill(agent, signal.SIGKILL)
    child.wait()
    wait_for(lambda: not alive(who["server"]), "the server's end")
    # the kernel killed the keeper in there with its namespace: the next start clears what it left
    assert "Cleaned up" in world.run("--tiny").stderr


@pytest.mark.parametrize(("boot", "machine", "stays"), [("past", None, False), ("past", "another machine", True)])
def test_a_session_of_another_boot_is_over_only_on_its_own_machine(
    world: World, boot: str, machine: str | None, stays: bool
) -> None:
    world.fake_server()
    world.fake_claude()
    child = world.start("--tiny")
    world.agent()
    state = world.state()
    child.kill()
    child.wait()
    wait_for(lambda: not list(world.sessions.iterdir()), "the session's end")
    left = world.sessions / "deadbeef"
    left.mkdir()
    (left / "session.json").write_text(json.dumps({**state, "boot": boot, **({"machine": machine} if machine else {})}))
    world.fake_claude(exits=0)
    assert world.run("--tiny").returncode == 0
    assert left.exists() == stays
    shutil.rmtree(left, ignore_errors=True)


def test_no_other_user_can_enter_a_folder_of_ours_whatever_the_umask(world: World) -> None:
    world.fake_server()
    world.fake_claude(exits=0)
    # one that an older version made
    (world.home / ".cache/cclocal").mkdir(parents=True)
    (world.home / ".cache/cclocal").chmod(0o777)
    done = subprocess.run(
        ["/bin/sh", "-c", 'umask 0; exec "$@"', "sh", *world.command, "--tiny"],
        env=world.env,
        cwd=world.project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # its own /tmp goes with the session
    wait_for(lambda: not list((world.home / ".local/state/cclocal/tmp").glob("*")), "the end of its /tmp")
    made = [path for path in world.home.rglob("*") if path.is_dir() and "cclocal" in path.parts]
    assert {path.name for path in made} >= {"cclocal", "claude", "sessions", "logs"}
    for path in (*made, world.home / ".local", world.home / ".local/share", world.home / ".local/state"):
        assert path.stat().st_mode & 0o077 == 0, path
