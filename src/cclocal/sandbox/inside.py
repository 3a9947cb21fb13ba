"""Runs first inside a sandbox, where it opens the session's port and then becomes the agent.

    inside.py PORT[,PORT…] DOOR[,DOOR] PROGRAM ARGUMENT…

The sandbox has a network of its own. A socket belongs to the network in which it was made: the one that listens here is
sent through the first DOOR, a unix socket, to the keeper outside, and the session's relay accepts on it. So the agent
reaches the relay at the first PORT as without a sandbox, and there is nothing else to reach. If there is a second DOOR,
sockets on any port and on the other PORTs go to the proxy, and programs are told of it by their usual variables.
"""

from __future__ import annotations

import os
import signal
import socket
import sys


def main(argv: list[str]) -> None:
    """Hand over the listening sockets, wait until they were taken, and become the agent."""
    port, *others = map(int, argv[1].split(","))
    relay, *proxies = map(int, argv[2].split(","))
    _hand_over(relay, (port,), "keeper")
    for door in proxies:
        # -I -S: our own package is not on the path. Imported here, because most sessions have no proxy.
        sys.path.append(os.path.abspath(os.path.join(os.path.dirname(__file__), "../..")))
        from cclocal.sandbox.nets import proxy_variables

        os.environ |= proxy_variables(_hand_over(door, (0, *others), "proxy"))
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


def _hand_over(door: int, ports: tuple[int, ...], to: str) -> int:
    """Listen on ports, and send the sockets through a door. Returns the number of the first."""
    listeners = [socket.create_server(("127.0.0.1", port), backlog=128) for port in ports]
    with socket.socket(fileno=door) as ours:
        socket.send_fds(ours, [b"listeners"], [listener.fileno() for listener in listeners])
        if not ours.recv(1):
            sys.exit(f"cclocal: the session's {to} was killed before the agent could start.")
    found = int(listeners[0].getsockname()[1])
    for listener in listeners:
        listener.close()
    return found


if __name__ == "__main__":
    main(sys.argv)
