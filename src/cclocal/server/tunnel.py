"""Holds an ssh tunnel to a model server on another machine: python -I -S tunnel.py NEAR MARK SECONDS KEY SSH ARGUMENTS…

It runs the system's ssh and ends with it, so that its keeper notices the end of a connection as that of a server. NEAR
is this end of the tunnel: the path of a socket, or HOST:PORT. Once it is there the file MARK is written. In a session
that has the mark already, so whose connection was cut, ssh is tried again for so many SECONDS: a network comes back
later than a process. KEY: a file whose text the program on that machine reads from its standard input, which then
stays open as long as the connection; empty for a tunnel alone. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time

#: Seconds between two tries, and between two looks.
PAUSE_S, POLL_S = 1.0, 0.05


def main(argv: list[str]) -> int:
    """Returns the exit status of the last ssh."""
    near, mark, seconds, key, *ssh = argv[1:]
    is_again = os.path.exists(mark)
    deadline = time.monotonic() + float(seconds)
    while True:
        # its words go into the server's log
        with subprocess.Popen(ssh, stdin=subprocess.PIPE if key else subprocess.DEVNULL) as child:
            was_up = False
            if child.stdin:
                with contextlib.suppress(BrokenPipeError), open(key, "rb") as text:
                    child.stdin.write(text.read())
                    child.stdin.flush()
            while child.poll() is None and not was_up:
                time.sleep(POLL_S)
                was_up = _is_there(near)
            if was_up:
                with open(mark, "w", encoding="ascii"):
                    pass
            status = child.wait()
        if was_up or not is_again or time.monotonic() > deadline:
            return status
        time.sleep(PAUSE_S)


def _is_there(near: str) -> bool:
    host, _, port = near.rpartition(":")
    if not host:
        return os.path.exists(near)
    try:
        socket.create_connection((host, int(port)), 1.0).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv))
