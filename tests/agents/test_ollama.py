"""The real Claude Code on the real Ollama, offline, with the tiny model. CI=true builds Ollama and runs these."""

from __future__ import annotations

import json
import os
import signal

import psutil
import pytest

from tests.conftest import CACHE, CI, CLAUDES
from tests.world import World, alive, wait_for

OLLAMA = CACHE / "ollama-0.17.4/bin/ollama"
pytestmark = pytest.mark.skipif(
    not (CI and OLLAMA.exists()), reason="needs Ollama, built from source with Go: CI=true runs it where Go is"
)


@pytest.fixture
def ollama(world: World) -> World:
    world.real("ollama", OLLAMA)
    world.real("claude", CLAUDES[0].path)
    return world


def test_a_file_is_written(ollama: World) -> None:
    words = ("--tiny", "--backend", "ollama", "--", "-p", "Create the file hello.txt with content: hello from Ollama")
    done = ollama.run(*words)
    assert (ollama.project / "hello.txt").read_text() == "hello from Ollama", done.stderr
    assert done.returncode == 0
    # a store of its own: the user's is not touched
    assert not (ollama.home / ".ollama/models/manifests").exists()
    again = ollama.run(*words)
    assert again.returncode == 0, again.stderr


def test_the_tiny_model_passes_its_check_and_silent_cutting_is_found(ollama: World) -> None:
    done = ollama.run("check", "tiny", "--backend", "ollama", "--json")
    told = json.loads(done.stdout)
    outcome = {row["name"]: row["status"] for row in told["rows"]}
    assert done.returncode == 0, told
    assert outcome["The real agent writes a real file"] == "pass"
    # what Ollama is known not to do is red, and not hidden
    assert outcome["A prompt beyond the window is refused, not cut"] == "fail"
    assert outcome["Tokens are counted before they are sent"] == "fail"
    assert outcome["A second turn does not read the whole prompt again"] == "not exercised"


@pytest.mark.parametrize("victim", ["agent", "keeper", "server"])
def test_nothing_is_left_whatever_is_killed(ollama: World, victim: str) -> None:
    (ollama.bin / "claude").unlink()
    ollama.fake_claude()
    child = ollama.start("--tiny", "--backend", "ollama")
    ollama.agent()
    state = ollama.state()
    daemon = psutil.Process(state["server"])
    # the runner is a child of the daemon's
    runners = wait_for(lambda: daemon.children(recursive=True), "the runner")
    os.kill(child.pid if victim == "agent" else state[victim], signal.SIGKILL)
    if victim == "server":
        child.kill()
    pids = [daemon.pid, *(runner.pid for runner in runners)]
    wait_for(lambda: not any(map(alive, pids)), "the end of daemon and runner")
    child.kill()
    child.wait()
    if victim == "keeper":
        ollama.fake_claude(exits=0)
        ollama.fake_server()
        ollama.run("--tiny", "--backend", "llama-server")
