"""Holds a derived model in an Ollama that runs already, and removes it at the end. A separate program:

    lease.py RECORD URL NAME

The keeper starts and ends it in place of a server. The record is written and locked before the model is made: a process
that holds its lock uses the model, and the next start removes a model whose record is not locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

#: Printed once the record is locked, so that the model may be made.
HOLDING = "holding"
#: Seconds between two looks at the daemon, and how many looks may fail.
_LOOK_S, _MISSED = 2.0, 3
#: The keeper waits five seconds for the end, which takes two requests.
_ANSWER_LIMIT_S = 2.0
_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main() -> None:
    """Hold the model until TERM or INT, or until the daemon is gone."""
    record, url, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    for number in _ENDS:
        signal.signal(number, _end)
    with _held(record, {"url": url, "name": name}) as file:
        try:
            print(HOLDING, name, "at", url, flush=True)
            missed = 0
            while missed < _MISSED:
                time.sleep(_LOOK_S)
                missed = 0 if ask(url, "GET", "/api/version")[0] == 200 else missed + 1
        finally:
            _ignore_signals()
            remove(record, file, url, name)
    print(f"error: the Ollama at {url} no longer answers", flush=True)
    sys.exit(1)


def _end(number: int, frame: object) -> None:
    # a second signal must not interrupt the removal
    _ignore_signals()
    sys.exit(0)


def _ignore_signals() -> None:
    for number in _ENDS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _held(record: Path, content: dict[str, str]) -> Iterator[IO[str]]:
    """The record, written and locked; other sessions that use the same model lock it too."""
    record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    while True:
        part = record.with_name(f".{record.name}.{os.getpid()}")
        part.write_text(json.dumps(content), encoding="utf-8")
        # the first record stays; all have the same content
        with contextlib.suppress(FileExistsError):
            os.link(part, record)
        part.unlink()
        with contextlib.suppress(FileNotFoundError), record.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            if _is_still(record, file):
                yield file
                return


def _is_still(record: Path, file: IO[str]) -> bool:
    """Whether an open file still has that name: the last user removes it."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(file.fileno()), record.stat())
    return False


def remove(record: Path, file: IO[str], url: str, name: str) -> None:
    """Remove the model from its daemon, and then the record, unless another session uses it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    if not _is_still(record, file):
        return
    loaded = ask(url, "GET", "/api/ps")[1].get("models")
    if isinstance(loaded, list) and any(isinstance(row, dict) and is_named(row, name) for row in loaded):
        # a runner listed under another name is used by others too
        ask(url, "POST", "/api/generate", {"model": name, "keep_alive": 0})
    if ask(url, "DELETE", "/api/delete", {"model": name})[0] in (200, 404):
        record.unlink(missing_ok=True)


def is_named(row: dict[str, Any], name: str) -> bool:
    """Whether a row of Ollama's lists is that model: every name has its tag there."""
    return row.get("name") in (name, f"{name}:latest")


def ask(url: str, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
    """The status and the table that a request was answered with; 0 if there was no answer."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=_ANSWER_LIMIT_S)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"content-type": "application/json"})
        reply = connection.getresponse()
        text = reply.read()
    except (OSError, http.client.HTTPException):
        return 0, {}
    finally:
        connection.close()
    content = None
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(text)
    return reply.status, content if isinstance(content, dict) else {}


if __name__ == "__main__":
    main()
