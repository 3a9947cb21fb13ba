"""Hold a derived model in an Ollama that runs already, and take it away at the end. A program of its own.

    borrowed.py RECORD URL NAME

It stands where a server of our own would: the keeper starts and ends it. The record is there and locked before the
model is: whoever holds its lock is using the model, and what nobody holds is taken away at the next start.
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

#: What it says once the model may be made.
HOLDING = "holding"
#: How often it is looked whether the daemon is still there, and how many times it may be missed.
_LOOK_S, _MISSED = 2.0, 3
#: The keeper is patient for five seconds, and two requests end it.
_ANSWER_LIMIT_S = 2.0
_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _EndedError(Exception):
    """The keeper says that the session is over."""


def main() -> None:
    """Hold the model until TERM or INT, or until the daemon is gone."""
    record, url, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    for number in _ENDS:
        signal.signal(number, _end)
    try:
        with _held(record, {"url": url, "name": name}) as file:
            try:
                print(HOLDING, name, "at", url, flush=True)
                _watch(url)
            finally:
                _ignore_signals()
                take_away(record, file, url, name)
    except _EndedError:
        sys.exit(0)
    print(f"error: the Ollama at {url} has gone", flush=True)
    sys.exit(1)


def _end(number: int, frame: object) -> None:
    # a second one must not cut short what the first has begun
    _ignore_signals()
    raise _EndedError


def _ignore_signals() -> None:
    for number in _ENDS:
        signal.signal(number, signal.SIG_IGN)


def _watch(url: str) -> None:
    missed = 0
    while missed < _MISSED:
        time.sleep(_LOOK_S)
        missed = 0 if ask(url, "GET", "/api/version")[0] == 200 else missed + 1


@contextlib.contextmanager
def _held(record: Path, told: dict[str, str]) -> Iterator[IO[str]]:
    """The record, written and locked together with other sessions that use the same model."""
    record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    while True:
        part = record.with_name(f".{record.name}.{os.getpid()}")
        part.write_text(json.dumps(told), encoding="utf-8")
        # the first one's stays; all say the same
        with contextlib.suppress(FileExistsError):
            os.link(part, record)
        part.unlink()
        with contextlib.suppress(FileNotFoundError), record.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            if _is_still(record, file):
                yield file
                return


def _is_still(record: Path, file: IO[str]) -> bool:
    """Whether an open file is the one that has that name: the last user removes it."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(file.fileno()), record.stat())
    return False


def take_away(record: Path, file: IO[str], url: str, name: str) -> bool:
    """Remove the model from its daemon unless another session uses it. Whether it is gone."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    if not _is_still(record, file):
        return False
    loaded = ask(url, "GET", "/api/ps")[1].get("models")
    if isinstance(loaded, list) and any(isinstance(row, dict) and is_named(row, name) for row in loaded):
        # a runner that is listed under another name is somebody else's too
        ask(url, "POST", "/api/generate", {"model": name, "keep_alive": 0})
    gone = ask(url, "DELETE", "/api/delete", {"model": name})[0] in (200, 404)
    if gone:
        record.unlink(missing_ok=True)
    return gone


def is_named(row: dict[str, Any], name: str) -> bool:
    """Whether a row of Ollama's lists is of a model: they have the tag with every name."""
    return row.get("name") in (name, f"{name}:latest")


def take_away_left(records: Path) -> list[str]:
    """Remove what killed sessions left in daemons that run: the names."""
    gone = []
    for record in sorted(records.glob("*.json")):
        # a record that cannot be read names nothing that could be removed, and is left for a person to look at
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), record.open(encoding="utf-8") as file:
            told = json.load(file)
            if take_away(record, file, str(told["url"]), str(told["name"])):
                gone.append(str(told["name"]))
    return gone


def ask(url: str, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
    """The status of one request and the table it was answered with; 0 if there was no answer."""
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
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    return reply.status, told if isinstance(told, dict) else {}


if __name__ == "__main__":
    main()
