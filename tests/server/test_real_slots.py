"""Conversations on the slots of a real server, through the session's relay: which tokens are evaluated."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.conftest import Engine
from tests.world import World

#: Tokens beside those that are new: the end of a reply, whole words, a sampled token.
SPARE_TOKENS = 64

TOOL = {"name": "Write", "description": "Writes a file.", "input_schema": {"type": "object", "properties": {}}}
#: Instructions of some 4,000 tokens each.
MAIN = " ".join(f"Rule {number}: think of {number} before you act." for number in range(300))
OTHER = " ".join(f"You help with part {number}; never touch part {number + 1}." for number in range(250))


class Conversation:
    """One conversation of an agent's: each turn sends all that was said before."""

    def __init__(self, world: World, system: str, question: str) -> None:
        got = world.agent()["env"]
        self.url, self.headers = got["ANTHROPIC_BASE_URL"], {"x-api-key": got["ANTHROPIC_AUTH_TOKEN"]}
        self.body: dict[str, Any] = {"model": "tiny", "max_tokens": 40, "system": system, "tools": [TOOL]}
        self.messages: list[dict[str, Any]] = []
        self.question = question

    def turn(self, question: str = "") -> tuple[int, int]:
        """(tokens evaluated, tokens kept) of one more question."""
        self.messages.append({"role": "user", "content": [{"type": "text", "text": question or self.question}]})
        # the mark for a cache moves on, as an agent's does
        marked = [*self.messages[:-1], {**self.messages[-1], "content": [self.marked()]}]
        answer = httpx.post(
            f"{self.url}/v1/messages",
            json={**self.body, "messages": marked},
            headers=self.headers,
            trust_env=False,
            timeout=120,
        )
        assert answer.status_code == 200, answer.text
        said = answer.json()
        self.messages.append({"role": "assistant", "content": said["content"]})
        return said["usage"]["input_tokens"], said["usage"]["cache_read_input_tokens"]

    def marked(self) -> dict[str, Any]:
        return {**self.messages[-1]["content"][0], "cache_control": {"type": "ephemeral"}}


@pytest.fixture
def running(world: World, engine: Engine) -> Iterator[World]:
    """A session of three slots, whose agent leaves the requests to the test."""
    world.real("llama-server", engine.binary)
    world.fake_claude()
    child = world.start("--tiny", "--slots", "3", "--ctx", "98304")
    world.agent()
    yield world
    os.kill(world.watched(), signal.SIGKILL)
    child.wait()


def test_the_sessions_conversation_keeps_its_slot_whatever_subagents_do(running: World) -> None:
    main = Conversation(running, MAIN, "What is to be done?")
    read, kept = main.turn()
    assert kept < read + kept < 10_000
    first = main.turn("And then?")
    assert first[0] < SPARE_TOKENS
    # two kinds at once, and more than there are slots for
    helpers = [Conversation(running, OTHER, f"Help with {name}, please.") for name in ("one", "two", "three", "four")]
    with ThreadPoolExecutor() as pool:
        costs = list(pool.map(Conversation.turn, helpers))
    assert all(read < SPARE_TOKENS < 3000 < kept for read, kept in costs), costs
    assert main.turn("What now?")[0] < SPARE_TOKENS
    # the last two are in their slots
    assert max(helper.turn("Go on.")[0] for helper in helpers[2:]) < SPARE_TOKENS
    # a new conversation of the session's own agent, as after /clear, takes the place of the old one
    assert Conversation(running, MAIN, "Something else.").turn()[0] < SPARE_TOKENS
    assert max(helper.turn("Go on.")[0] for helper in helpers[2:]) < SPARE_TOKENS


def test_a_server_that_died_is_given_its_conversations_again(running: World) -> None:
    main, helper = Conversation(running, MAIN, "What is to be done?"), Conversation(running, OTHER, "Help, please.")
    assert main.turn()
    assert helper.turn()
    running.kill_server()
    assert main.turn("And then?")[1] + main.turn("And now?")[1] > 3000
    assert helper.turn("Go on.")
    assert helper.turn("Go on.")[0] < SPARE_TOKENS
    assert main.turn("And then?")[0] < SPARE_TOKENS
