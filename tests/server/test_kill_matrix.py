"""Whatever is killed, at any moment, no server and no port is left. Real processes, real signals."""

from __future__ import annotations

import os
import signal

import pytest

from tests.conftest import wide
from tests.world import World, alive, wait_for

MATRIX = [
    # who is killed, the server's switches, the signal
    (["agent"], {}, "KILL"),
    wide(["agent"], {}, "TERM"),
    wide(["agent"], {}, "HUP"),
    wide(["agent"], {"worker": "child"}, "KILL"),
    wide(["agent"], {"worker": "setsid"}, "KILL"),
    wide(["agent"], {"ignore_term": True}, "KILL"),
    (["agent"], {"ignore_term": True, "worker": "setsid"}, "KILL"),
    wide(["agent"], {"daemonise": True, "ignore_term": True}, "KILL"),
    wide(["twin", "agent"], {}, "KILL"),
    wide(["relay", "agent"], {}, "KILL"),
    wide(["server", "agent"], {}, "KILL"),
]
KEEPER_DIES = [
    wide(["keeper"], {}),
    wide(["keeper"], {"worker": "child"}),
    (["keeper"], {"worker": "setsid"}),
    wide(["keeper"], {"ignore_term": True}),
    wide(["keeper"], {"daemonise": True, "ignore_term": True}),
    wide(["agent", "keeper"], {}),
    wide(["relay", "keeper"], {}),
    wide(["agent", "keeper"], {"worker": "child"}),
]


