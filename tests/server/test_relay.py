"""The relay between agent and server: whom it answers, what it passes, and what it does when the server goes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cclocal.server import relay as program
from cclocal.server.start import listen
from tests.world import alive, wait_for

KEY, SERVER_KEY = "the-session's", "the-server's"
CHUNKS = (b"event: a\n\n", b"data: " + b"x" * 100_000 + b"\n\n", b"event: end\n\n")


class Engine:
    """A model server that a test scripts: a process of its own would be the relay's peer, so this one says it is."""

    def __init__(self, path: str) -> None:
        self.path, self.heard, self.do = path, [], "answer"  # type: ignore[var-annotated]
        self.begun, self.hung_up = threading.Event(), threading.Event()
        engine = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def address_string(self) -> str:
                return "unix"

            def do_GET(self) -> None:
                self.reply(200, b"{}")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                engine.heard.append((self.path, dict(self.headers), body))
                engine.begun.set()
                getattr(self, engine.do)()

            def reply(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def answer(self) -> None:
                self.reply(200, b'{"ok": true}')

            def stream(self) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for chunk in CHUNKS:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                self.wfile.write(b"0\r\n\r\n")

            def flood(self) -> None:
                self.reply(200, b"x" * 20_000_000)

            def drop(self) -> None:
                self.close_connection = True

            def head_only(self) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.end_headers()
                self.close_connection = True

            def part(self) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.end_headers()
                self.wfile.write(b"event: message_start\n\n")
                self.close_connection = True

            def wait(self) -> None:
                while self.connection.recv(1, socket.MSG_PEEK):
                    pass
                engine.hung_up.set()
                self.close_connection = True

            def refuse(self) -> None:
                text = "request (900 tokens) exceeds the available context size (512 tokens), try increasing it"
                self.reply(400, json.dumps({"error": {"message": text}}).encode())

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_UNIX
            daemon_threads = True

            def server_bind(self) -> None:
                self.socket.bind(engine.path)
                self.server_name, self.server_port = "unix", 0

            def get_request(self) -> tuple[Any, Any]:
                return self.socket.accept()[0], ("unix", 0)

        self.server = Server(("", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        Path(self.path).unlink()


class Relay:
    """The real relay, started as the keeper does."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.listener = listen(None)
        self.port = self.listener.getsockname()[1]
        self.ours, theirs = socket.socketpair()
        argv = [sys.executable, "-I", "-S", program.__file__, str(self.listener.fileno()), str(theirs.fileno())]
        self.process = subprocess.Popen(argv, pass_fds=(self.listener.fileno(), theirs.fileno()))
        theirs.close()
        url = f"unix:{folder}/s.sock"
        fields = [f"Authorization: Bearer {SERVER_KEY}"]
        too_long = {"pattern": r"\((?P<tokens>\d+) tokens\) exceeds.*?\((?P<window>\d+) tokens\)", "kind": "bad"}
        too_long |= {"becomes": "400 Bad Request", "message": r"prompt is too long: \g<tokens> > \g<window>"}
        too_long |= {"path": "/v1/messages"}
        given = {"session": "none", "key": KEY, "url": url, "is_ours": True, "fields": fields, "health": "/health"}
        self.tell(**given, refusals=[too_long], **options)
        # a message that never comes fails its test
        self.ours.settimeout(30)
        self.lines = self.ours.makefile()

    def tell(self, **message: Any) -> None:
        self.ours.sendall(json.dumps(message).encode() + b"\n")

    def serve(self, *, again: bool = False) -> None:
        """Say that this process, in whose session it is, is the server now; return when the relay has asked it."""
        self.tell(server=os.getsid(0), start="", again=again)
        assert "up" in json.loads(self.lines.readline())

    def status(self) -> dict[str, Any]:
        self.tell(status=True)
        return dict(json.loads(self.lines.readline()))

    def client(self, **headers: str) -> httpx.Client:
        given = {"x-api-key": KEY, **headers}
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=given, trust_env=False, timeout=20)

    def post(self, body: bytes = b"{}", **headers: str) -> httpx.Response:
        with self.client(**headers) as client:
            return client.post("/v1/messages", content=body)

    def end(self) -> None:
        self.ours.close()
        self.lines.close()
        self.process.wait(10)
        self.listener.close()


@pytest.fixture(autouse=True, scope="module")
def session() -> None:
    """Give this process a session if it has none: the relay recognizes a server by its session's id (getsid).

    The id is 0 in a container whose first process does not lead a session.
    """
    if not os.getsid(0):
        os.setsid()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Callable[[], Engine]]:
    engines: list[Engine] = []

    def start() -> Engine:
        engines.append(Engine(f"{tmp_path}/s.sock"))
        return engines[-1]

    yield start
    if (tmp_path / "s.sock").exists():
        engines[-1].stop()


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    relay = Relay(tmp_path)
    yield relay
    relay.end()


def in_background(do: Callable[[], Any]) -> Callable[[], Any]:
    """Start something; the answer waits for it."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(do())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(20)
        return results[0]

    return result


def test_a_client_that_asks_for_it_sees_the_connection_closed(relay: Relay, engine: Callable[[], Engine]) -> None:
    """Another relay does: it reads an answer to the end of the connection."""
    engine()
    relay.serve()
    with socket.create_connection(("127.0.0.1", relay.port), timeout=20) as client:
        head = f"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nx-api-key: {KEY}\r\nContent-Length: 2\r\n"
        client.sendall(f"{head}Connection: close\r\n\r\n{{}}".encode())
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200")


def test_only_the_key_the_host_and_the_connection_are_changed(relay: Relay, engine: Callable[[], Engine]) -> None:
    there = engine()
    relay.serve()
    body = os.urandom(200_000)
    reply = relay.post(body, **{"anthropic-version": "2023-06-01", "X-Odd": "a: b"})
    assert (reply.status_code, reply.json()) == (200, {"ok": True})
    path, headers, heard = there.heard[0]
    assert (path, heard) == ("/v1/messages", body)
    assert headers["Authorization"] == f"Bearer {SERVER_KEY}"
    assert headers["X-Odd"] == "a: b"
    assert headers["anthropic-version"] == "2023-06-01"
    assert KEY not in str(headers)
    assert headers["Host"] == "127.0.0.1"


def test_a_stream_passes_unchanged(relay: Relay, engine: Callable[[], Engine]) -> None:
    engine().do = "stream"
    relay.serve()
    assert relay.post().content == b"".join(CHUNKS)


def test_one_connection_takes_many_requests(relay: Relay, engine: Callable[[], Engine]) -> None:
    there = engine()
    relay.serve()
    with relay.client() as client:
        assert [client.post("/v1/messages", content=str(n)).status_code for n in range(20)] == [200] * 20
    assert [body for _, _, body in there.heard] == [str(n).encode() for n in range(20)]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": "wrong"}, 401),
        ({"x-api-key": SERVER_KEY}, 401),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"origin": "http://127.0.0.1"}, 403),
        ({"content-length": str(1 << 40)}, 413),
        ({"transfer-encoding": "chunked"}, 411),
    ],
)
def test_what_is_refused_never_reaches_the_server(
    relay: Relay, engine: Callable[[], Engine], headers: dict[str, str], status: int
) -> None:
    there = engine()
    relay.serve()
    lines = {"host": "127.0.0.1", "x-api-key": KEY, "content-length": "2", **headers}
    with socket.create_connection(("127.0.0.1", relay.port)) as connection:
        connection.sendall(b"POST /v1/messages HTTP/1.1\r\n")
        connection.sendall("".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode() + b"\r\n{}")
        assert connection.makefile("rb").readline().split()[1] == str(status).encode()
    assert there.heard == []


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9"])
def test_both_names_of_this_machine_are_answered(relay: Relay, engine: Callable[[], Engine], host: str) -> None:
    engine()
    relay.serve()
    assert relay.post(host=host).status_code == 200


