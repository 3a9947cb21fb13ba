"""`cclocal check`: faults that make a model useless are found, and told apart from harmless ones."""

from __future__ import annotations

import json
from typing import Any

import pexpect
import pytest

from cclocal import tiny
from tests.world import World

WRITES = """#!/bin/sh
[ "$1" = --version ] && echo "2.1.331 (Claude Code)" && exit
printf %s "it works on this machine" >proof.txt
"""


@pytest.fixture
def agent(world: World) -> World:
    """An agent that writes the file, whatever the model says."""
    program = world.bin / "claude"
    program.write_text(WRITES)
    program.chmod(0o755)
    return world


def rows(world: World, *args: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    done = world.run("check", "tiny", "--json", *args)
    told = json.loads(done.stdout)
    return done.returncode, {row["name"]: row["status"] for row in told["rows"]}, told


def test_a_model_that_does_what_it_is_told(agent: World) -> None:
    agent.fake_server(obeys=True)
    code, status, told = rows(agent)
    assert code == 0
    assert told["works"] is True
    failed = [name for name, outcome in status.items() if outcome == "fail"]
    # the stand-in counts no tokens and keeps no cache
    assert set(failed) <= {
        "Tokens are counted before they are sent",
        "A second turn does not read the whole prompt again",
    }
    assert status["A second tool call after the first one's result"] == "pass"
    assert status["Two calls in one reply"] == "not exercised"


@pytest.mark.parametrize(
    ("fault", "row", "works"),
    [
        ("drops", "A file full of quotes arrives byte for byte", False),
        ("odd", "A tool's result ends the turn", False),
        ("mangles", "A file full of quotes arrives byte for byte", False),
        ("talks", "A tool's result ends the turn", False),
        ("leaks", "Thinking stays out of the text", True),
        ("silent", "A tool call that is cut off is not reported as complete", True),
        ("swallows", "A prompt beyond the window is refused, not cut", True),
    ],
)
def test_each_fault_is_found(agent: World, fault: str, row: str, works: bool) -> None:
    agent.fake_server(obeys=True, faults=[fault])
    code, status, told = rows(agent)
    assert status[row] == "fail"
    assert told["works"] is works
    assert code == (0 if works else 1)
    assert all(one["meaning"] for one in told["rows"])


def test_a_model_that_only_talks_is_found_out_in_three_replies(agent: World) -> None:
    agent.fake_server(obeys=True, faults=["talks"])
    done = agent.run("check", "tiny")
    assert done.returncode == 1
    assert "cannot drive the agent: it calls no tool, so nothing more was tried" in done.stdout
    # of the rows those that were tried
    assert done.stdout.count("not exercised") == 1
    # a row of two replies may be the last
    assert len([request for request in agent.requests() if request["path"] == "/v1/messages"]) <= 4
    # the agent was not started for it
    assert not (agent.record / "agent.json").exists()


def test_a_file_in_the_folder_one_is_in(agent: World) -> None:
    agent.fake_server(obeys=True)
    (agent.project / "my.gguf").write_bytes(tiny.gguf())
    done = agent.run("check", "./my.gguf", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "my"


def test_an_agent_that_writes_nothing_fails_it(world: World) -> None:
    world.fake_server(obeys=True)
    world.fake_claude(exits=0)
    code, status, _ = rows(world)
    assert code == 1
    assert status["The real agent writes a real file"] == "fail"


def test_an_interrupted_check_keeps_what_it_showed(agent: World) -> None:
    """Ctrl-C while the agent works: every row before is there, and nothing is said of what was not tried."""
    agent.fake_server(obeys=True)
    (agent.bin / "claude").write_text(WRITES.replace("printf", "touch started; sleep 60; printf"))
    with agent.on_terminal("check", "tiny") as child:
        child.expect("The beginning of the conversation is dropped|A prompt beyond the window is refused")
        child.expect("Claude Code writes a file")
        child.sendintr()
        child.expect(r"was not tried to the end: 15 rows are known")
        child.expect(pexpect.EOF)
        child.close()
    assert child.exitstatus == 130
    assert not (agent.home / ".local/state/cclocal/proofs.json").exists()


def test_a_failed_check_is_remembered_and_asked_about(agent: World) -> None:
    agent.fake_server(obeys=True, faults=["mangles"])
    shown = agent.run("check", "tiny")
    assert shown.returncode == 1
    assert "cannot be relied on" in shown.stdout
    refused = agent.run("--tiny", "--", "-p", "x")
    assert refused.returncode == 2
    assert "failed its check" in refused.stderr
    assert agent.run("--tiny", "--yes", "--", "-p", "x").returncode == 0
    with agent.on_terminal("--tiny") as child:
        child.expect(r"Start it anyway\? \[y/N\] ")
        child.sendline("n")
        child.expect("nothing was left running")
    agent.fake_server(obeys=True)
    assert agent.run("check", "tiny").returncode == 0
    assert agent.run("--tiny", "--", "-p", "x").returncode == 0
    with agent.on_terminal() as child:
        # the menu begins on the model that was used last
        child.expect("✓")
        child.send("q")
