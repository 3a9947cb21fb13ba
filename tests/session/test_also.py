"""Several models in one session (--also): they take turns in the server's place. Real keepers and relays."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import httpx
import pytest

from cclocal import tiny
from tests.conftest import BACKENDS, NEWEST, Claude
from tests.two_models import write_with_two
from tests.world import World, wait_for


@pytest.fixture
def files(world: World) -> tuple[Path, Path]:
    """Two models: the tiny one under two names."""
    found = (world.root / "one.gguf", world.root / "two.gguf")
    for path in found:
        path.write_bytes(tiny.gguf())
    return found


def started(world: World, files: tuple[Path, Path]) -> tuple[str, ...]:
    """The words of a session with both."""
    return ("--model", str(files[0]), "--also", str(files[1]), "--ctx", "32768")


def test_a_request_for_the_other_model_loads_it_and_the_next_for_the_first_loads_that(
    world: World, files: tuple[Path, Path]
) -> None:
    world.fake_server()
    world.fake_claude()
    launcher = world.start(*started(world, files))
    world.agent()
    assert str(files[0]) in world.server_argv
    for name in ("one", "two", "two", "a name that is none of them", "one"):
        assert world.ask(model=name).status_code == 200
        assert str(files[name != "one"]) in world.server_argv
    # neither counts as a server that died
    log = world.log.read_text()
    assert log.count("Loading two, in the place of one.") == 1
    assert log.count("Loading one, in the place of two.") == 1
    assert "stopped" not in log
    # one that dies is started again as what it was
    world.ask(model="two")
    world.kill_server()
    assert world.ask(model="two").status_code == 200
    assert str(files[1]) in world.server_argv
    listed = world.run("ps").stdout
    assert "two" in listed
    launcher.terminate()
    launcher.wait()


def test_one_that_cannot_be_loaded_is_told_to_the_agent_and_the_first_comes_back(
    world: World, files: tuple[Path, Path]
) -> None:
    world.fake_server()
    world.fake_claude()
    launcher = world.start(*started(world, files))
    world.agent()
    world.fake_server(die_at_start=3, die_log="error: this is no model")
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(world.ask(model="two")))
    asking.start()
    wait_for(lambda: "could not be loaded" in world.log.read_text(), "the failure")
    world.fake_server()
    asking.join()
    assert answers[0].status_code == 400
    assert "two could not be loaded (exit 3). error: this is no model" in answers[0].text
    assert world.ask(model="one").status_code == 200
    launcher.terminate()
    launcher.wait()


def test_an_agent_that_attaches_may_choose_as_well(world: World, files: tuple[Path, Path]) -> None:
    world.fake_server()
    world.fake_claude()
    server = world.start("--server", *started(world, files))
    port = wait_for(lambda: (world.record / "out").read_text(), "the command").split()[-1]
    attached = world.start("attach", port)
    argv = world.agent()["argv"]
    settings = json.loads(Path(argv[argv.index("--settings") + 1]).read_text())
    assert settings["availableModels"] == ["one", "two"]
    assert world.ask(model="two").status_code == 200
    assert str(files[1]) in world.server_argv
    for process in (attached, server):
        process.terminate()
        process.wait()


def test_what_cannot_take_turns_is_refused(world: World, files: tuple[Path, Path], tmp_path: Path) -> None:
    world.fake_server()
    world.fake_claude()
    done = world.run("--model", str(files[0]), "--also", str(files[0]), "--dry-run")
    assert done.returncode == 2
    assert "each model of a session has a name of its own" in done.stderr
    done = world.run("--tiny", "--also", "nothing-like-it", "--dry-run")
    assert done.returncode == 2
    planned = world.run(*started(world, files), "--dry-run")
    assert "/model changes to two. They take turns" in planned.stdout
    # one window for all
    planned = world.run("--gpt-oss", "--also", str(files[1]), "--no-mem-check", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "Server after /model two" in planned.stdout
    assert "The context window is 65,536 tokens, because two.gguf" in planned.stderr


def test_the_model_is_changed_within_a_session(world: World, claude: Claude, files: tuple[Path, Path]) -> None:
    """The real agent on the real engine: a file is written with each."""
    if claude.version != NEWEST:
        pytest.skip("one version of the agent is enough")
    world.real("claude", claude.path)
    write_with_two(world, (*started(world, files), "--lean"), "two")
    # no request of its own goes back to the first
    assert world.log.read_text().count(", in the place of ") == 1


@pytest.mark.wide
def test_two_models_of_vllm_mlx_take_turns(world: World) -> None:
    for name in ("one", "two"):
        for file, content in tiny.mlx_files().items():
            (world.root / name).mkdir(exist_ok=True)
            (world.root / name / file).write_bytes(content)
    world.real("vllm-mlx", BACKENDS["vllm-mlx"][2])
    world.fake_claude()
    launcher = world.start("--model", str(world.root / "one"), "--also", str(world.root / "two"), "--ctx", "32768")
    world.agent()
    assert world.ask(model="two").json()["content"][0]["text"].startswith("I am a tiny")
    assert world.ask(model="one").status_code == 200
    assert world.log.read_text().count(", in the place of ") == 2
    launcher.terminate()
    launcher.wait()
