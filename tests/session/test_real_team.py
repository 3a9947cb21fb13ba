"""Several real agents on one server with several slots: what each reads, by the server's own counts."""

from __future__ import annotations

import pytest

from tests.conftest import CLAUDES, OTHERS, Engine
from tests.team import Team, told, written
from tests.world import World

#: What a new agent may read beside what its folder and its question have that others have not.
SPARE_TOKENS = 64


@pytest.fixture
def newest(world: World, engine: Engine) -> World:
    world.real("claude", CLAUDES[0].path)
    world.real("llama-server", engine.binary)
    return world


def test_instructions_are_read_once_and_no_agent_costs_another_its_conversation(newest: World) -> None:
    with Team(newest, 4) as team:
        read, kept = told(team.asks("ada"))
        # three at once, and the first goes on meanwhile
        agents = [team.asks(name) for name in ("ben", "cem", "dan")]
        went_on, _ = told(team.asks("ada", "--continue", question="Create the file ada.txt with content: two"))
        others = [told(agent) for agent in agents]
        assert [written(newest, name) for name in ("ada", "ben", "cem", "dan")] == [
            "two",
            *(f"written by {name}" for name in ("ben", "cem", "dan")),
        ]
        instructions = kept // 2
        assert instructions > 5000
        assert all(one < read + SPARE_TOKENS for one, _ in others)
        again, _ = told(team.asks("ada", "--continue", question="Create the file ada.txt with content: three"))
        # what is new of two turns: the question and the result of its call, with what the agent itself adds to them
        assert again < went_on + SPARE_TOKENS < read + SPARE_TOKENS
        new = read + went_on + again + sum(one for one, _ in others)
        assert team.evaluated_tokens() < instructions + new + 8 * SPARE_TOKENS
    assert not list((newest.home / ".cache/cclocal/warm").iterdir())


def test_more_agents_than_slots_wait_or_take_the_place_of_the_oldest(newest: World) -> None:
    with Team(newest, 2) as team:
        names = ("ada", "ben", "cem", "dan", "eve")
        for agent in [team.asks(name) for name in names]:
            told(agent)
        assert [written(newest, name) for name in names] == [f"written by {name}" for name in names]


@pytest.mark.skipif(len(OTHERS) < 2, reason="codex and pi are not here")
def test_agents_of_three_kinds_keep_what_each_has_read(newest: World) -> None:
    for name, (program, *_) in OTHERS.items():
        newest.real(name, program)
    with Team(newest, 3) as team:

        def run(agent: str, text: str, *words: str) -> None:
            folder = newest.project = newest.root / f"the project of {agent}"
            folder.mkdir(exist_ok=True)
            done = newest.run(
                "attach", team.port, "--agent", agent, "--", *words, f"Run the command: echo {text} > a.txt"
            )
            assert (folder / "a.txt").read_text() == f"{text}\n", done.stderr

        kinds = {
            name: (*once, *(("--skip-git-repo-check",) if name == "codex" else ()))
            for name, (_, once, _) in OTHERS.items()
        }
        for agent, words in kinds.items():
            run(agent, "one", *words)
        told(team.asks("ada"))
        before = team.evaluated_tokens()
        # a new conversation of each kind finds its instructions, in whichever slot
        for agent, words in kinds.items():
            run(agent, "two", *words)
        told(team.asks("ben"))
        assert team.evaluated_tokens() - before < 3 * 700
