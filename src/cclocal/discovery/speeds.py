"""How fast models were in their last sessions on this machine, from the logs of their servers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from cclocal.backends import BACKENDS
from cclocal.paths import Env
from cclocal.server.registry import newest_first
from cclocal.turns import Turn, end_of, model, turns

#: As much of a log's beginning and end is read for the speed of a session.
_HEAD_BYTES, _TAIL_BYTES = 4096, 262_144
#: A speed of reading is not computed from fewer tokens.
_LEAST_READ_TOKENS = 256


def written(env: Env) -> dict[str, float]:
    """Model → tokens written per second in its last session here, as far as its log is kept."""
    return {name: turn.write_per_s for name, turn in _turns(env) if turn.write_per_s}


def read(env: Env) -> dict[str, float]:
    """Model → tokens of a prompt read per second in its last session here, as far as its log is kept."""
    long = ((name, turn) for name, turn in _turns(env) if (turn.read_tokens or 0) >= _LEAST_READ_TOKENS)
    return {name: turn.read_per_s for name, turn in long if turn.read_per_s}


def _turns(env: Env) -> Iterator[tuple[str, Turn]]:
    """(model, turn) of every log, the newest last."""
    readers = tuple(backend.LOG_READER for backend in BACKENDS.values() if backend.LOG_READER)
    for log in reversed(newest_first(env)):
        with contextlib.suppress(OSError), log.open("rb") as file:
            name = model(file.read(_HEAD_BYTES).decode("utf-8", "replace"))
            found = turns(end_of(str(log), _TAIL_BYTES), readers)[0] if name else []
            yield from ((name, turn) for turn in found)
