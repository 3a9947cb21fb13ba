"""`cclocal` alone: the menu, by its keys, on real terminals of several kinds."""

from __future__ import annotations

import os
import re

import pexpect
import pytest

from cclocal.discovery.look import load_catalog
from tests.world import World, wait_for

MODELS = len(load_catalog().models)
TITLE = "cclocal: which model"
ESCAPE = "\x1b"
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|9\d)(?:;\d+)*m")


@pytest.fixture
def ready(world: World) -> World:
    world.fake_server()
    world.fake_claude()
    world.terminal = (24, 80)
    return world


def started(world: World, *keys: str, **env: str) -> str:
    """The model that was started after these keys."""
    with world.on_terminal(**env) as child:
        child.expect(TITLE)
        for key in keys:
            child.send(key)
        child.send("\r")
        child.expect(r"AGENT \d+")
        argv = world.agent()["argv"]
        child.sendline("quit 0")
        child.expect(pexpect.EOF)
    (world.record / "agent.json").unlink()
    return str(argv[argv.index("--model") + 1]) if "--model" in argv else ""


def test_the_recommended_one_comes_first_and_every_row_says_what_it_is(ready: World) -> None:
    # every row at once
    ready.terminal = (MODELS + 10, 80)
    with ready.on_terminal() as child:
        child.expect(TITLE)
        child.expect("Enter start")
        screen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", str(child.before))
        rows = [line.strip() for line in screen.splitlines() if re.search(r"^.{3}\d? ?\d [●○] ", line)]
        assert rows[0].startswith("❯")
        assert "Gemma 4 E4B" in rows[0]
        assert "recommended here" in screen
        tiny = next(row for row in rows if "Tiny" in row)
        assert "●" in tiny
        assert "built here" in tiny
        assert tiny.endswith("fits")
        assert len(rows) == MODELS
        child.send("q")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0
    assert not (ready.record / "pids.json").exists()


@pytest.mark.parametrize(
    "keys",
    [("j",), (ESCAPE + "[B",), ("2",), ("G", ESCAPE + "[H", "j"), (ESCAPE + "[F", "g", "j", "j", "k"), ("/", "tin")],
    ids=["j", "arrow", "digit", "G-Home", "End-g", "filter"],
)
def test_every_way_to_the_second_row(ready: World, keys: tuple[str, ...]) -> None:
    started(ready, *keys)
    pids = (ready.record / "pids.json").read_text()
    assert '"tiny"' in pids


@pytest.mark.parametrize(("key", "code"), [("q", 0), (ESCAPE, 0), ("\x03", 130)])
def test_leaving_starts_nothing(ready: World, key: str, code: int) -> None:
    with ready.on_terminal() as child:
        child.expect("Enter start")
        child.send(key)
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == code
    assert not (ready.record / "pids.json").exists()


def test_escape_clears_a_filter_first(ready: World) -> None:
    with ready.on_terminal() as child:
        child.expect("Enter start")
        child.send("/zzz")
        child.expect("nothing matches")
        child.send(ESCAPE)
        child.expect("Enter start")
        child.send(ESCAPE)
        child.expect(pexpect.EOF)


def test_a_small_terminal_shows_what_tells_models_apart(ready: World) -> None:
    ready.terminal = (20, 40)
    with ready.on_terminal() as child:
        child.expect("cclocal: which model")
        child.expect(r"Enter / a d l m \? q")
        screen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", str(child.before))
        assert "Gemma 4 E4B" in screen
        assert "fits" in screen
        assert max(len(line.strip("\r")) for line in screen.splitlines()) <= 40
        child.send("q")
        child.expect(pexpect.EOF)
    assert started(ready, "G", "g", "j") is not None


def test_no_colour_where_none_is_wanted(ready: World) -> None:
    with ready.on_terminal(NO_COLOR="1") as child:
        child.expect("Enter start")
        assert not COLOUR.search(str(child.before))
        child.send("q")
        child.expect(pexpect.EOF)
    with ready.on_terminal() as child:
        child.expect("Enter start")
        assert COLOUR.search(str(child.before))
        child.send("q")
        child.expect(pexpect.EOF)


