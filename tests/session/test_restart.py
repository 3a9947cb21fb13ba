"""How often and with what a server that died is started again: the fake server, real keepers."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from tests.world import World, wait_for


@pytest.mark.parametrize("line", ["ggml_backend: failed to allocate buffer", "CUDA error: out of memory"])
def test_the_second_try_takes_less_memory_if_memory_was_the_cause(world: World, line: str) -> None:
    world.fake_server(buffers=[line])
    world.fake_claude()
    launcher = world.start("--tiny")
    world.agent()
    first = world.server_argv
    world.kill_server(times=2)
    wait_for(lambda: world.server_argv != first, "another command")
    less = " ".join(world.server_argv)
    assert "--ubatch-size 128" in less
    assert "--cache-type-k q8_0" in less
    assert "--ctx-size 32768" in less
    launcher.terminate()
    launcher.wait()
    world.assert_clean()
    assert "out of memory) and is started again" in (world.record / "err").read_text()


def test_any_other_cause_changes_nothing(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    launcher = world.start("--tiny")
    world.agent()
    first = world.server_argv
    world.kill_server(times=2)
    third = wait_for(lambda: world.state()["server"], "the third")
    wait_for(lambda: world.server_pids()["server"] == third, "its start")
    assert world.server_argv == first
    launcher.terminate()
    launcher.wait()


def test_a_server_that_dies_while_it_starts_is_no_session_yet(world: World) -> None:
    """Before it has answered once, nothing is started again: the launcher says why."""
    world.fake_server(die_at_start=3)
    world.fake_claude()
    done = world.run("--tiny")
    assert done.returncode == 32
    assert "started again" not in done.stderr


def test_stats_say_when_and_why(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    launcher = world.start("--tiny")
    world.agent()
    world.kill_server(signal.SIGSEGV)
    wait_for(lambda: "answers again" in world.log.read_text(), "the new one")
    said = world.run("stats").stdout
    assert "The model server stopped (SIGSEGV) and is started again." in said
    launcher.terminate()
    launcher.wait()


def test_the_kernel_takes_the_server_first_when_memory_runs_out(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    launcher = world.start("--tiny")
    world.agent()
    state = world.state()

    def score(party: str) -> int:
        with open(f"/proc/{state[party]}/oom_score_adj") as file:  # noqa: PTH123
            return int(file.read())

    assert score("server") == 800
    assert [score(party) for party in ("keeper", "relay", "twin")] == [int(_own_score())] * 3
    launcher.terminate()
    launcher.wait()


def _own_score() -> str:
    with open(f"/proc/{os.getpid()}/oom_score_adj") as file:  # noqa: PTH123
        return file.read()


@pytest.mark.skipif(sys.platform != "linux", reason="processor time is read from /proc")
def test_a_server_that_was_stopped_is_replaced_if_something_waits_for_it(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    launcher = world.start("--tiny", CCLOCAL_TEST_HANG_S="2")
    world.agent()
    wait_for(lambda: "relay" in world.state(), "the relay")
    os.kill(world.state()["server"], signal.SIGSTOP)
    # as long as nothing is asked, it may be as still as it likes
    time.sleep(4)
    assert "sign of life" not in world.log.read_text()
    reply = world.ask()
    assert reply.status_code == 200
    launcher.terminate()
    launcher.wait()
    world.assert_clean()
    told = (world.record / "err").read_text()
    assert "The model server stopped (it showed no sign of life for 2 s) and is started again." in told


@pytest.mark.skipif(sys.platform != "linux", reason="processor time is read from /proc")
def test_everything_stopped_together_is_no_hanging_server(world: World) -> None:
    """A suspended machine: for the keeper no time has gone by."""
    world.fake_server()
    world.fake_claude()
    launcher = world.start("--tiny", CCLOCAL_TEST_HANG_S="2")
    world.agent()
    state = world.state()
    parties = [state[party] for party in ("server", "relay", "keeper")]
    for pid in parties:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4)
    for pid in reversed(parties):
        os.kill(pid, signal.SIGCONT)
    time.sleep(1)
    assert world.state()["server"] == state["server"]
    assert "sign of life" not in world.log.read_text()
    launcher.terminate()
    launcher.wait()
