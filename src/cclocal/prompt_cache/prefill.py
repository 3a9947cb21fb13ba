"""Has a server evaluate a prompt in the background. A separate program, standard library only.

It reads a table from its standard input, then detaches from the launcher, which is about to become the agent. It ends
with its one request, with the server or with the agent, whichever ends first.

    {"url": …, "key": …, "path": …, "body": {…}, "agent": pid}
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import sys
import threading
import time
from urllib.parse import urlsplit


def main() -> None:
    """Read the table, detach, ask."""
    table = json.load(sys.stdin)
    if os.fork():
        return
    os.setsid()
    threading.Thread(target=_end_with, args=(table["agent"],), daemon=True).start()
    parts = urlsplit(table["url"])
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port)
    headers = {"content-type": "application/json", "authorization": f"Bearer {table['key']}"}
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("POST", table["path"], json.dumps(table["body"]), headers)
        connection.getresponse().read()
    # exit handlers of the parent must not run here
    os._exit(0)


def _end_with(pid: int) -> None:
    """End when a process has ended: a server that is not ours would go on computing."""
    with contextlib.suppress(OSError):
        while True:
            os.kill(pid, 0)
            time.sleep(0.5)
    os._exit(0)


if __name__ == "__main__":
    main()
