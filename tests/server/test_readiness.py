"""Every odd answer a server may give before it is ready, and what it is taken for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import respx

from cclocal.command import Binding, Endpoint, Readiness
from cclocal.errors import NotReadyError, PortError, ServerDiedError
from cclocal.programs import last_lines
from cclocal.server.readiness import (
    NotYet,
    SignsOfLife,
    check_message,
    check_models,
    check_wrong_key,
    wait_until_ready,
)
from cclocal.server.start import Server
from cclocal.wires import anthropic

URL = "http://127.0.0.1"


def reply(status: int, **content: object) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", f"{URL}/v1/models"), **content)  # type: ignore[arg-type]


OURS = {"data": [{"id": "tiny"}]}


def test_the_models_answer() -> None:
    check_models(reply(200, json=OURS), "tiny")


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_loading_server_is_waited_for(status: int) -> None:
    with pytest.raises(NotYet, match="loading"):
        check_models(reply(status, json={"error": {"message": "Loading model"}}), "tiny")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (reply(401, json={}), "refuses the session's own key"),
        (reply(404, text="not found"), "answered 404"),
        (reply(200, text="<html>another app</html>"), "not a model server"),
        (reply(200, json={"status": "ok"}), "not a model server"),
        (reply(200, json=[1, 2]), "not a model server"),
        (reply(200, json={"data": [{"name": "x"}]}), "not a model server"),
        (reply(200, json={"data": []}), "no model, not tiny"),
        (reply(200, json={"data": [{"id": "other"}]}), "has other, not tiny"),
    ],
)
def test_another_apps_answer_is_never_taken_for_ours(answer: httpx.Response, words: str) -> None:
    with pytest.raises(NotReadyError, match=words):
        check_models(answer, "tiny")


def test_a_wrong_key_must_be_refused() -> None:
    check_wrong_key(reply(401))
    check_wrong_key(reply(403))
    with pytest.raises(NotReadyError, match="does not check keys"):
        check_wrong_key(reply(200, json=OURS))


def test_a_message_must_be_a_message() -> None:
    check_message(reply(200, json={"type": "message", "content": []}), anthropic)
    with pytest.raises(NotYet):
        check_message(reply(503, json={}), anthropic)
    for bad in (reply(500, json={"error": "x"}), reply(200, text="x"), reply(200, json={"type": "error"}), reply(404)):
        with pytest.raises(NotReadyError, match="cannot answer a message"):
            check_message(bad, anthropic)


# -- the whole wait, against a socket that is really this process's and answers that respx gives


@pytest.fixture
def port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def keepers_end() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The launcher's socket and the keeper's, where the test is the keeper."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def held(tmp_path: Path, keepers_end: tuple[socket.socket, socket.socket]) -> Server:
    """A server under a keeper; its process is this one."""
    log = tmp_path / "log"
    log.write_text("first line\n")
    binding = Binding("0", "right", str(tmp_path), "id", str(log))
    return Server(binding, keepers_end[0], keeper_pid=0, pid=os.getpid())


class Clock:
    """A clock that moves only when it is looked at, so that no test sleeps through a stall."""

    def __init__(self, step_s: float) -> None:
        self.now, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now += self.step_s
        return self.now


def readiness(port: int, stall_s: float = 240.0) -> Readiness:
    return Readiness(Endpoint(f"{URL}:{port}", "right", "tiny"), stall_s=stall_s)


def by_key(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json=OURS) if request.headers["x-api-key"] == "right" else httpx.Response(401)


@respx.mock(assert_all_called=False)
def test_ready_after_loading(respx_mock: respx.MockRouter, port: int, held: Server) -> None:
    loading = [httpx.ConnectError("refused"), httpx.Response(503), by_key, by_key]
    respx_mock.get(f"{URL}:{port}/v1/models").mock(side_effect=lambda r: act(loading.pop(0), r))
    respx_mock.post(f"{URL}:{port}/v1/messages").respond(json={"type": "message", "content": []})
    seen: list[str] = []
    wait_until_ready(held, readiness(port), anthropic, on_wait=lambda now: seen.append(f"{now.phase}: {now.log_line}"))
    assert seen[:2] == ["starting: first line", "loading the model: first line"]


def act(step: object, request: httpx.Request) -> httpx.Response:
    if isinstance(step, Exception):
        raise step
    return step if isinstance(step, httpx.Response) else by_key(request)


@respx.mock
def test_a_crash_is_a_crash_at_once(
    respx_mock: respx.MockRouter, port: int, held: Server, keepers_end: tuple[socket.socket, socket.socket]
) -> None:
    respx_mock.get(f"{URL}:{port}/v1/models").mock(side_effect=httpx.ConnectError("refused"))
    held.log.write_text("loading\nstd::runtime_error: out of memory\nbye\n")
    threading.Timer(0.2, keepers_end[1].send, [b'{"server_exit": -6}\n']).start()
    with pytest.raises(ServerDiedError, match="SIGABRT") as caught:
        wait_until_ready(held, readiness(port), anthropic)
    assert caught.value.cause == ("std::runtime_error: out of memory", "bye")


@respx.mock
def test_a_server_that_does_nothing_is_given_up_on_after_the_stall_limit(
    respx_mock: respx.MockRouter, held: Server
) -> None:
    child = (
        "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()\n"
        "print(s.getsockname()[1], flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as idle:
        assert idle.stdout
        port = int(idle.stdout.readline())
        held.pid = idle.pid
        # it accepts and never answers
        respx_mock.get(f"{URL}:{port}/v1/models").mock(side_effect=httpx.ReadTimeout("slow"))
        with pytest.raises(NotReadyError, match="no sign of life for 240 s while starting"):
            wait_until_ready(held, readiness(port), anthropic, clock=Clock(step_s=30))
        idle.communicate(b"\n")


@respx.mock
def test_nobody_gets_the_key_before_the_socket_is_known(respx_mock: respx.MockRouter, port: int, held: Server) -> None:
    """Another program on the port, that of this test, is not even asked."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        held.pid = other.pid
        with pytest.raises(PortError, match="answered by another program"):
            wait_until_ready(held, readiness(port), anthropic)
        assert not respx_mock.calls
        other.communicate(b"\n")


