"""A newcomer on a terminal, in a fresh home, with the README's commands; the README's film is what this test sees.

    python -m pytest tests/session/test_newcomer.py --film

writes docs/film.svg, docs/plan.svg, docs/check.svg and docs/vision.svg anew.
"""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path

import pexpect
import pytest

from cclocal.checks.picture import png
from tests.conftest import CLAUDES, ENGINES, ROOT
from tests.film import Frame, Shell, film, picture
from tests.world import World

ASKED = "Create the file hello.txt with content: hello from my own machine"


@pytest.fixture
def newest(world: World) -> World:
    """What somebody installs today: the newest agent, and the engine of the extra."""
    world.real("claude", CLAUDES[0].path)
    world.real("llama-server", ENGINES[0].binary)
    return world


def shell_of(world: World, rows: int, columns: int) -> Shell:
    path = f"{world.bin}:{Path(sys.executable).parent}:/usr/bin:/bin"
    return Shell(rows, columns, {**world.env, "PATH": path}, world.project)


def first_session(world: World, rows: int, columns: int) -> list[Frame]:
    """The first session: what its screens were."""
    shell = shell_of(world, rows, columns)
    shell.type(f"cclocal tiny '{ASKED}'", "Done")
    shell.look(2.0)
    for _ in range(3):
        shell.child.send("\x03\x03")
        # while the agent still answers, the first one only interrupts the answer
        if shell.child.expect([r"Back to the cloud.*\$ ", pexpect.TIMEOUT], timeout=10) == 0:
            break
    shell.type("cat hello.txt; echo", r"hello from my own machine\r\n.*\$ ")
    shell.look(0.5)
    shell.child.close(force=True)
    return shell.frames


def test_a_picture_is_looked_at_on_a_terminal(newest: World, request: pytest.FixtureRequest) -> None:
    newest.project = newest.home / "project"
    newest.project.mkdir()
    (newest.project / "shot.png").write_bytes(png((255, 0, 0), 640, 480))
    shell = shell_of(newest, 24, 80)
    shell.type("cclocal --tiny-eyes 'Look at the picture: shot.png'", r"I.{0,9}see.{0,9}red")
    shell.look(1.0)
    shell.child.close(force=True)
    newest.wait_for_end()
    if request.config.getoption("--film"):
        (ROOT / "docs/vision.svg").write_text(picture(shell.frames[-1]), "utf-8")


def first_with(frames: list[Frame], words: str) -> Frame:
    return next(frame for frame in frames if words in frame.text)


@pytest.mark.parametrize(("rows", "columns"), [(24, 80), pytest.param(40, 120, marks=pytest.mark.wide)])
def test_the_first_session_of_a_newcomer(
    newest: World, rows: int, columns: int, request: pytest.FixtureRequest
) -> None:
    newest.project = newest.home / "project"
    newest.project.mkdir()
    frames = first_session(newest, rows, columns)
    assert (newest.project / "hello.txt").read_text() == "hello from my own machine"
    # while it starts there is always something that says so, and it moves at least every two seconds
    begin, agent = first_with(frames, "sandbox: "), first_with(frames, "❯")
    waiting = [frame for frame in frames if begin.at_s <= frame.at_s <= agent.at_s]
    assert all(frame.text.strip() for frame in waiting)
    assert max(after.at_s - before.at_s for before, after in itertools.pairwise(waiting)) < 5
    assert "Starting Claude Code" in "".join(frame.text for frame in waiting)
    # no line of ours is broken within a word, and none is beyond the screen
    last = frames[-1]
    assert re.search(r"On this model again: +cclocal tiny --resume [0-9a-f-]{36}", "".join(last.lines))
    assert "Back to the cloud: type claude." in " ".join(" ".join(last.lines).split())
    assert last.lines[[i for i, line in enumerate(last.lines) if "cat hello.txt" in line][-1] + 1] == (
        "hello from my own machine"
    )
    if request.config.getoption("--film") and columns == 80:
        (ROOT / "docs/film.svg").write_text(film(frames), "utf-8")


@pytest.mark.parametrize(("rows", "columns"), [(24, 80), pytest.param(40, 120, marks=pytest.mark.wide)])
def test_what_a_newcomer_looks_at_fits_the_screen(
    world: World, rows: int, columns: int, request: pytest.FixtureRequest
) -> None:
    world.fake_server(obeys=True)
    world.fake_claude()
    shell = shell_of(world, rows, columns)
    shell.type("cclocal plan gemma --ram 32 --macos 26", r"budget 2.*\$ ")
    plan = shell.frames[-1]
    shell.child.close(force=True)
    assert not [line for line in plan.lines if line.endswith("…")]
    assert "largest context" in plan.text
    if request.config.getoption("--film") and columns == 80:
        (ROOT / "docs/plan.svg").write_text(picture(plan), "utf-8")


def test_the_picture_of_a_check(newest: World, request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--film"):
        pytest.skip("only for the README: the check itself has its tests")
    shell = shell_of(newest, 40, 90)
    shell.type("cclocal check tiny", r"(can drive|cannot be).*\$ ")
    shell.child.close(force=True)
    (ROOT / "docs/check.svg").write_text(picture(shell.frames[-1]), "utf-8")


@pytest.mark.parametrize("name", ["film", "plan", "check", "menu", "vision"])
def test_the_pages_show_pictures_that_are_there(name: str) -> None:
    drawn = (ROOT / f"docs/{name}.svg").read_text("utf-8")
    page = ("docs/vision.md", "vision") if name == "vision" else ("README.md", f"docs/{name}")
    assert f"({page[1]}.svg)" in (ROOT / page[0]).read_text("utf-8")
    assert drawn.startswith("<svg")
    # a picture in a page is drawn without scripts and without anything from elsewhere
    assert "<script" not in drawn
    assert not re.search(r'(href|src)="http', drawn)