@pytest.fixture(params=[wide(""), "0"], ids=["pdeathsig", "no-pdeathsig"])
def pdeathsig(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def started(world: World, switches: dict[str, object], pdeathsig: str, shell: str = "/bin/sh") -> dict[str, int]:
    """A running session: who is who."""
    world.fake_server(**switches)
    world.fake_claude()
    world.start("--tiny", CCLOCAL_TEST_PDEATHSIG=pdeathsig, CCLOCAL_TEST_SHELL=shell)
    agent = world.watched()
    state = world.state()
    parties = {party: state[party] for party in ("keeper", "twin", "relay")}
    return {"agent": agent, **parties, **world.server_pids()}


@pytest.mark.parametrize(("killed", "switches", "signal_name"), MATRIX, ids=str)
def test_nothing_is_left_when_the_agent_ends(
    world: World, killed: list[str], switches: dict[str, object], signal_name: str, pdeathsig: str
) -> None:
    who = started(world, switches, pdeathsig)
    for party in killed:
        os.kill(who[party], signal.Signals[f"SIG{signal_name}"])
    wait_for(lambda: not alive(who["server"]), "the server's end")
    # the fixture checks the rest: processes, session folder, port


@pytest.mark.parametrize(("killed", "switches"), KEEPER_DIES, ids=str)
def test_the_twin_ends_the_server_when_the_keeper_is_killed(
    world: World, killed: list[str], switches: dict[str, object], pdeathsig: str
) -> None:
    who = started(world, switches, pdeathsig)
    # stopped first, it cannot act on the end of the others before it is killed itself
    os.kill(who["keeper"], signal.SIGSTOP)
    for party in killed:
        os.kill(who[party], signal.SIGKILL)
    wait_for(lambda: not alive(who["server"]), "the server's end")
    wait_for(lambda: "worker" not in who or not alive(who["worker"]), "the worker's end")
    if alive(who["agent"]):
        os.kill(who["agent"], signal.SIGKILL)
    # The state file stays, because its writer was killed; the next start reclaims it and says so.
    assert list(world.sessions.glob("*/session.json"))
    world.fake_claude(exits=0)
    (world.record / "pids.json").unlink()
    done = world.run("--tiny")
    assert "Cleaned up after a session whose keeper was killed (tiny" in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("shell", [wide("/bin/bash"), "/bin/dash"])
def test_the_twin_is_written_for_both_shells(world: World, shell: str) -> None:
    who = started(world, {"ignore_term": True, "worker": "setsid"}, "0", shell)
    os.kill(who["keeper"], signal.SIGKILL)
    wait_for(lambda: not alive(who["server"]) and not alive(who["worker"]), "the server's and its worker's end")
    os.kill(who["agent"], signal.SIGKILL)
    world.run("--server", "--dry-run")
    reclaim(world)


def reclaim(world: World) -> None:
    world.fake_claude(exits=0)
    (world.record / "pids.json").unlink()
    assert world.run("--tiny").returncode == 0


@pytest.mark.parametrize("relay", ["alive", "killed"])
def test_keeper_and_twin_killed_together(world: World, relay: str) -> None:
    """Without PDEATHSIG (= macOS) the relay ends the server; without the relay too, the next start does."""
    who = started(world, {}, "0")
    # first those that would act when the keeper goes: stopped, they cannot
    stopped = [who["twin"], *([who["relay"]] if relay == "killed" else ())]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    os.kill(who["keeper"], signal.SIGKILL)
    for pid in (*stopped, who["agent"]):
        os.kill(pid, signal.SIGKILL)
    if relay == "alive":
        wait_for(lambda: not alive(who["server"]), "the server's end by the relay")
    else:
        assert alive(who["server"])
    reclaim(world)
    assert not alive(who["server"])


def test_a_killed_relay_is_replaced(world: World) -> None:
    who = started(world, {}, "0")
    os.kill(who["relay"], signal.SIGKILL)
    wait_for(lambda: world.state()["relay"] not in (who["relay"], -1), "another relay")
    assert alive(who["server"])
    assert alive(who["agent"])
    os.kill(who["agent"], signal.SIGKILL)


def test_a_recycled_pid_is_never_signalled(world: World) -> None:
    """A state file whose pids now belong to others: only the file goes."""
    who = started(world, {}, "")
    state = next(world.sessions.glob("*/session.json")).read_text()
    os.kill(who["agent"], signal.SIGKILL)
    wait_for(lambda: not alive(who["keeper"]), "the keeper's end")
    bystander = world.start("--tiny")
    (world.record / "agent.json").unlink()
    agent = world.watched()
    assert agent == bystander.pid
    stale = world.sessions / "deadbeef"
    stale.mkdir()
    forged = state.replace(f'"server": {who["server"]}', f'"server": {agent}')
    (stale / "session.json").write_text(forged.replace('"id": "', '"id": "not-'))
    world.fake_claude(exits=0)
    assert world.run("--tiny").returncode == 0
    assert alive(agent)
    assert not stale.exists()
    os.kill(agent, signal.SIGKILL)


def test_a_stopped_keeper_whose_agent_has_ended_is_over(world: World) -> None:
    who = started(world, {}, "0")
    os.kill(who["keeper"], signal.SIGSTOP)
    # as long as its agent runs, it is left alone
    world.fake_claude(exits=0)
    (world.record / "pids.json").rename(world.record / "first.json")
    assert "Cleaned up" not in world.run("--tiny").stderr
    assert alive(who["keeper"])
    os.kill(who["agent"], signal.SIGKILL)
    wait_for(lambda: not alive(who["agent"]), "the agent's end")
    assert "Cleaned up after a session whose keeper was killed" in world.run("--tiny").stderr
    assert not alive(who["server"])


def test_a_killed_twin_changes_nothing(world: World) -> None:
    who = started(world, {}, "0")
    os.kill(who["twin"], signal.SIGKILL)
    wait_for(lambda: not alive(who["twin"]), "the twin's end")
    assert alive(who["server"])
    assert alive(who["agent"])
    os.kill(who["agent"], signal.SIGKILL)


@pytest.mark.parametrize("signal_name", [wide("KILL"), wide("TERM"), "INT", wide("HUP")])
def test_the_launcher_killed_while_the_server_loads(world: World, signal_name: str, pdeathsig: str) -> None:
    world.fake_server(load_s=60)
    world.fake_claude()
    launcher = world.start("--tiny", CCLOCAL_TEST_PDEATHSIG=pdeathsig)
    who = world.server_pids()
    os.kill(launcher.pid, signal.Signals[f"SIG{signal_name}"])
    wait_for(lambda: not alive(who["server"]), "the server's end")
    # a shell shows both as 130: CPython ends itself by SIGINT if that came in the middle of an exec() of its own
    wanted = {130, -signal.SIGINT} if signal_name == "INT" else {-signal.Signals[f"SIG{signal_name}"]}
    assert launcher.wait() in wanted


def test_the_keeper_killed_while_the_server_loads(world: World) -> None:
    world.fake_server(load_s=60)
    world.fake_claude()
    launcher = world.start("--tiny")
    who = world.server_pids()
    os.kill(world.state()["keeper"], signal.SIGKILL)
    wait_for(lambda: not alive(who["server"]), "the server's end")
    assert launcher.wait(20) == 32
    assert "keeper" in (world.record / "err").read_text()
    world.fake_server()
    reclaim(world)
