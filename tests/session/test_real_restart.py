"""A server that dies under a session is replaced, and the session goes on: real agent, real engines, real signals."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import threading
import time
from typing import Any

import pytest

from tests.conftest import BACKENDS, Claude, Engine, wide
from tests.talk import Talk, results, talk
from tests.world import World, alive, wait_for

# one of the engines needs minutes for a prompt
pytestmark = pytest.mark.timeout(1800)


def kill_at_random(world: World, seed: int, party: str = "server") -> threading.Thread:
    """Kill a party some moment after now, as a turn goes on; the seed decides when."""
    pid = world.state()[party]
    delay_s = random.Random(seed).uniform(0.0, 4.0)

    def kill() -> None:
        time.sleep(delay_s)
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def turn(session: Talk, world: World, number: int) -> None:
    """A turn that runs a tool, judged by the file."""
    events = session.say(f"Run the command: echo {number} > {number}.txt")
    assert (world.project / f"{number}.txt").read_text() == f"{number}\n", results(events)


@pytest.mark.parametrize("name", BACKENDS)
def test_turns_go_on_when_the_server_is_killed_at_any_moment(world: World, claude: Claude, name: str) -> None:
    """Each server is killed in some moment of a turn; all files are right, and the session says it."""
    backend, program, target = BACKENDS[name]
    if claude.version != "2.1.331":
        pytest.skip("one version of the agent for each engine")
    world.real("claude", claude.path)
    world.real(program, target)
    # on a processor vllm-mlx takes half a minute for the prompt, which each of its servers reads anew
    world.patience_s, kills = (400.0, 1) if name == "vllm-mlx" else (120.0, 2)
    with talk(world, "--tiny", "--backend", backend, "--cold") as session:
        turn(session, world, 0)
        for number in range(1, kills + 1):
            killer = kill_at_random(world, seed=number)
            turn(session, world, number)
            killer.join()
            # a server that was killed between two turns is back for the next one
            turn(session, world, 10 + number)
    world.assert_clean()
    told = (world.record / "err").read_text()
    assert told.count("The model server stopped (SIGKILL) and is started again.") == kills
    assert "answers again" in told


PICTURE = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([{"type": "text", "text": "word " * 40_000}], r"prompt is too long: \d+ tokens > 32768 maximum"),
        ([{"type": "image", "source": PICTURE}], "Could not process image"),
    ],
    ids=["too long", "no pictures"],
)
def test_what_an_engine_refuses_is_told_in_the_agents_words(
    world: World, engine: Engine, content: list[Any], words: str
) -> None:
    world.real("llama-server", engine.binary)
    world.fake_claude()
    session = world.start("--tiny", "--cold")
    reply = world.ask(content)
    assert reply.status_code == 400, reply.text
    assert re.search(words, reply.json()["error"]["message"])
    session.terminate()
    session.wait()


@pytest.mark.parametrize("party", ["relay", wide("twin")])
def test_a_killed_guard_is_not_noticed(real: World, party: str) -> None:
    with talk(real, "--tiny", "--cold") as session:
        turn(session, real, 0)
        killer = kill_at_random(real, 3, party)
        turn(session, real, 1)
        killer.join()
        turn(session, real, 2)


def test_what_was_kept_of_the_prompt_is_restored_first(real: World, claude: Claude) -> None:
    """The new server reads the few tokens that are not of the fixed part, and not the whole prompt again."""
    if claude.version == "2.1.197":
        pytest.skip("it names the folder before its tools, so little is kept")
    assert real.run("--tiny", "--", "-p", "How are you?").returncode == 0
    with talk(real, "--tiny") as session:
        session.say("How are you?")
        real.kill_server()
        session.say("How are you?")
    turns = json.loads(real.run("stats", "--json").stdout)["turns"]
    assert turns[-1]["prompt_tokens"] > 5000
    assert turns[-1]["read_tokens"] < 1000


def test_the_port_is_nobody_elses_while_there_is_no_server(scripted: World) -> None:
    """Measured before: another user bound the free port, got key and prompt, and its tool call was run."""
    scripted.fake_server(load_s=3, replies=[{"text": "One."}])
    with talk(scripted, "--tiny", "--cold") as session:
        session.say("How are you?")
        port = scripted.state()["port"]
        server = scripted.state()["server"]
        os.kill(server, signal.SIGKILL)
        wait_for(lambda: not alive(server), "the end")
        for host in ("127.0.0.1", "0.0.0.0"):
            with socket.socket() as squatter:
                squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                with pytest.raises(OSError, match="in use"):
                    squatter.bind((host, port))
        events = session.say("How are you?")
        assert events[-1]["result"] == "One."


@pytest.mark.skipif(os.geteuid() != 0, reason="another user needs root")
def test_another_user_on_the_servers_own_port_gets_nothing(scripted: World) -> None:
    """An engine without unix sockets has a port of its own, which is free for as long as its server is gone."""
    scripted.fake_server(load_s=4, replies=[{"text": "One."}])
    got: list[bytes] = []
    with talk(scripted, "--tiny", "--cold", exits=1) as session:
        session.say("How are you?")
        state = scripted.state()
        port = scripted.server_pids()["port"]
        assert port != state["port"]
        (scripted.record / "pids.json").unlink()
        os.kill(state["server"], signal.SIGKILL)
        wait_for(lambda: not alive(state["server"]), "the end")
        squatter = wait_for(lambda: _squat(port, got), "the free port")
        answer: list[Any] = []
        asking = threading.Thread(target=lambda: answer.append(session.say("How are you?")), daemon=True)
        asking.start()
        time.sleep(2)
        assert got == []
        # its server cannot start there either, so the session ends with words and not with a stranger's answer
        wait_for(lambda: "server_exit" in scripted.state() or None, "the last try")
        asking.join(60)
        assert "model server stopped" in json.dumps(answer[0][-1])
        assert got == []
        os.kill(squatter, signal.SIGKILL)
        os.waitpid(squatter, 0)


def _squat(port: int, got: list[bytes]) -> int:
    """Another user's program on a port, which writes down all it hears; its pid, 0 if the port is taken."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        listener.close()
        return 0
    listener.listen()
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setuid(65534)
        while True:
            client, _ = listener.accept()
            client.settimeout(1)
            try:
                if data := client.recv(65536):
                    os.write(into, data)
            except OSError:
                pass
            client.close()
    listener.close()
    os.close(into)

    def read() -> None:
        while data := os.read(out, 65536):
            got.append(data)

    threading.Thread(target=read, daemon=True).start()
    return pid