@pytest.mark.parametrize("how", ["drop", "head_only"])
def test_a_request_is_sent_again_to_the_next_server(relay: Relay, engine: Callable[[], Engine], how: str) -> None:
    first = engine()
    relay.serve()
    first.do = how
    reply = in_background(lambda: relay.post(b"the prompt"))
    first.begun.wait(10)
    first.stop()
    relay.tell(down=True)
    second = engine()
    relay.tell(restore=[["POST", "/slots/0?action=restore", "kept"]])
    relay.serve(again=True)
    assert reply().status_code == 200
    assert [(path, body) for path, _, body in second.heard] == [
        ("/slots/0?action=restore", b"kept"),
        ("/v1/messages", b"the prompt"),
    ]
    assert relay.status()["sent_again"] == 1


def test_an_answer_that_has_begun_is_cut_and_not_sent_again(relay: Relay, engine: Callable[[], Engine]) -> None:
    there = engine()
    relay.serve()
    there.do = "part"
    with relay.client() as client, client.stream("POST", "/v1/messages", content=b"{}") as reply:
        assert b"".join(reply.iter_raw()) == b"event: message_start\n\n"
    assert len(there.heard) == 1


def test_a_request_that_comes_while_there_is_no_server_waits(relay: Relay, engine: Callable[[], Engine]) -> None:
    engine()
    relay.serve()
    relay.tell(down=True)
    reply = in_background(relay.post)
    wait_for(lambda: relay.status()["in_flight"] == 1, "the request")
    time.sleep(0.3)
    relay.serve(again=True)
    assert reply().status_code == 200


