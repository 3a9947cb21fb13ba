"""What an agent sends first, found out by letting it: it is started in an empty folder against a server of ours that
answers nothing, twice, in two folders, so that what differs between sessions shows.
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
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cclocal.agents import Home, Rehearsal
from cclocal.agents import config_dir as homes
from cclocal.command import KEY, PORT, REHEARSAL, SESSION, WORDS, bind
from cclocal.errors import CclocalError
from cclocal.paths import Folders, make_folder, read_table, write_private
from cclocal.server.registry import clear_abandoned, own_folder

#: An agent that has sent nothing by then will not.
_LIMIT_S = 20.0
#: One that sent nothing is tried again after so long.
_AGAIN_S = 86400.0
#: So many agents, versions and models are remembered.
_KEPT = 12
#: What stands for the folders of the two rehearsals, and what is said in them.
_MARKS = ("0", "Z")
Request = dict[str, Any]


def system_text(request: Request) -> str:
    """A request's system prompt as engines take it: its blocks without anything between them."""
    system = request.get("system") or ""
    if isinstance(system, str):
        return system
    return "".join(block.get("text", "") for block in system if block.get("type") == "text")


def first_requests(
    rehearsal: Rehearsal, folders: Folders, environ: Mapping[str, str], stop: threading.Event
) -> list[Request]:
    """The first request of a session, from two folders; what was found out once is remembered. Empty if it was not.

    `stop` ends it early. Raises FolderError if nothing can be written.
    """
    path = folders.cache / "rehearsals.json"
    known = {about: row for about, row in read_table(path).items() if isinstance(row, dict) and "at_s" in row}
    row = known.get(rehearsal.about)
    # an agent that sends nothing is not waited for at every start
    if row and (row["requests"] or time.time() - row["at_s"] < _AGAIN_S):
        return list(row["requests"])
    with _place(folders) as root:
        places = [Path(root, "a"), Path(root, "another")]
        found: list[Request | None] = [None, None]

        def one(at: int) -> None:
            with contextlib.suppress(OSError, CclocalError):
                request = _first_request(rehearsal, places[at], _MARKS[at], environ, stop)
                found[at] = request and _elsewhere(request, places[at], _MARKS[at])

        threads = [threading.Thread(target=one, args=(at,)) for at in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if stop.is_set():
        return []
    requests = [request for request in found if request]
    requests = requests if len(requests) == 2 else []
    kept = dict(list(known.items())[-_KEPT + 1 :])
    write_private(path, json.dumps({**kept, rehearsal.about: {"at_s": time.time(), "requests": requests}}))
    return requests


def _elsewhere(request: Request, place: Path, mark: str) -> Request:
    """The request with another word for its folder: no two have a beginning in common, as "/home" and "/tmp" have."""
    text = json.dumps(request, ensure_ascii=False)
    for path in {str(place), os.path.realpath(place)}:
        text = text.replace(json.dumps(path, ensure_ascii=False)[1:-1], mark)
    return dict(json.loads(text))


@contextlib.contextmanager
def _place(folders: Folders) -> Iterator[Path]:
    """A folder for this process's rehearsals; those of processes that were killed go with the next."""
    rehearsals = folders.cache / "rehearsals"
    clear_abandoned(rehearsals)
    root = make_folder(own_folder(rehearsals))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


class _Stub(ThreadingHTTPServer):
    """Takes the first message with tools, and refuses it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.request: Request | None = None
        #: of the whole body, as it was sent
        self.size_bytes = 0
        self.heard = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """An agent that is ended cuts its connections: nothing to tell anybody."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Stub

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        pass

    def do_HEAD(self) -> None:
        self._answer(200, b"")

    def do_GET(self) -> None:
        self._answer(200, b"")

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        with contextlib.suppress(ValueError):
            request = json.loads(data)
            if isinstance(request, dict) and request.get("tools") and self.server.request is None:
                self.server.request = {key: request[key] for key in ("system", "tools", "messages") if key in request}
                self.server.size_bytes = len(data)
                self.server.heard.set()
        # one that no agent repeats
        refusal = {"type": "error", "error": {"type": "invalid_request_error", "message": "enough"}}
        self._answer(400, json.dumps(refusal).encode())

    def _answer(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _first_request(
    rehearsal: Rehearsal, place: Path, words: str, environ: Mapping[str, str], stop: threading.Event
) -> Request | None:
    project = place / "project"
    project.mkdir(parents=True)
    with stub() as server:
        values = {
            PORT: str(server.server_port),
            KEY: "none",
            SESSION: str(place),
            REHEARSAL: str(place),
            WORDS: words,
        }
        home = rehearsal.home
        seed = json.loads(bind(json.dumps({name: dict(table) for name, table in home.seed.items()}), values))
        homes.prepare(Home(Path(bind(str(home.path), values)), seed))
        for file in rehearsal.files:
            write_private(place / file.name, bind(file.content, values))
        command = rehearsal.command.bind(values)
        with _running(rehearsal, values, list(command.argv), command.environ(environ), project) as child:
            _wait(server, child, stop)
        return server.request


def _wait(server: _Stub, child: subprocess.Popen[bytes], stop: threading.Event) -> None:
    """Until the request is there, or nothing will come any more."""
    deadline = time.monotonic() + _LIMIT_S
    while time.monotonic() < deadline and not server.heard.wait(0.05):
        if child.poll() is not None or stop.is_set():
            return


@contextlib.contextmanager
def stub() -> Iterator[_Stub]:
    """A server that takes the first message with tools, and refuses it."""
    server = _Stub()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def _running(
    rehearsal: Rehearsal, values: Mapping[str, str], argv: list[str], env: dict[str, str], folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """The agent, on a terminal of its own if it draws; gone afterwards."""
    ours, theirs = os.openpty() if rehearsal.draws else (-1, subprocess.DEVNULL)
    reads = subprocess.PIPE if rehearsal.said else theirs
    child = subprocess.Popen(
        argv, env=env, cwd=folder, stdin=reads, stdout=theirs, stderr=theirs, start_new_session=True
    )
    if rehearsal.draws:
        os.close(theirs)
        # what nobody reads fills up, and the agent waits
        threading.Thread(target=_drain, args=(ours,), daemon=True).start()
    try:
        if child.stdin:
            child.stdin.write(bind(rehearsal.said, values).encode())
            child.stdin.flush()
        yield child
    finally:
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if child.stdin:
            child.stdin.close()


def _drain(terminal: int) -> None:
    with contextlib.suppress(OSError), os.fdopen(terminal, "rb", buffering=0) as screen:
        while screen.read(65536):
            pass