@respx.mock
def test_a_slow_first_token_is_asked_for_once(respx_mock: respx.MockRouter, port: int, held: Server) -> None:
    def slowly(request: httpx.Request) -> httpx.Response:
        threading.Event().wait(0.5)
        return httpx.Response(200, json={"type": "message", "content": []})

    respx_mock.get(f"{URL}:{port}/v1/models").mock(side_effect=by_key)
    messages = respx_mock.post(f"{URL}:{port}/v1/messages").mock(side_effect=slowly)
    seen = []
    wait_until_ready(held, readiness(port), anthropic, on_wait=lambda now: seen.append(now.phase))
    assert messages.call_count == 1
    assert "waiting for the first token" in seen


@respx.mock
def test_a_message_that_hangs(respx_mock: respx.MockRouter, port: int, held: Server) -> None:
    respx_mock.get(f"{URL}:{port}/v1/models").mock(side_effect=by_key)
    for_ever = threading.Event()

    def never(request: httpx.Request) -> httpx.Response:
        for_ever.wait(20)
        return httpx.Response(500)

    respx_mock.post(f"{URL}:{port}/v1/messages").mock(side_effect=never)
    with pytest.raises(NotReadyError, match="no sign of life for 240 s while waiting for the first token"):
        wait_until_ready(held, readiness(port), anthropic, clock=Clock(step_s=100))
    for_ever.set()


def test_a_growing_log_or_a_busy_processor_is_a_sign_of_life(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("x")
    clock = Clock(step_s=10)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as idle:
        signs = SignsOfLife(idle.pid, log, clock)
        signs.idle_s()
        first = signs.idle_s()
        assert signs.idle_s() > first
        log.write_text("xy")
        assert signs.idle_s() == 10
        idle.communicate(b"\n")
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        signs = SignsOfLife(busy.pid, log, clock)
        for _ in range(3):
            threading.Event().wait(0.5)
            assert signs.idle_s() == 10
    finally:
        busy.kill()
        busy.wait()


def test_the_cause_is_found_in_front_of_the_epilogue(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("start\nerror: failed to load model\ncleaning up\ncleaned\ngoodbye\n")
    assert last_lines(log) == ("error: failed to load model", "goodbye")
    log.write_text("start\n\x1b[31mE cannot open x.gguf\x1b[0m\nfailed to load\nfailed to init, check params\n")
    assert last_lines(log) == ("[31mE cannot open x.gguf[0m", "failed to init, check params")
    log.write_text("a\nb\nc\nd\n")
    assert last_lines(log) == ("b", "c", "d")
    assert last_lines(tmp_path / "none") == ()
