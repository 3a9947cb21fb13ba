"""Turns an agent's command into the one that runs it in a sandbox."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Sequence

from cclocal.sandbox import inside
from cclocal.sandbox.walls import Sandbox, bubblewrap


def enter(argv: Sequence[str], sandbox: Sandbox, keeper: socket.socket, port: str) -> list[str]:
    """The command, for this process to become: its signals and descriptors are set for it. Raises OSError.

    keeper: the launcher's socket to it. port: the session's, on which the agent finds the relay.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        order = {"door": True, "mount_points": [str(path) for path in sandbox.walls.missing]}
        socket.send_fds(keeper, [json.dumps(order).encode() + b"\n"], [theirs.fileno()])
    rules = os.memfd_create("seccomp", 0)
    os.write(rules, sandbox.filter)
    os.lseek(rules, 0, os.SEEK_SET)
    door = ours.detach()
    os.set_inheritable(door, True)
    # bubblewrap waits while the agent runs, and Ctrl-C is the agent's
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    first = (sys.executable, "-I", "-S", inside.__file__, str(door), port)
    return [*bubblewrap(sandbox.program, sandbox.walls, rules), *first, *argv]
