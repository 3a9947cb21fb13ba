"""The kill matrix on the real engines: whoever is killed, the engine goes, and all it started. CI=true runs all."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from tests.conftest import BACKENDS
from tests.world import World, alive, wait_for

KILLED = [
    (["agent"], "KILL"),
    (["agent"], "TERM"),
    (["agent"], "HUP"),
    (["twin", "agent"], "KILL"),
    (["server", "agent"], "KILL"),
    (["keeper"], "KILL"),
    (["agent", "keeper"], "KILL"),
]


@pytest.mark.parametrize(("killed", "signal_name"), KILLED, ids=str)
@pytest.mark.parametrize("name", BACKENDS)
def test_the_engine_goes_whoever_is_killed(world: World, name: str, killed: list[str], signal_name: str) -> None:
    backend, program, target = BACKENDS[name]
    world.real(program, target)
    world.fake_claude()
    # the agent is a stand-in: nothing to rehearse
    world.start("--tiny", "--backend", backend, "--cold")
    agent = world.watched()
    state = world.state()
    engine = psutil.Process(state["server"])
    # a runner is a child of the daemon's
    family = [engine.pid, *(child.pid for child in engine.children(recursive=True))]
    who = {"agent": agent, **{party: state[party] for party in ("keeper", "twin", "server")}}
    for party in killed:
        os.kill(who[party], signal.Signals[f"SIG{signal_name}"])
    wait_for(lambda: not any(map(alive, family)), "the end of the engine and its children")
    if "keeper" in killed:
        if alive(agent):
            os.kill(agent, signal.SIGKILL)
        # its state file stays; the next start reclaims it and says so
        world.fake_claude(exits=0)
        done = world.run("--tiny", "--backend", backend, "--cold")
        assert "Cleaned up after a session whose keeper was killed (tiny" in done.stderr
        assert done.returncode == 0, done.stderr
