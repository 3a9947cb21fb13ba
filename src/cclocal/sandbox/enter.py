"""Turns an agent's command into the one that runs it in a sandbox."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Sequence

from cclocal.paths import make_folder
from cclocal.sandbox import inside, proxy, seatbelt
from cclocal.sandbox.nets import local_ports, proxy_variables
from cclocal.sandbox.walls import Sandbox, bubblewrap


def enter(argv: Sequence[str], sandbox: Sandbox, keeper: socket.socket, port: str) -> tuple[list[str], dict[str, str]]:
    """(the command, further variables), for this process to become: its signals and descriptors are set for it.

    keeper: the launcher's socket to it. port: the session's, on which the agent finds the relay. Raises OSError.
    """
    make_folder(sandbox.walls.tmp)
    order = {"mount_points": [str(path) for path in sandbox.walls.missing], "tmp": str(sandbox.walls.tmp)}
    if sandbox.is_seatbelt:
        return _with_seatbelt(argv, sandbox, keeper, port, {**order, "mount_points": []})
    doors = [_door(), _door()] if sandbox.rules else [_door()]
    with doors[0][1] as theirs:
        socket.send_fds(keeper, [json.dumps({**order, "door": True}).encode() + b"\n"], [theirs.fileno()])
    if sandbox.rules:
        with doors[1][1] as theirs:
            _start_proxy(theirs, sandbox)
    # bubblewrap waits while the agent runs, and Ctrl-C is the agent's
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    ports = ",".join((port, *map(str, local_ports(sandbox.rules))))
    first = (sys.executable, "-I", "-S", inside.__file__, ports, ",".join(str(door) for door, _ in doors))
    return wrapped([*first, *argv], sandbox)[0], {}


def wrapped(argv: Sequence[str], sandbox: Sandbox, ports: Iterable[int] = ()) -> tuple[list[str], tuple[int, ...]]:
    """(a command in the sandbox, the descriptors that it needs); ports: of this machine that it reaches (a Mac)."""
    if sandbox.is_seatbelt:
        return [sandbox.program, "-p", seatbelt.profile(sandbox.walls, ports), *argv], ()
    rules = os.memfd_create("seccomp", 0)
    os.write(rules, sandbox.filter)
    os.lseek(rules, 0, os.SEEK_SET)
    return [*bubblewrap(sandbox.program, sandbox.walls, rules), *argv], (rules,)


def _with_seatbelt(
    argv: Sequence[str], sandbox: Sandbox, keeper: socket.socket, port: str, order: dict[str, object]
) -> tuple[list[str], dict[str, str]]:
    """A Mac has no network namespaces: the agent reaches the session's own port, and the proxy's."""
    keeper.sendall(json.dumps(order).encode() + b"\n")
    ports, variables = [int(port), *local_ports(sandbox.rules)], {"TMPDIR": str(sandbox.walls.tmp)}
    if sandbox.rules:
        ours, theirs = socket.socketpair()
        with ours, theirs, socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
            _start_proxy(theirs, sandbox)
            socket.send_fds(ours, [b"listeners"], [listener.fileno()])
            if not ours.recv(1):
                raise OSError("the proxy ended")
            ports.append(listener.getsockname()[1])
        variables |= proxy_variables(ports[-1])
    return wrapped(argv, sandbox, ports)[0], variables


def _door() -> tuple[int, socket.socket]:
    """(a descriptor for the sandbox, the other end of it)."""
    ours, theirs = socket.socketpair()
    door = ours.detach()
    os.set_inheritable(door, True)
    return door, theirs


def _start_proxy(door: socket.socket, sandbox: Sandbox) -> None:
    """Start the proxy beside the sandbox. It ends with this process, which becomes the agent."""
    words = (str(door.fileno()), str(os.getpid()), sandbox.report, *sandbox.rules)
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", proxy.__file__, *words],
        pass_fds=(door.fileno(),),
        # Ctrl-C is the agent's
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", **{n: os.environ[n] for n in ("HOME",) if n in os.environ}},
    )
    # it is not waited for: bubblewrap reaps it
    process.returncode = 0