def test_the_other_keys_show_and_come_back(ready: World) -> None:
    ready.terminal = (40, 100)
    with ready.on_terminal() as child:
        child.expect("Enter start")
        child.send("d")
        child.expect("largest context")
        child.expect("goes back")
        child.send("x")
        child.expect("Enter start")
        child.send("l")
        child.expect("are free")
        child.expect("goes back")
        child.send(ESCAPE)
        child.expect("Enter start")
        child.send("?")
        child.expect("proven: it passed")
        child.expect("goes back")
        child.send(" ")
        child.expect("Enter start")
        child.send("m")
        child.expect("No model is on this disk")
        child.expect("Enter start")
        child.send("q")
        child.expect(pexpect.EOF)


def test_a_changes_the_agent_and_stays_on_the_row(ready: World) -> None:
    with ready.on_terminal() as child:
        child.expect("for Claude Code")
        child.send("2a")
        child.expect(r"for Codex \(not installed\)")
        child.expect("Enter start")
        child.send("a")
        child.expect(r"for pi \(not installed\)")
        child.expect("❯  2")
        child.expect("Enter start")
        child.send("\r")
        child.expect("pi was not found on PATH")
        # where npm is, it is offered
        if child.expect([r"Install it now\?.* \[y/N\] ", pexpect.EOF]) == 0:
            child.sendline("n")
            child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 35
    with ready.on_terminal() as child:
        child.expect("Enter start")
        child.send("2")
        for agent in ("Codex", "pi", "Claude Code"):
            child.send("a")
            child.expect(f"for {agent}")
            child.expect("Enter start")
        child.send("\r")
        child.expect(r"AGENT \d+")
        child.sendline("quit 0")
        child.expect(pexpect.EOF)


def test_the_cursor_is_on_the_model_that_was_used_last(ready: World) -> None:
    ready.fake_claude(exits=0)
    assert ready.run("tiny", "-p", "hi").returncode == 0
    ready.terminal = (24, 100)
    with ready.on_terminal() as child:
        child.expect("❯  2 ● Tiny")
        # what to type, and the context
        child.expect(r"tiny +32k")
        child.expect("Enter start")
        child.send("q")
        child.expect(pexpect.EOF)


def test_off_a_terminal_the_flag_is_named(ready: World) -> None:
    done = ready.run()
    assert done.returncode == 2
    assert "--gemma-light" in done.stderr
    wait_for(lambda: not ready.leftovers(), "nothing")


def test_one_model_that_cannot_be_read_is_one_row(ready: World) -> None:
    config = ready.home / ".config/cclocal/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(
        '[models.gone]\nname = "On a stick"\nnote = "not plugged in"\nnative_context_tokens = 32768\n'
        '[[models.gone.variants]]\nbackend = "llama-server"\nquant = "Q4"\npath = "/mnt/none.gguf"\n'
    )
    ready.terminal = (MODELS + 11, 80)
    with ready.on_terminal() as child:
        child.expect("On a stick")
        child.expect("Enter start")
        child.send(str(MODELS + 1))
        child.expect("not plugg")
        child.send("q")
        child.expect(pexpect.EOF)


def test_how_fast_a_model_was_here(ready: World) -> None:
    state = ready.home / ".local/state/cclocal/logs"
    state.mkdir(parents=True)
    turn = (
        "1.0.0.1 I slot   operator(): id  0 | task 8 | new prompt, n_ctx_slot = 32768, n_keep = 0, task.n_tokens = 9\n"
        "1.0.0.2 I slot print_timing: id  0 | task 8 | prompt eval time =  96.62 ms / 9 tokens\n"
        "1.0.0.3 I slot print_timing: id  0 | task 8 |        eval time = 1000.00 ms / {} tokens\n"
    )
    for number, speed in enumerate((17, 42)):
        log = state / f"server-{number:08x}.log"
        log.write_text(f"[keeper] 12:00:00 Model gemma\n{turn.format(speed)}")
        os.utime(log, (number, number))
    ready.terminal = (MODELS + 10, 110)
    with ready.on_terminal() as child:
        # of the newest session
        child.expect(r"Gemma 4 26B-A4B.*42/s")
        child.send("q")
        child.expect(pexpect.EOF)
