"""A check's requests end: each has a limit, which follows from the speed of the replies before."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from cclocal import http
from cclocal.agents import AGENTS
from cclocal.checks.conversation import Server, TooSlowError
from cclocal.wires import WIRES

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


@pytest.mark.parametrize(("begins", "words"), [(False, "no reply in 1 s"), (True, "no whole reply in 1 s")])
def test_a_reply_that_does_not_end_is_given_up(begins: bool, words: str) -> None:
    """Either nothing comes, or a stream that goes on and on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            client, _ = listener.accept()
            with client, contextlib.suppress(OSError):
                client.sendall(HEAD if begins else b"")
                for _ in range(30):
                    time.sleep(0.1)
                    client.sendall(b"data: {}\n\n" if begins else b"")

        threading.Thread(target=talk, daemon=True).start()
        with http.client(f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            calls = AGENTS["claude"].CALLS
            server = Server(client, WIRES["anthropic"], calls, "model", "Claude Code", 4096, first_limit_s=1.0)
            with pytest.raises(TooSlowError, match=words):
                server.ask(server.create("a.txt", "a"), stream=begins)
