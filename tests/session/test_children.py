"""Programs that the agent's commands leave in the background: they end with the session, unless the user keeps them."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from tests.conftest import Claude
from tests.world import World, alive, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="found by their environment in /proc")
LEFT = ["sleep", "601"]


@pytest.fixture(autouse=True)
def without_a_sandbox(world: World) -> None:
    """In one, the kernel ends them with the session (tests/sandbox)."""
    world.env["CCLOCAL_SANDBOX"] = "off"


def left_running(world: World) -> list[int]:
    """The programs in this world that the agent left."""
    return [int(line.split()[0]) for line in world.leftovers() if line.split()[1:] == LEFT]


def test_what_the_agent_left_ends_with_it(world: World) -> None:
    world.fake_server()
    world.fake_claude(leaves=LEFT)
    launcher = world.start("--tiny")
    world.agent()
    assert len(left_running(world)) == 1
    os.kill(launcher.pid, signal.SIGKILL)
    wait_for(lambda: not left_running(world), "its end")
    # the fixture checks the rest
    wait_for(lambda: "1 program was left running by the agent, and ended" in world.log.read_text(), "a line in the log")


def test_it_is_kept_if_the_user_wants_that(world: World) -> None:
    world.fake_server()
    world.fake_claude(leaves=LEFT, exits=0)
    assert world.run("--tiny", "--keep-children").returncode == 0
    world.wait_for_end()
    [kept] = left_running(world)
    os.kill(kept, signal.SIGKILL)


def test_it_ends_at_the_next_start_if_the_keeper_was_killed(world: World) -> None:
    world.fake_server()
    world.fake_claude(leaves=LEFT)
    launcher = world.start("--tiny")
    world.agent()
    [left] = left_running(world)
    os.kill(world.state()["keeper"], signal.SIGKILL)
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    assert alive(left)
    (world.record / "pids.json").unlink()
    world.fake_claude(exits=0)
    assert world.run("--tiny").returncode == 0
    assert not alive(left)


def test_what_bash_of_the_real_agent_left_ends_with_it(world: World, claude: Claude) -> None:
    world.real("claude", claude.path)
    done = world.run("--tiny", "--", "-p", "Run the command: setsid sleep 601 > a.txt 2>&1 < a.txt &")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: not left_running(world), "its end")
    wait_for(lambda: "left running" in world.log.read_text(), "a line in the log")
