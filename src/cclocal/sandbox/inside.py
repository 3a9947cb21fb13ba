"""Runs first inside a sandbox, where it opens the session's port and then becomes the agent.

    inside.py DOOR PORT PROGRAM ARGUMENT…

The sandbox has a network of its own. A socket belongs to the network in which it was made: the one that listens here is
sent through DOOR, a unix socket, to the keeper outside, and the session's relay accepts on it. So the agent reaches the
relay at the same address as without a sandbox, and there is nothing else to reach.
"""

from __future__ import annotations

import os
import signal
import socket
import sys


def main(argv: list[str]) -> None:
    """Hand over the listening socket, wait until it was taken, and become the agent."""
    address = ("127.0.0.1", int(argv[2]))
    with socket.socket(fileno=int(argv[1])) as door, socket.create_server(address, backlog=128) as listener:
        socket.send_fds(door, [b"listener"], [listener.fileno()])
        if not door.recv(1):
            sys.exit("cclocal: the session's keeper was killed before the agent could start.")
    # An ignored signal stays ignored through exec. The first two are ignored for bubblewrap, the others by Python.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    if not os.access(os.environ.get("TMPDIR") or os.sep, os.F_OK):
        # the user's own is hidden
        del os.environ["TMPDIR"]
    try:
        os.execve(argv[3], argv[3:], os.environ)
    except OSError as error:
        sys.exit(f"cclocal: {argv[3]} does not run in the sandbox: {error.strerror}.")


if __name__ == "__main__":
    main(sys.argv)
