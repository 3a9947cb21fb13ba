"""What an agent sends first, seen by running it: twice, in two empty folders, against a server of ours that answers
nothing. What differs between the two requests differs between sessions.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cclocal.agents import AGENTS, config_dir
from cclocal.agents.session import Capture, CaptureRun, Sends
from cclocal.command import Binding
from cclocal.errors import CclocalError
from cclocal.paths import Env, make_folder, read_rows, write_private
from cclocal.server.registry import clear_abandoned, own_folder
from cclocal.wires import WIRES, Wire

#: Seconds within which an agent sends its first request.
LIMIT_S = 20.0
#: Seconds after which an agent that sent nothing is tried again.
_AGAIN_S = 86400.0
#: Agents, versions and models that are remembered; the oldest go first.
_KEPT = 12
#: What replaces the folder names of the two runs, and the prompt they are given.
_MARKS = ("0", "Z")
Request = dict[str, Any]


def first_requests(agent: str, capture: Capture, env: Env, stop: threading.Event) -> list[Request]:
    """The first request of a session, from two folders; empty if the agent sent none. Remembered by what it depends on.

    `stop` ends it early; then nothing is remembered. Raises FolderError if nothing can be written.
    """
    path = env.folders.cache / "rehearsals.json"
    known = {about: row for about, row in read_rows(path).items() if "at_s" in row}
    row = known.get(capture.about)
    # an agent that sends nothing is not waited for at every start
    if row and (row["requests"] or time.time() - row["at_s"] < _AGAIN_S):
        return list(row["requests"])
    parent = env.folders.cache / "rehearsals"
    # of processes that were killed
    clear_abandoned(parent)
    root = make_folder(own_folder(parent))

    def one(name: str, mark: str) -> Request | None:
        with contextlib.suppress(OSError, CclocalError):
            return _first_request(agent, capture, root / name, mark, env, stop)
        return None

    try:
        with ThreadPoolExecutor() as pool:
            requests = [request for request in pool.map(one, ("a", "another"), _MARKS) if request]
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if stop.is_set():
        return []
    requests = requests if len(requests) == 2 else []
    kept = dict(list(known.items())[-_KEPT + 1 :])
    write_private(path, json.dumps({**kept, capture.about: {"at_s": time.time(), "requests": requests}}))
    return requests


def sends_of(requests: Sequence[Request], wire: Wire) -> Sends:
    """What the two requests of `first_requests` show of an agent's version."""
    (system, tools, messages), (other_system, other_tools, _) = (wire.parts(request) for request in requests)
    return Sends(
        tools=tuple(sorted(str(tool.get("name")) for tool in tools)),
        roles=tuple(str(message["role"]) for message in messages),
        has_late_system=wire.has_late_system(requests[0]),
        names_folder=(system, tools) != (other_system, other_tools),
        fixed_bytes=len(system.encode()),
    )


class Stub(ThreadingHTTPServer):
    """Takes the first message with tools, of which it keeps `keys`, and refuses it."""

    daemon_threads = True

    def __init__(self, keys: tuple[str, ...]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.keys = keys
        self.request: Request | None = None
        #: of the whole body, as it was sent
        self.size_bytes = 0
        self.heard = threading.Event()

    def __enter__(self) -> Stub:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """An agent that is ended cuts its connections, which is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        pass

    def do_GET(self) -> None:
        self._answer(200, b"")

    do_HEAD = do_GET  # noqa: N815 - its name there

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        with contextlib.suppress(ValueError):
            request = json.loads(data)
            if isinstance(request, dict) and request.get("tools") and self.server.request is None:
                self.server.request = {key: request[key] for key in self.server.keys if key in request}
                self.server.size_bytes = len(data)
                self.server.heard.set()
        # an error that no agent retries
        refusal = {"type": "error", "error": {"type": "invalid_request_error", "message": "enough"}}
        self._answer(400, json.dumps(refusal).encode())

    def _answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _first_request(
    agent: str, capture: Capture, place: Path, mark: str, env: Env, stop: threading.Event
) -> Request | None:
    """What one run sends, with a mark for its folder, so that two folder names have no common beginning."""
    project = place / "project"
    project.mkdir(parents=True)
    with Stub(WIRES[AGENTS[agent].WIRE].REQUEST_KEYS) as server:
        binding = Binding(str(server.server_port), "none", str(place), "none", "")
        run = AGENTS[agent].capture_run(capture, binding, mark)
        config_dir.prepare(run.config_dir)
        for name, content in run.files.items():
            write_private(place / name, content)
        with _running(run, capture.is_interactive, env, project) as child:
            deadline = time.monotonic() + LIMIT_S
            while time.monotonic() < deadline and not server.heard.wait(0.05):
                if child.poll() is not None or stop.is_set():
                    break
    text = json.dumps(server.request, ensure_ascii=False)
    for path in {str(place), os.path.realpath(place)}:
        text = text.replace(json.dumps(path, ensure_ascii=False)[1:-1], mark)
    request: Request | None = json.loads(text)
    return request


@contextlib.contextmanager
def _running(run: CaptureRun, is_interactive: bool, env: Env, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The agent, on a terminal of its own if it takes one over; ended afterwards."""
    ours, theirs = os.openpty() if is_interactive else (-1, subprocess.DEVNULL)
    with subprocess.Popen(
        list(run.command.argv),
        env=run.command.environ(env.environ),
        cwd=folder,
        stdin=subprocess.PIPE if run.stdin else theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as child:
        if is_interactive:
            os.close(theirs)
            # a terminal that is not read fills up, and the agent blocks
            threading.Thread(target=_drain, args=(ours,), daemon=True).start()
        try:
            if child.stdin:
                child.stdin.write(run.stdin.encode())
                child.stdin.flush()
            yield child
        finally:
            with contextlib.suppress(OSError):
                os.killpg(child.pid, signal.SIGKILL)


def _drain(terminal: int) -> None:
    with contextlib.suppress(OSError), os.fdopen(terminal, "rb", buffering=0) as screen:
        while screen.read(65536):
            pass
