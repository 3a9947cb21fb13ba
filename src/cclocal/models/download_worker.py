"""The process that downloads from the hub: one that stalls can be ended, and tried again in another way.

    python -m cclocal.models.download_worker < JSON      {"repo": …, "files": […]}

JSON lines about its progress go to stdout. It ends when its stdin is closed, so that it goes with the launcher.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

from cclocal.errors import CclocalError
from cclocal.models.download import download


def _tell(**news: Any) -> None:
    sys.stdout.write(json.dumps(news) + "\n")
    sys.stdout.flush()


class _Bar:
    """Reports received bytes to the launcher."""

    def __init__(self, total_bytes: int, finished_bytes: int) -> None:
        _tell(total_bytes=total_bytes, finished_bytes=finished_bytes)

    def advance(self, received_bytes: int) -> None:
        _tell(received_bytes=received_bytes)


def _end_with_parent() -> None:
    sys.stdin.read()
    # the hub's library may be in C code, which only this ends at once
    os._exit(1)


def main() -> None:
    """Fetch what stdin asks for, and report where it is."""
    wanted = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        found = download(wanted["repo"], tuple(wanted["files"]), os.environ, _Bar, _tell)
        _tell(done={name: str(path) for name, path in found.items()})
    except CclocalError as error:
        _tell(error={"kind": type(error).__name__, "message": error.message, "cause": error.cause, "hint": error.hint})
    except KeyboardInterrupt:
        pass
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
