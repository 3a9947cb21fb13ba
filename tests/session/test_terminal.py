"""The terminal behaves as if the user had typed `claude`: a job-control shell on a real pty starts cclocal."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator, Sequence

import pexpect
import pytest

from tests.conftest import SANDBOXED, Claude, ordinary_user
from tests.world import FAKES, World, alive, wait_for

USER = "strict, as an ordinary user"
LEVELS = ["off", pytest.param("strict", marks=SANDBOXED), pytest.param(USER, marks=(SANDBOXED, pytest.mark.wide))]


@pytest.fixture
def shell(world: World) -> Iterator[pexpect.spawn]:  # type: ignore[type-arg]
    bash = shutil.which("bash") or "/bin/bash"
    child: pexpect.spawn = pexpect.spawn(  # type: ignore[type-arg]
        bash,
        ["--norc", "--noprofile", "-i"],
        env={**world.env, "PS1": "PROMPT> "},
        cwd=str(world.project),
        encoding="utf-8",
        timeout=20,
        dimensions=(24, 80),
    )
    child.expect("PROMPT> ")
    yield child
    child.close(force=True)


def start(shell: pexpect.spawn, world: World, *args: str, under: Sequence[str] = ()) -> None:  # type: ignore[type-arg]
    shell.sendline(" ".join((*under, *world.command, *(args or ("--tiny",)))))


def start_agent(shell: pexpect.spawn, world: World, level: str = "off") -> None:  # type: ignore[type-arg]
    """A session on the shell, up to its agent."""
    world.fake_server()
    # a sandbox shows the folders of PATH, and the agent writes in the working folder only
    world.fake_claude(record=str(world.project))
    shell.sendline(f"export PATH={FAKES}:$PATH")
    start(shell, world, "--tiny", "--sandbox", level.split(",")[0], under=ordinary_user() if level == USER else ())
    shell.expect(r"AGENT \d+")


def status(shell: pexpect.spawn) -> int:  # type: ignore[type-arg]
    shell.sendline("echo STATUS=$?")
    shell.expect(r"STATUS=\d+\r\n")
    return int(str(shell.after).strip().removeprefix("STATUS="))


@pytest.mark.parametrize("level", LEVELS)
def test_keys_and_job_control_reach_the_agent_and_not_the_server(
    world: World,
    shell: pexpect.spawn,  # type: ignore[type-arg]
    level: str,
) -> None:
    start_agent(shell, world, level)
    server = world.server_pids()["server"]
    for _ in range(2):
        shell.sendintr()
        shell.expect("GOT-INT")
        assert alive(server)
    shell.setwinsize(33, 101)
    shell.expect("WINCH 101x33")
    shell.send("\x1a")
    shell.expect("Stopped")
    assert alive(server)
    shell.sendline("fg")
    shell.expect("GOT-CONT")
    shell.sendline("hello")
    shell.expect("ECHO hello")
    shell.sendline("quit 42")
    shell.expect("PROMPT> ")
    assert status(shell) == 42
    wait_for(lambda: not alive(server), "the server's end")


@pytest.mark.parametrize("level", LEVELS)
def test_an_agent_that_is_terminated_has_the_shells_status(
    world: World,
    shell: pexpect.spawn,  # type: ignore[type-arg]
    level: str,
) -> None:
    start_agent(shell, world, level)
    os.kill(world.state()["watched"], signal.SIGTERM)
    shell.expect("Terminated")
    assert status(shell) == 143


@pytest.mark.parametrize("level", LEVELS)
def test_an_agent_that_crashes_leaves_a_sane_terminal(
    world: World,
    shell: pexpect.spawn,  # type: ignore[type-arg]
    level: str,
) -> None:
    start_agent(shell, world, level)
    shell.sendline("segv")
    # the keeper switches off what a killed TUI leaves on
    shell.expect(re.escape("\x1b[?1000l"))
    assert status(shell) == 139


@pytest.mark.parametrize("level", LEVELS)
def test_a_closed_terminal_ends_everything(
    world: World,
    shell: pexpect.spawn,  # type: ignore[type-arg]
    level: str,
) -> None:
    start_agent(shell, world, level)
    shell.close(force=True)
    world.assert_clean()


def test_ctrl_c_while_loading_ends_everything(world: World, shell: pexpect.spawn) -> None:  # type: ignore[type-arg]
    world.fake_server(load_s=60)
    world.fake_claude()
    start(shell, world)
    # the live line: phase, seconds, and the server's own words
    shell.expect("Tiny copy circuit: starting… 1 s")
    shell.expect("loading the model")
    shell.sendintr()
    shell.expect("Interrupted; nothing was left running")
    shell.expect("PROMPT> ")
    assert status(shell) == 130


def test_a_dead_server_is_told_on_the_terminal_after_the_session(world: World, shell: pexpect.spawn) -> None:  # type: ignore[type-arg]
    start_agent(shell, world)
    world.kill_server(times=3)
    wait_for(lambda: "server_exit" in world.state(), "the keeper's note")
    shell.sendline("quit 0")
    shell.expect("The model server stopped during the session")
    shell.expect("cclocal tiny --continue")


def test_a_terminal_without_a_menu_is_told_the_flag(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    with world.on_terminal(TERM="dumb") as child:
        child.expect("no menu on this terminal")
        child.expect("--gemma-light")
        child.expect(pexpect.EOF)
        assert "\x1b[1m" not in str(child.before)
        child.close()
        assert child.exitstatus == 2


def test_safe_shows_the_plan_and_asks_first(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    with world.on_terminal("--tiny", "--safe") as child:
        child.expect("Context")
        child.expect(r"keep the context of 32,768.*\(recommended\)")
        child.expect(r"Choose \[1/c/q\] \(Enter = 1\): ")
        assert not (world.record / "pids.json").exists()
        child.sendline("q")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 130
    assert not (world.record / "pids.json").exists()
    with world.on_terminal("--tiny", "--safe") as child:
        child.expect("Choose ")
        child.sendline("")
        child.expect(r"AGENT \d+")
        child.sendline("quit 0")
        child.expect(pexpect.EOF)


def test_the_end_of_a_session_says_how_to_go_on(
    world: World,
    claude: Claude,
    shell: pexpect.spawn,  # type: ignore[type-arg]
) -> None:
    world.real("claude", claude.path)
    world.fake_server(replies=[{"text": "ANSWERED"}] * 9)
    start(shell, world, "tiny", "hello")
    shell.expect("ANSWERED", timeout=60)
    (world.project / ".envrc").write_text("export A=1\n")
    words = "On this model again:  cclocal tiny --resume ([0-9a-f-]{36})"
    for _ in range(5):
        # the first one may still interrupt an answer
        shell.send("\x03\x03")
        if shell.expect([words, pexpect.TIMEOUT], timeout=5) == 0:
            break
    assert isinstance(shell.match, re.Match)
    id_ = str(shell.match[1])
    shell.expect("Back to the cloud: type claude")
    # what changed is said after it, on the terminal too
    shell.expect(r"\.envrc")
    world.wait_for_end()
    assert json.loads(world.run("stats", "--json").stdout)["conversation"] == id_
    assert f"id of the conversation: {id_}" in world.run("stats").stdout
    again = world.run("tiny", "--resume", id_, "-p", "go on")
    assert again.returncode == 0, again.stderr
    # on the terminal of the user only, and once
    assert "again:" not in again.stderr
    assert "back to the cloud" not in again.stderr.lower()
