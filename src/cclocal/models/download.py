"""Downloads from the hub, in a process of its own: one that stalls can be ended, and tried again in another way.

    python -m cclocal.models.download < JSON      {"repo": …, "files": […]}

JSON lines go to stdout as it works; its life is tied to its stdin, so a launcher that is killed takes it along.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

from cclocal.errors import CclocalError
from cclocal.models import hub


def _tell(**news: Any) -> None:
    sys.stdout.write(json.dumps(news) + "\n")
    sys.stdout.flush()


class _Bar:
    """What hub.download is told of received bytes by."""

    def __init__(self, total_bytes: int, finished_bytes: int) -> None:
        _tell(total_bytes=total_bytes, finished_bytes=finished_bytes)

    def advance(self, received_bytes: int) -> None:
        _tell(received_bytes=received_bytes)


def _end_with_parent() -> None:
    sys.stdin.read()
    # the hub's library may be anywhere in C: nothing but this ends it at once
    os._exit(1)


def main() -> None:
    """Fetch what stdin asks for, and say where it is."""
    wanted = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        found = hub.download(wanted["repo"], tuple(wanted["files"]), os.environ, _Bar, _tell)
        _tell(done={name: str(path) for name, path in found.items()})
    except CclocalError as error:
        _tell(error={"kind": type(error).__name__, "message": error.message, "cause": error.cause, "hint": error.hint})
    except KeyboardInterrupt:
        pass
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