def test_requests_are_held_back_when_told(relay: Relay, engine: Callable[[], Engine]) -> None:
    there = engine()
    relay.serve()
    relay.tell(hold=True)
    reply = in_background(relay.post)
    wait_for(lambda: relay.status()["in_flight"] == 1, "the request")
    time.sleep(0.3)
    assert there.heard == []
    relay.tell(hold=False)
    assert reply().status_code == 200


def test_a_server_that_will_not_come_back_is_told_once(relay: Relay, engine: Callable[[], Engine]) -> None:
    """With a status after which no agent tries again."""
    engine()
    relay.serve()
    relay.tell(down=True)
    relay.tell(gone="The model server stopped (SIGKILL).")
    reply = relay.post()
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == "The model server stopped (SIGKILL)."


def test_a_server_that_closes_without_a_word_is_asked_twice(relay: Relay, engine: Callable[[], Engine]) -> None:
    there = engine()
    relay.serve()
    there.do = "drop"
    assert relay.post().status_code == 502
    assert len(there.heard) == 2


def test_the_server_stops_computing_when_the_agent_hangs_up(relay: Relay, engine: Callable[[], Engine]) -> None:
    there = engine()
    relay.serve()
    there.do = "wait"
    with relay.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/messages", content=b"{}", timeout=0.5)
    assert there.hung_up.wait(5)
    wait_for(lambda: relay.status()["in_flight"] == 0, "the end")


def test_an_agent_that_was_stopped_does_not_make_the_server_look_dead(
    relay: Relay, engine: Callable[[], Engine]
) -> None:
    """Ctrl-Z for an hour: nothing is read, so nothing can come, and that is not the server's silence."""
    there = engine()
    relay.serve()
    there.do = "flood"
    head = f"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nx-api-key: {KEY}\r\nContent-Length: 2\r\n\r\n{{}}"
    with socket.create_connection(("127.0.0.1", relay.port)) as client:
        client.sendall(head.encode())
        assert there.begun.wait(5)
        time.sleep(1.5)
        stopped = relay.status()
        assert stopped["in_flight"] == 1
        assert stopped["silent_s"] == 0
        received = 0
        while received < 20_000_000:
            received += len(client.recv(1 << 20))
    wait_for(lambda: relay.status()["in_flight"] == 0, "the end")


def test_an_error_is_put_into_the_agents_words(relay: Relay, engine: Callable[[], Engine]) -> None:
    engine().do = "refuse"
    relay.serve()
    reply = relay.post()
    assert reply.status_code == 400
    assert reply.json()["error"]["message"] == "prompt is too long: 900 > 512"


def test_another_process_on_the_socket_gets_nothing(relay: Relay, engine: Callable[[], Engine]) -> None:
    """No byte of the prompt and no key, whoever answers there."""
    there = engine()
    # some other process is the server
    relay.tell(server=1, start="", again=False)
    reply = in_background(lambda: relay.post(b"a secret"))
    time.sleep(1.0)
    assert there.heard == []
    relay.tell(gone="no")
    assert reply().status_code == 400


def test_its_memory_stays_small(relay: Relay, engine: Callable[[], Engine]) -> None:
    """After 100 prompts of 2 MB: the bodies are not kept."""
    engine()
    relay.serve()
    body = b"x" * 2_000_000
    with relay.client() as client:
        for _ in range(100):
            client.post("/v1/messages", content=body)
    assert psutil.Process(relay.process.pid).memory_full_info().uss < 12e6


@pytest.mark.parametrize("ignores", [False, True])
def test_it_ends_the_server_when_its_keeper_is_gone(tmp_path: Path, ignores: bool) -> None:
    """Where the kernel does not (macOS), and the twin was killed too, the relay is the guard that is left."""
    from cclocal.server.process import start_of

    trap = "import signal; signal.signal(15, signal.SIG_IGN); " if ignores else ""
    server = subprocess.Popen([sys.executable, "-c", f"{trap}import time; time.sleep(900)"], start_new_session=True)
    time.sleep(0.3)
    relay = Relay(tmp_path)
    relay.tell(server=server.pid, start=start_of(server.pid), again=False)
    time.sleep(0.3)
    threading.Thread(target=server.wait, daemon=True).start()
    relay.end()
    wait_for(lambda: not alive(server.pid), "the server's end")
