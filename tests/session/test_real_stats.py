"""What is seen of a session while it runs and afterwards: the line below the prompt, the turns, the prompt's parts."""

from __future__ import annotations

import json
import re

import pytest

from tests.agents.test_real_first_request import TOOLS, body_of
from tests.conftest import NEWEST, Claude, Engine
from tests.film import Terminal
from tests.talk import talk
from tests.world import World, leave, wait_for


def test_the_line_below_the_prompt_tells_what_the_server_does(real: World) -> None:
    real.terminal = (40, 120)
    with real.on_terminal("--tiny", "--cold") as child:
        screen = Terminal(*real.terminal)
        child.logfile_read = screen
        child.expect("shift.*tab")
        child.send("Run the command: echo hi")
        child.send("\r")
        screen.wait_for(child, "% kept")
        leave(child)
    assert re.search(r"tokens \(\d+%\) · read [\d,]+ in [\d.]+ s, \d+% kept", screen.shown)
    rows = json.loads(real.run("stats", "--json").stdout)["turns"]
    assert len(rows) == 2


def test_the_turns_of_a_session_are_told(real: World, claude: Claude) -> None:
    assert real.run("stats").returncode == 2
    assert "No sessions yet" in real.run("stats", "--json").stderr
    with talk(real, "--tiny", "--cold") as session:
        session.say("Create the file one.txt with content: first")
        session.say("Run the command: wc -c one.txt")
    told = json.loads(real.run("stats", "--json").stdout)
    rows = told["turns"]
    # a question and a result, twice; and nothing that cclocal itself asked
    assert len(rows) == 4
    assert rows[0]["kept_tokens"] < 20
    for row in rows:
        assert row["prompt_tokens"] == row["read_tokens"] + row["kept_tokens"]
        assert row["first_s"] > 0
    # turns read only what is new
    assert all(row["kept_tokens"] > rows[0]["prompt_tokens"] - 64 for row in rows[1:])
    assert all(row["read_tokens"] < 200 for row in rows[1:])
    shown = real.run("stats", NO_COLOR="1").stdout
    assert re.search(r"^ +1 +\d,\d{3}", shown, re.MULTILINE)
    assert told["session"] in shown
    assert told["now"] is None
    assert real.run("stats", told["session"]).stdout == shown
    unknown = real.run("stats", "nope")
    assert unknown.returncode == 2
    assert told["session"] in unknown.stderr


def test_where_the_prompts_bytes_go(scripted: World, claude: Claude) -> None:
    told = json.loads(scripted.run("prompt", "--json", "--", "-p").stdout)
    blocks = {block["name"]: block for block in told["blocks"]}
    assert told["agent"] == f"claude {claude.version} in print mode"
    assert {name for name, block in blocks.items() if name.startswith("tool ") and block["bytes"]} == {
        f"tool {name}" for name in TOOLS
    }
    ours, plain = (sum(block[name] for block in blocks.values()) for name in ("bytes", "plain_bytes"))
    assert ours < 0.45 * plain
    # folders and dates stand behind everything that is fixed, where the version allows it
    assert not blocks["first message"]["same"]
    assert blocks["system prompt"]["same"] == (claude.version == NEWEST)
    assert all(block["same"] for name, block in blocks.items() if name.startswith("tool ") and block["bytes"])
    # and it is what a session sends
    scripted.run("--tiny", "--", "-p", "Hello")
    sent = body_of(scripted)
    system = "".join(block["text"] for block in sent["system"])
    assert abs(len(system.encode()) - blocks["system prompt"]["bytes"]) < 200
    shown = scripted.run("prompt", "--", "-p", NO_COLOR="1").stdout
    assert re.search(r"^total +[\d,]+ +[\d,]+ +[\d,]+", shown, re.MULTILINE)


def test_tokens_are_counted_where_a_server_runs(world: World, claude: Claude, engine: Engine) -> None:
    world.real("claude", claude.path)
    world.real("llama-server", engine.binary)
    server = world.start("--server", "--tiny")
    world.state()
    wait_for(lambda: "answers on" in (world.record / "err").read_text(), "the server")
    told = json.loads(world.run("prompt", "--json", "--", "-p").stdout)
    assert told["counted_by"] == "tiny"
    bash = next(block for block in told["blocks"] if block["name"] == "tool Bash")
    assert bash["tokens"] != round(bash["bytes"] / 4)
    server.terminate()
    server.wait()


def test_an_own_prompt_is_not_rehearsed(scripted: World) -> None:
    done = scripted.run("prompt", "--", "--system-prompt", "x")
    assert done.returncode == 2
    assert "replace the prompt" in done.stderr


@pytest.mark.parametrize("lean", [True, pytest.param(False, marks=pytest.mark.wide)])
def test_the_lean_prompt_is_half_as_long_and_the_loop_is_whole(real: World, claude: Claude, *, lean: bool) -> None:
    words = ("--tiny", *(("--lean",) if lean else ()))
    first = real.run(*words, "--", "-p", "Create the file one.txt with content: lean")
    assert (real.project / "one.txt").read_text() == "lean", first.stderr
    rows = json.loads(real.run("stats", "--json").stdout)["turns"]
    assert (rows[0]["prompt_tokens"] < 4000) == lean
    if lean:
        # in another folder, on either version: the folder is told behind what is fixed
        real.project = real.root / "another project"
        real.project.mkdir()
        (real.project / "CLAUDE.md").write_text("Speak Latin.")
        real.run(*words, "--", "-p", "Run the command: pwd")
        again = json.loads(real.run("stats", "--json").stdout)["turns"]
        assert again[0]["kept_tokens"] > 0.8 * again[0]["prompt_tokens"]


def test_a_lean_session_knows_its_instructions_and_pleases_a_strict_template(scripted: World) -> None:
    (scripted.project / "CLAUDE.md").write_text("Speak Latin.")
    scripted.run("--tiny", "--lean", "--", "-p", "Hello")
    sent = body_of(scripted)
    assert [tool["name"] for tool in sent["tools"]] == ["Bash", "Edit", "Read", "Write"]
    assert "Speak Latin." in json.dumps(sent["messages"])
    assert "in parts" in json.dumps(sent["system"])
    # nothing in mid-conversation that a strict template refuses
    assert {message["role"] for message in sent["messages"]} == {"user"}
    # what is fixed names no folder
    assert str(scripted.root) not in json.dumps(sent["system"])
