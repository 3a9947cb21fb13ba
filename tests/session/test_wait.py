"""A server that somebody else runs, and that goes away: the agent's request waits for it as long as the user said."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cclocal.server.start import free_port
from tests.session.test_attach import LLAMA_CPP, start_somebodys
from tests.world import World, wait_for


class Remote:
    """Somebody's server at a port, and a session of an agent's on it."""

    def __init__(self, world: World, *words: str) -> None:
        self.world, self.port = world, free_port()
        world.fake_claude()
        self.starts()
        self.child = world.start("--url", f"http://127.0.0.1:{self.port}", *words)
        world.agent()

    def starts(self, **switches: Any) -> None:
        self.server = start_somebodys(self.world, self.port, routes=LLAMA_CPP, **switches)

    def dies(self) -> None:
        self.server.kill()
        self.server.wait()

    def log(self) -> str:
        return next(self.world.sessions.glob("*/relay.log")).read_text()

    def ends(self) -> None:
        self.dies()
        os.kill(self.world.watched(), signal.SIGKILL)
        self.child.wait()


@pytest.fixture
def remote(world: World) -> Iterator[Remote]:
    there = Remote(world, "--wait", "10")
    yield there
    there.ends()


def test_a_request_waits_until_the_server_is_there_again(remote: Remote) -> None:
    remote.dies()
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(remote.world.ask)
        wait_for(lambda: "does not answer" in remote.log(), "the news")
        assert not answer.done()
        remote.starts()
        assert answer.result().status_code == 200
    said = [line for line in remote.log().splitlines() if "answer" in line]
    assert "Connection refused" in said[0]
    assert "Requests wait for it" in said[0]
    assert "answers again" in said[1]
    assert len(said) == 2


def test_while_it_loads_its_model_it_is_not_there(remote: Remote) -> None:
    remote.dies()
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(remote.world.ask)
        remote.starts(loads_messages=2)
        assert answer.result().status_code == 200


def test_without_it_the_agent_is_told_at_once(world: World) -> None:
    there = Remote(world)
    there.dies()
    answer = world.ask()
    assert answer.status_code == 502
    assert f"127.0.0.1:{there.port} does not answer" in answer.text
    there.ends()


def test_one_that_lists_its_models_but_answers_no_message_is_told(world: World) -> None:
    world.fake_claude()
    port = free_port()
    # of an unknown kind: only a message shows that it works
    server = start_somebodys(world, port, hang_messages=True)
    done = world.run("--url", f"http://127.0.0.1:{port}", "--ctx", "32k", CCLOCAL_TEST_HANG_S="2")
    assert done.returncode == 33
    assert "no answer in 2 s" in done.stderr
    assert "--wait" in done.stderr
    server.kill()
    server.wait()
