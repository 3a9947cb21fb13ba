"""The program that has a prompt read in the background: it lets go at once, asks once, and goes with the server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psutil
import pytest

from cclocal.prompt_cache import prefill as primer
from tests.world import wait_for


class Slow(ThreadingHTTPServer):
    """Takes requests, and answers when it is told to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, Any]] = []
        self.answer = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Slow

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append((self.path, self.headers["authorization"], body))
        self.server.answer.wait(30)
        self.send_response(200)
        self.end_headers()


@pytest.fixture
def server() -> Iterator[Slow]:
    slow = Slow()
    threading.Thread(target=slow.serve_forever, daemon=True).start()
    yield slow
    slow.answer.set()
    slow.shutdown()
    slow.server_close()


def primers(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get("MARK") == mark and process.pid != os.getpid():
            found.append(process)
    return found


def start(url: str, mark: str, pid: int) -> float:
    began = time.monotonic()
    table = json.dumps(
        {"url": url, "key": "secret", "path": "/completion", "body": {"prompt": [1, 2, 3]}, "agent": pid}
    )
    env = {"MARK": mark, "PATH": os.environ["PATH"], "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}
    command = [sys.executable, "-I", "-S", primer.__file__]
    subprocess.run(command, input=table.encode(), env=env, check=True, timeout=30)
    return time.monotonic() - began


def test_it_lets_go_at_once_and_asks_once(server: Slow) -> None:
    mark = f"primer-{os.getpid()}-{server.server_port}"
    assert start(f"http://127.0.0.1:{server.server_port}", mark, os.getpid()) < 10
    wait_for(lambda: server.asked, "the request")
    assert len(primers(mark)) == 1
    # the key is nobody else's to read
    assert "secret" not in " ".join(primers(mark)[0].cmdline())
    server.answer.set()
    wait_for(lambda: not primers(mark), "its end")
    assert server.asked == [("/completion", "Bearer secret", {"prompt": [1, 2, 3]})]


def test_it_goes_when_there_is_no_server() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mark = f"primer-{os.getpid()}-{port}"
    start(f"http://127.0.0.1:{port}", mark, os.getpid())
    wait_for(lambda: not primers(mark), "its end")


def test_it_goes_with_the_agent_where_the_server_stays(server: Slow) -> None:
    mark = f"primer-agent-{os.getpid()}-{server.server_port}"
    agent = subprocess.Popen(["sleep", "60"])
    start(f"http://127.0.0.1:{server.server_port}", mark, agent.pid)
    wait_for(lambda: server.asked, "the request")
    assert primers(mark)
    agent.kill()
    agent.wait()
    wait_for(lambda: not primers(mark), "its end")
