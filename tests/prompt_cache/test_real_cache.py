"""The fixed part of the prompt is read once: real agents on real engines, guarded by counts of tokens."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pexpect
import pytest

from cclocal.backends.llama_server.log_reader import turns as log_turns
from tests.conftest import CLAUDES, ENGINES, NEWEST, Claude, Engine, wide
from tests.world import World, alive, leave, wait_for

#: What a first turn may evaluate that an earlier session's state was restored for: its own folder, date and question.
WARM_TOKENS = 700
#: The two forms of llama-server keep the same states, so each row below runs on one of them.
FIRST, LAST = ENGINES[0], ENGINES[-1]


@pytest.fixture
def newest(world: World, engine: Engine) -> World:
    """The newest agent is enough where the version makes no difference."""
    world.real("claude", CLAUDES[0].path)
    world.real("llama-server", engine.binary)
    return world


def turn(world: World, *args: str) -> dict[str, int]:
    """One question in print mode: (tokens evaluated, tokens kept), and what cclocal said."""
    done = world.run("--tiny", *args, "--", "-p", "How are you?", "--output-format", "json")
    assert done.returncode == 0, done.stderr
    usage = json.loads(done.stdout.splitlines()[-1])["usage"]
    restored = "were restored from an earlier session" in done.stderr
    return {"read": usage["input_tokens"], "kept": usage["cache_read_input_tokens"], "restored": restored}


def states(world: World) -> list[Path]:
    """Every state of a prompt that was noted as whole."""
    found = (world.home / ".cache/cclocal/warm").glob("*.json")
    return sorted(path for path in found if not path.name.startswith("c-"))


def elsewhere(world: World, name: str) -> None:
    world.project = world.root / name
    world.project.mkdir()


def test_the_next_session_in_another_folder_reads_only_what_is_its_own(real: World, claude: Claude) -> None:
    first = turn(real)
    assert not first["restored"]
    wait_for(lambda: states(real), "the state")
    elsewhere(real, "quite another project")
    second = turn(real)
    assert second["restored"]
    total = second["read"] + second["kept"]
    if claude.version == NEWEST:
        assert second["read"] < WARM_TOKENS < total / 8
    else:
        # it names the folder before the tools: what comes after that is read again
        assert second["kept"] > 500
    # nothing of what was said is in it
    told = json.loads(states(real)[0].read_text())
    assert told["size_bytes"] == states(real)[0].with_suffix(".bin").stat().st_size
    assert told["tokens"] <= second["kept"] + 1
    # the same folder again is no worse
    assert turn(real)["read"] <= second["read"]
    assert len(states(real)) == 1


@pytest.mark.parametrize(
    ("engine", "harm"), [(FIRST, "byte"), wide(LAST, "cut"), wide(LAST, "note")], indirect=["engine"]
)
def test_a_state_that_is_not_what_was_written_is_not_restored(newest: World, harm: str) -> None:
    turn(newest)
    note = wait_for(lambda: states(newest), "the state")[0]
    state = note.with_suffix(".bin")
    data = state.read_bytes()
    if harm == "byte":
        state.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif harm == "cut":
        state.write_bytes(data[:-100])
    else:
        note.write_text("{")
    again = turn(newest)
    assert not again["restored"]
    # and another one takes its place
    wait_for(lambda: states(newest) and states(newest)[0].read_text().endswith("}"), "a new one")
    assert turn(newest)["restored"]


@pytest.mark.wide
@pytest.mark.parametrize("engine", [LAST], indirect=True)
def test_another_cache_another_state_and_none_if_it_is_not_wanted(newest: World) -> None:
    turn(newest)
    wait_for(lambda: states(newest), "the state")
    assert not turn(newest, "--kv", "q8_0")["restored"]
    wait_for(lambda: len(states(newest)) == 2 or None, "the state of the other cache")
    assert not turn(newest, "--cold")["restored"]
    # another prompt has another beginning
    done = newest.run("--tiny", "--", "-p", "How are you?", "--system-prompt", "You are a poet.")
    assert "were restored" not in done.stderr
    listed = json.loads(newest.run("--list", "--json").stdout)["models"]
    assert {row["name"] for row in listed} == {"prompts", "conversations", "tiny"}
    assert newest.run("--rm", "prompts", "--yes").returncode == 0
    assert not states(newest)


@pytest.mark.parametrize("engine", [FIRST], indirect=True)
def test_on_a_terminal_the_prompt_is_another_one(newest: World) -> None:
    turn(newest)
    wait_for(lambda: states(newest), "the state")

    def session() -> str:
        with newest.on_terminal("--tiny") as child:
            child.expect("shift.*tab")
            said = str(child.before)
            assert len(states(newest)) == 2
            leave(child)
        return said

    newest.terminal = (40, 120)
    assert "were restored" not in session()
    assert "were restored from an earlier session" in session()


@pytest.mark.parametrize(
    ("engine", "victim"), [(FIRST, "keeper"), wide(LAST, "agent"), wide(LAST, "server")], indirect=["engine"]
)
def test_nothing_is_left_when_a_session_ends_while_its_prompt_is_read(newest: World, victim: str) -> None:
    child = newest.start("--tiny", "--", "-p", "How are you?")
    state: dict[str, Any] = newest.state()
    # the rehearsal is over and the prompt is being read
    wait_for((newest.home / ".cache/cclocal/rehearsals.json").exists, "the rehearsal")
    os.kill(child.pid if victim == "agent" else state[victim], signal.SIGKILL)
    wait_for(lambda: not alive(state["server"]), "the end of the server")
    if victim == "server":
        # said in words, not found out by an agent that talks to nobody
        assert child.wait() == 32
        assert "The server stopped" in (newest.record / "err").read_text()
    else:
        child.kill()
        child.wait()
    assert not list((newest.home / ".cache/cclocal/warm").glob("*.part"))
    if victim == "keeper":
        newest.run("--tiny", "--cold", "--", "-p", "How are you?")


@pytest.mark.parametrize(
    ("engine", "words"), [wide(LAST, ()), (FIRST, ("--", "-p", "How are you?"))], indirect=["engine"]
)
def test_a_launcher_killed_in_the_middle_of_a_rehearsal_leaves_no_agent(newest: World, words: tuple[str, ...]) -> None:
    with newest.on_terminal("--tiny", *words) as child:
        folder = newest.home / ".cache/cclocal/rehearsals"
        # both agents were started
        wait_for(lambda: len(list(folder.glob("*/*/settings.json"))) == 2 or None, "the rehearsal")
        os.kill(int(child.pid or 0), signal.SIGKILL)
        child.expect(pexpect.EOF)
    wait_for(lambda: not newest.leftovers() or None, "the end of the rehearsed agents")
    # and the next start clears what they wrote
    newest.run("--tiny", "--", "-p", "How are you?")
    assert not list(folder.glob("*"))


def test_an_agent_that_sends_nothing_is_not_waited_for_again(world: World, engine: Engine) -> None:
    world.real("llama-server", engine.binary)
    world.fake_claude(exits=0)
    world.run("--tiny")
    known = json.loads((world.home / ".cache/cclocal/rehearsals.json").read_text())
    assert [row["requests"] for row in known.values()] == [[]]
    before = known
    assert world.run("--tiny").returncode == 0
    assert json.loads((world.home / ".cache/cclocal/rehearsals.json").read_text()) == before
    assert not states(world)


@pytest.mark.parametrize("engine", [FIRST], indirect=True)
def test_with_several_slots_the_prompt_is_kept_for_the_next_session_too(newest: World) -> None:
    several = ("--slots", "2", "--ctx", "65536")
    assert not turn(newest, *several)["restored"]
    wait_for(lambda: states(newest), "the state")
    second = turn(newest, *several)
    assert second["restored"]
    assert second["read"] < WARM_TOKENS


def test_arguments_of_ones_own_do_without(world: World, engine: Engine) -> None:
    world.real("llama-server", engine.binary)
    world.fake_claude(exits=0)
    for words in (
        ("--", "--system-prompt", "x"),
        ("--", "mcp", "list"),
        ("--cold",),
    ):
        plan = json.loads(world.run("--tiny", "--dry-run", "--json", *words).stdout)
        assert "--slot-save-path" not in plan["server"]["argv"], words
        # and the server starts without the folder
        assert world.run("--tiny", *words).returncode == 0
    assert not list((world.home / ".cache/cclocal/warm").glob("*.bin"))


@pytest.mark.wide
def test_what_is_no_whole_state_goes_with_the_next(newest: World) -> None:
    folder = newest.home / ".cache/cclocal/warm"
    folder.mkdir(parents=True)
    for name in ("aaaa.bin", "bbbb.999999999.part"):
        (folder / name).write_bytes(b"x")
    turn(newest)
    newest.wait_for_end()
    assert len(states(newest)) == 1
    assert sorted(path.suffix for path in folder.iterdir()) == [".bin", ".json", ".request"]
    assert all(path.stat().st_mode & 0o77 == 0 for path in folder.iterdir())


def test_where_nothing_is_kept_whoever_types_slowly_is_read_ahead_for(world: World, claude: Claude) -> None:
    world.real("claude", claude.path)
    world.fake_mlx()
    world.terminal = (40, 120)
    asked = world.record / "requests.jsonl"

    def ahead() -> list[dict[str, Any]]:
        lines = asked.read_text().splitlines() if asked.exists() else []
        bodies = [json.loads(line)["body"] or {} for line in lines]
        return [body for body in bodies if body.get("max_tokens") == 1 and body.get("tools")]

    def session(*args: str) -> None:
        with world.on_terminal("--tiny", "--backend", "vllm-mlx", *args) as child:
            child.expect("shift.*tab")
            child.send("Hello")
            child.send("\r")
            child.expect("done")
            leave(child)

    session()
    (request,) = ahead()
    sent = next(r["body"] for r in world.requests() if r["body"])
    assert request["tools"] == sent["tools"]
    assert request["model"] == sent["model"]
    if claude.version == NEWEST:
        assert request["system"] == sent["system"]
    assert not list((world.home / ".cache/cclocal/warm").glob("*.bin"))
    # not if it is not wanted, and not in print mode, which asks before anything could be read
    asked.unlink()
    session("--cold")
    assert world.run("--tiny", "--backend", "vllm-mlx", "--", "-p", "Hello").returncode == 0
    assert not ahead()


@pytest.mark.parametrize("engine", [FIRST], indirect=True)
def test_a_prompt_that_fills_the_window_is_refused_by_the_models_own_count(newest: World) -> None:
    """The copy circuit's tokens are short, so the plan's estimate, made for real tokenizers, lets it pass."""
    words = ("--tiny", "--ctx", "10240", "--out-tokens", "512")
    done = newest.run(*words, "--", "-p", "Hi")
    assert done.returncode == 2, done.stderr
    assert "The prompt of Claude Code has 7," in done.stderr
    assert "a larger --ctx or --lean or --no-tools" in done.stderr
    assert newest.run(*words, "--lean", "--", "-p", "Hi").returncode == 0


@pytest.mark.parametrize("engine", [LAST], indirect=True)
def test_a_first_session_that_is_left_early_keeps_what_it_had_read(newest: World) -> None:
    newest.env["CCLOCAL_TEST_PART_S"] = "0"
    child = newest.start("--tiny", "--", "-p", "How are you?")
    wait_for(lambda: states(newest), "the state of the beginning", 60)
    os.kill(child.pid, signal.SIGINT)
    assert child.wait() == 130
    newest.wait_for_end()
    (note,) = states(newest)
    had = json.loads(note.read_text())["tokens"]
    assert had in (2048, 4096, 6144)
    assert not turn(newest)["restored"]
    read = sum(one["read_tokens"] for one in log_turns(newest.log.read_text("utf-8", "replace"))[0])
    # the trial, the rest, and what is this session's own
    assert read < 8000 - had, read
    assert json.loads(note.read_text())["tokens"] > 6144
    assert turn(newest)["restored"]
