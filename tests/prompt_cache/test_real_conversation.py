"""A conversation goes on warm in another session: real agents on real engines, guarded by counts of tokens."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from cclocal import tiny
from cclocal.backends.llama_server.log_reader import turns as log_turns
from tests.conftest import CLAUDES, ENGINES, OTHERS, Engine, wide
from tests.talk import compactions, talk
from tests.world import World, leave, wait_for

#: What may be read of a conversation that was restored, beside what is new: its end, which the template writes anew.
NEW_TOKENS = 400
FIRST, LAST = ENGINES[0], ENGINES[-1]
#: A command whose result makes a conversation of some 3,600 tokens.
LONG = "Run the command: seq 1 900"


@pytest.fixture
def newest(world: World, engine: Engine) -> World:
    world.real("claude", CLAUDES[0].path)
    world.real("llama-server", engine.binary)
    return world


def folder(world: World) -> Path:
    return world.home / ".cache/cclocal/warm"


def notes(world: World) -> list[dict[str, Any]]:
    """Of each state of a conversation, the newest last."""
    found = [json.loads(path.read_text()) for path in folder(world).glob("c-*.json")]
    return sorted(found, key=lambda note: float(note["at_s"]))


def say(world: World, *args: str, options: tuple[str, ...] = ("--tiny",)) -> dict[str, int]:
    """One turn in print mode: tokens read and kept, and whether the conversation was restored."""
    done = world.run(*options, "--", *args, "--output-format", "json")
    assert done.returncode == 0, done.stderr
    usage = json.loads(done.stdout.splitlines()[-1])["usage"]
    restored = "of the conversation were restored" in done.stderr
    world.wait_for_end()
    return {"read": usage["input_tokens"], "kept": usage["cache_read_input_tokens"], "restored": restored}


def test_a_conversation_goes_on_warm(newest: World) -> None:
    """The first one, another one, and the first again; twice, and in a branch of its own."""
    say(newest, "-p", LONG)
    (first,) = notes(newest)
    assert "The conversation was saved: " in newest.log.read_text()
    assert "The conversation was saved: " in newest.run("stats").stdout
    say(newest, "-p", "Run the command: seq 3000 3900")
    assert len(notes(newest)) == 2
    for words in (("--resume", first["conversation"]), ("--resume", first["conversation"], "--fork-session")):
        again = say(newest, "-p", *words, "How are you?")
        assert again["restored"]
        assert again["read"] < NEW_TOKENS < again["kept"] / 8, again
    # the newest of the folder is the branch: too little is new in it for a file of its own
    assert len(notes(newest)) == 3
    assert len({path.stat().st_ino for path in folder(newest).glob("c-*.bin")}) == 2
    last = say(newest, "-p", "--continue", "Who are you?")
    assert last["restored"]
    assert last["read"] < 2 * NEW_TOKENS, last


@pytest.mark.parametrize("engine", [wide(FIRST)], indirect=True)
def test_what_does_not_fit_is_not_restored_and_what_was_deleted_is_gone(newest: World) -> None:
    say(newest, "-p", LONG)
    (note,) = notes(newest)
    listed = {row["name"]: row["size_bytes"] for row in json.loads(newest.run("list", "--json").stdout)["models"]}
    (request,) = folder(newest).glob("c-*.request")
    assert listed["conversations"] == note["size_bytes"] + request.stat().st_size
    # another context window is no other state, another file of the model is
    assert say(newest, "-p", "--continue", "One", options=("--tiny", "--ctx", "24576"))["restored"]
    copy = newest.root / "copy.gguf"
    copy.write_bytes(tiny.gguf())
    assert not say(newest, "-p", "--continue", "Two", options=("--model", str(copy)))["restored"]
    assert not say(newest, "-p", "--continue", "Three", options=("--tiny", "--cold"))["restored"]
    state = next(path for path in folder(newest).glob("c-*.bin") if path.stat().st_size == note["size_bytes"])
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    assert not say(newest, "-p", "--continue", "Four")["restored"]
    assert newest.run("rm", "conversations", "--yes").returncode == 0
    assert not list(folder(newest).glob("c-*"))
    assert list(folder(newest).glob("*.bin"))
    assert not say(newest, "-p", "--continue", "Once more")["restored"]
    assert len(notes(newest)) == 1
    conversations = newest.home / ".local/share/cclocal/claude/projects"
    for path in conversations.rglob(f"{note['conversation']}.jsonl"):
        path.unlink()
    newest.run("--tiny", "--", "-p", "--continue", "Five")
    assert note["conversation"] not in {left["conversation"] for left in notes(newest)}


@pytest.mark.parametrize("engine", [LAST], indirect=True)
def test_it_is_saved_while_nothing_is_asked_and_a_server_that_dies_then_has_it_back(newest: World) -> None:
    newest.env["CCLOCAL_TEST_IDLE_S"] = "1"
    with talk(newest, "--tiny") as session:
        session.say(LONG)
        wait_for(lambda: notes(newest), "the save", 30)
        server = newest.state()["server"]
        os.kill(server, signal.SIGKILL)
        session.say("How are you?")
    rows = json.loads(newest.run("stats", "--json").stdout)["turns"]
    assert rows[-1]["kept_tokens"] > 0.9 * rows[-1]["prompt_tokens"], rows


@pytest.mark.parametrize("engine", [wide(FIRST)], indirect=True)
def test_a_keeper_that_is_killed_while_it_saves_leaves_nothing_that_is_restored(newest: World) -> None:
    say(newest, "-p", LONG)
    state = next(folder(newest).glob("c-*.bin"))
    note = state.with_suffix(".json")
    # as it is at the moment between the state and its note, and as a save that was cut leaves it
    kept = note.read_text()
    note.unlink()
    (folder(newest) / f"{state.stem}.999999999.part").write_bytes(b"half")
    assert not say(newest, "-p", "--continue", "How are you?")["restored"]
    note.write_text(kept)
    assert not [path for path in folder(newest).glob("*.part") if "999999999" in path.name]


@pytest.mark.parametrize("name", [wide("codex"), wide("pi")])
def test_the_other_agents_go_on_warm_too(world: World, name: str) -> None:
    program, once, again = OTHERS[name]
    world.real(name, program)
    for words in ((*once, LONG), (*again, "How are you?")):
        done = world.run("--tiny", "--agent", name, "--", *words)
        assert done.returncode == 0, done.stderr
        world.wait_for_end()
    assert "of the conversation were restored" in done.stderr
    rows = json.loads(world.run("stats", "--json").stdout)["turns"]
    assert rows[-1]["read_tokens"] < NEW_TOKENS < rows[-1]["kept_tokens"], rows


@pytest.mark.parametrize("engine", [LAST], indirect=True)
def test_a_conversation_whose_state_is_gone_is_read_while_the_user_types(newest: World) -> None:
    """By its last request, which the relay hands over at the end of a session."""
    say(newest, "-p", LONG)
    (kept,) = folder(newest).glob("c-*.request")
    assert kept.stat().st_mode & 0o077 == 0
    (note,) = notes(newest)
    for state in folder(newest).glob("c-*.bin"):
        state.unlink()
    newest.terminal = (40, 120)
    with newest.on_terminal("--tiny", "--", "--resume", note["conversation"]) as child:
        child.expect("The conversation is read while you type")
        child.expect("shift.*tab")
        log = newest.log
        wait_for(lambda: [turn for turn in turns_in(log) if (turn["prompt_tokens"] or 0) > 8000], "the reading", 60)
        child.send("How are you?")
        child.send("\r")
        wait_for(lambda: [turn for turn in turns_in(log) if turn["written_tokens"] > 1], "the answer", 60)
        leave(child)
    newest.wait_for_end()
    found = turns_in(log)
    ahead = next(turn for turn in found if turn["written_tokens"] == 1 and turn["prompt_tokens"] > 8000)
    first = next(turn for turn in found if turn["written_tokens"] > 1)
    assert ahead["read_tokens"] > 1000
    assert first["read_tokens"] < NEW_TOKENS < first["kept_tokens"] / 8, first
    # what is deleted there is gone here, and no other session reads it
    assert newest.run("rm", "conversations", "--yes").returncode == 0
    assert not list(folder(newest).glob("c-*"))


def turns_in(log: Path) -> list[dict[str, Any]]:
    """The replies that the engine reports, also those to cclocal itself."""
    return log_turns(log.read_text("utf-8", "replace"))[0]


@pytest.mark.parametrize("engine", [wide(FIRST)], indirect=True)
def test_after_a_compaction_on_another_day_and_from_a_subfolder_it_goes_on_warm(newest: World) -> None:
    newest.env["TZ"] = "Etc/GMT+12"
    with talk(newest, "--tiny") as session:
        session.say(LONG)
        assert compactions(session.say("/compact"))
        session.say("How are you?")
    newest.wait_for_end()
    rows = json.loads(newest.run("stats", "--json").stdout)["turns"]
    # the fixed part of the prompt, which the first turn found
    assert rows[-1]["kept_tokens"] >= 0.9 * rows[0]["kept_tokens"] > 6000, rows
    (note,) = notes(newest)
    assert note["tokens"] < rows[1]["prompt_tokens"]
    resumed = [say(newest, "-p", "--continue", "Who are you?")]
    # there it is always the next day or the one after
    newest.env["TZ"] = "Pacific/Kiritimati"
    resumed.append(say(newest, "-p", "--continue", "Who are you now?"))
    newest.project /= "src"
    newest.project.mkdir()
    resumed.append(say(newest, "-p", "--resume", note["conversation"], "Where are you?"))
    assert all(turn["restored"] and turn["read"] < NEW_TOKENS for turn in resumed), resumed


@pytest.mark.parametrize("engine", [wide(LAST)], indirect=True)
def test_a_conversation_that_was_cleared_is_another_one(newest: World) -> None:
    with talk(newest, "--tiny") as session:
        session.say(LONG)
        session.say("/clear")
        session.say("Run the command: seq 3000 3900")
    newest.wait_for_end()
    (note,) = notes(newest)
    again = say(newest, "-p", "--continue", "How are you?")
    assert again["restored"]
    assert again["read"] < NEW_TOKENS < again["kept"] / 8, again
    assert note["conversation"] == newest_id(newest)


def newest_id(world: World) -> str:
    """The agent's newest conversation."""
    files = (world.home / ".local/share/cclocal/claude/projects").rglob("*.jsonl")
    return max(files, key=lambda path: path.stat().st_mtime).stem
