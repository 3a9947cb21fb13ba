"""An agent that announces a step and stops is sent on once: the real Claude Code, a scripted model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cclocal.agents.claude.nudge import announces
from tests.world import World

ANNOUNCED = {"text": "The folder is empty. Now I'll create the file."}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("I'll create the file now.", True),
        ("The test fails because of a typo.\n\nLet me fix that:", True),
        ("First, I need to look at main.py.", True),
        ("Done.", False),
        ("I created the file a.txt.", False),
        ("Shall I run the tests now?", False),
        ("Let me know if you want to change anything.", False),
        ("I will not run that command: it deletes your files.", False),
        ("", False),
    ],
)
def test_what_counts_as_an_announcement(reply: str, expected: bool) -> None:
    assert announces(reply) == expected


def asked(world: World) -> int:
    return sum(bool(request["body"]) for request in world.requests())


def run(world: World, replies: list[dict[str, Any]], *words: str) -> str:
    world.fake_server(replies=replies)
    done = world.run("--tiny", "--cold", *words, "--", "-p", "Create the file.")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_goes_on_and_stats_say_so(scripted: World) -> None:
    call = {"tool": ["Write", {"file_path": str(scripted.project / "a.txt"), "content": "hi"}]}
    assert run(scripted, [ANNOUNCED, call, {"text": "Done."}]) == "Done.\n"
    assert (scripted.project / "a.txt").read_text() == "hi"
    assert asked(scripted) == 3
    news = json.loads(scripted.run("stats", "--json").stdout)["news"]
    assert sum("announced a step" in line for line in news) == 1


def test_once_and_no_more(scripted: World) -> None:
    run(scripted, [ANNOUNCED, ANNOUNCED, ANNOUNCED])
    assert asked(scripted) == 2


def test_a_reply_that_announces_nothing_is_the_end(scripted: World) -> None:
    assert run(scripted, [{"text": "There is nothing to do."}]) == "There is nothing to do.\n"
    assert asked(scripted) == 1


def test_it_can_be_switched_off(scripted: World) -> None:
    run(scripted, [ANNOUNCED], "--no-nudge")
    assert asked(scripted) == 1
