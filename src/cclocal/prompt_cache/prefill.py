"""Have a server read a session's fixed prompt in the background, where its state cannot be kept. A program of its own.

It gets a table on its standard input and lets go of whoever started it, who is about to become the agent. It lives as
long as its one request, the server and the agent: whichever ends first.

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
    """Read the table, let go, ask."""
    told = json.load(sys.stdin)
    if os.fork():
        return
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    threading.Thread(target=_go_with, args=(told["agent"],), daemon=True).start()
    parts = urlsplit(told["url"])
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port)
    headers = {"content-type": "application/json", "authorization": f"Bearer {told['key']}"}
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("POST", told["path"], json.dumps(told["body"]), headers)
        connection.getresponse().read()
    # whatever the parent had registered is not ours to run
    os._exit(0)


def _go_with(pid: int) -> None:
    """End when a process has ended: a server that is not ours would compute on for nobody."""
    with contextlib.suppress(OSError):
        while True:
            os.kill(pid, 0)
            time.sleep(0.5)
    os._exit(0)


if __name__ == "__main__":
    main()
