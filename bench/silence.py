"""A prompt that takes longer than five minutes: python bench/silence.py [--silent-s 330] CLAUDE… [CODEX…]

A scripted server says nothing for so long, either before its headers or after the message's beginning, to each Claude
Code named, with the limits that cclocal sets, with none, and with each of the three left out; and to each Codex, with
cclocal's limit and without. Printed for each: how often the prompt was sent, and whether the answer arrived in the end.
Everything waits at the same time, so it takes a little over twice the silence, and hardly any processor. (The last two
limits of Claude Code cannot be shortened: it takes anything below 300 s for 300 s. tests/agents/test_timeouts.py
shortens the first.)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from cclocal.agents.claude.command import environment
from cclocal.agents.codex.command import Context, command
from cclocal.agents.session import AgentSession
from cclocal.command import Binding, Endpoint
from cclocal.facts import AgentFound

LIMITS = ("API_TIMEOUT_MS", "CLAUDE_STREAM_IDLE_TIMEOUT_MS", "API_FORCE_IDLE_TIMEOUT")
#: By where the server is silent.
PLACES = ("before the headers", "after the headers")


class Silent(ThreadingHTTPServer):
    """Answers every message after a silence."""

    daemon_threads = True

    def __init__(self, silent_s: float, place: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.silent_s, self.place = silent_s, place
        self.streams = self.others = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """An agent that gave up cut its connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Silent

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        pass

    def do_HEAD(self) -> None:
        self._json({})

    def do_GET(self) -> None:
        self._json({})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)))
        if self.path.endswith("/responses"):
            self._respond()
            return
        message = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 9, "output_tokens": 1},
        }
        if not body.get("stream"):
            self.server.others += 1
            time.sleep(self.server.silent_s)
            self._json({**message, "content": [{"type": "text", "text": "There."}], "stop_reason": "end_turn"})
            return
        self.server.streams += 1
        if self.server.place == PLACES[0]:
            time.sleep(self.server.silent_s)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        self._event({"type": "message_start", "message": message})
        if self.server.place == PLACES[1]:
            time.sleep(self.server.silent_s)
        self._event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
        self._event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "There."}})
        self._event({"type": "content_block_stop", "index": 0})
        self._event(
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": {"output_tokens": 2},
            }
        )
        self._event({"type": "message_stop"})

    def _respond(self) -> None:
        """The same over the API that Codex speaks."""
        self.server.streams += 1
        response = {"id": "resp_1", "object": "response", "status": "in_progress", "output": []}
        content = [{"type": "output_text", "text": "There.", "annotations": []}]
        item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": content}
        usage = {"input_tokens": 9, "output_tokens": 2, "total_tokens": 11}
        if self.server.place == PLACES[0]:
            time.sleep(self.server.silent_s)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        self._event({"type": "response.created", "response": response})
        if self.server.place == PLACES[1]:
            time.sleep(self.server.silent_s)
        self._event({"type": "response.output_item.done", "output_index": 0, "item": item})
        done = {**response, "status": "completed", "output": [item], "usage": usage}
        self._event({"type": "response.completed", "response": done})

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command == "POST":
            self.wfile.write(data)


def ask(claude: Path, left_out: tuple[str, ...], place: str, silent_s: float, **limits: str) -> tuple[int, int, bool]:
    """(streams asked for, whole replies asked for, whether the answer came) of one question in print mode."""
    server = Silent(silent_s, place)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}", "none", "model")
    env = {**environment(endpoint, 65536, 8192), **limits}
    with tempfile.TemporaryDirectory() as home:
        kept = {name: value for name, value in env.items() if name not in left_out}
        places = {"HOME": home, "CLAUDE_CONFIG_DIR": home, "PATH": os.defpath, "CLAUDE_CODE_MAX_RETRIES": "2"}
        argv = [str(claude), "-p", "Hello", "--setting-sources", "user", "--strict-mcp-config"]
        return waited_for(argv, {**kept, **places}, Path(home), server)


def ask_codex(codex: Path, limit: bool, place: str, silent_s: float) -> tuple[int, int, bool]:
    """The same of one question to `codex exec`, with cclocal's limit or with Codex's own."""
    server = Silent(silent_s, place)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    with tempfile.TemporaryDirectory() as home:
        project, folder = Path(home, "project"), Path(home, "codex")
        for path in (project, folder, folder / "tmp"):
            path.mkdir()
        binding = Binding(str(server.server_port), "none", home, "none", "")
        session = AgentSession(
            AgentFound(codex, "0", Context()), 65536, 8192, project, folder, arguments=("exec", "Hello")
        )
        made, files = command(session, Endpoint.of_relay(binding, "model"), binding)
        for name, text in files.items():
            Path(home, name).write_text(text)
        argv = [word if limit else re.sub(r',"stream_idle_timeout_ms"=\d+', "", word) for word in made.argv]
        return waited_for(argv, {**made.env, "HOME": home, "PATH": os.defpath}, project, server)


def waited_for(argv: list[str], env: dict[str, str], folder: Path, server: Silent) -> tuple[int, int, bool]:
    """Run an agent to its end, or until it must have given up: (streams, whole replies, whether the answer came)."""
    child = subprocess.Popen(
        argv,
        env=env,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = child.communicate(timeout=2 * server.silent_s + 20)
    except subprocess.TimeoutExpired:
        # it asks again and again
        said = ""
    finally:
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        server.shutdown()
        server.server_close()
    return server.streams, server.others, "There." in said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--silent-s", type=float, default=330.0)
    parser.add_argument("agents", nargs="+", type=Path)
    options = parser.parse_args()
    cases = [("all three set", ()), ("none set", LIMITS), *((f"without {name}", (name,)) for name in LIMITS)]
    rows: list[tuple[Path, str, str, Callable[[Path, str], tuple[int, int, bool]]]] = []
    for agent in options.agents:
        for place in PLACES:
            if agent.name.startswith("codex"):
                for words, limit in (("set", True), ("Codex's own", False)):
                    rows.append((agent, place, words, partial(_codex, limit, options.silent_s)))
            else:
                rows += [(agent, place, words, partial(_claude, left, options.silent_s)) for words, left in cases]
    with ThreadPoolExecutor(len(rows)) as pool:
        asked = list(pool.map(lambda row: row[3](row[0], row[1]), rows))
    print(f"| {options.silent_s:.0f} s silent | limits | sent as a stream | sent whole | answered |")
    print("|---|---|---:|---:|---|")
    for (agent, place, words, _), (streams, others, there) in zip(rows, asked, strict=True):
        said = subprocess.run([agent, "--version"], capture_output=True, text=True, check=True).stdout
        version = said.removesuffix(" (Claude Code)\n").strip()
        print(f"| {place}, {version} | {words} | {streams} | {others} | {'yes' if there else 'no'} |")


def _claude(left_out: tuple[str, ...], silent_s: float, claude: Path, place: str) -> tuple[int, int, bool]:
    return ask(claude, left_out, place, silent_s)


def _codex(limit: bool, silent_s: float, codex: Path, place: str) -> tuple[int, int, bool]:
    return ask_codex(codex, limit, place, silent_s)


if __name__ == "__main__":
    main()
