"""Descriptors that are sent from process to process, beside a line of JSON. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from typing import Any


def tell(fd: int, message: dict[str, Any], *fds: int) -> None:
    """Send a message, and descriptors with it. An end that is gone is no error: it is noticed as such."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as end:
        socket.send_fds(end, [json.dumps(message).encode() + b"\n"], fds)


def receive(fd: int) -> tuple[bytes, list[int]]:
    """Read a unix socket: (data, the descriptors that came with it), both empty if its other end is closed."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as end:
        data, fds, *_ = socket.recv_fds(end, 65536, 4)
        for received in fds:
            os.set_inheritable(received, False)
        return data, fds
    return b"", []


def lines_from(fd: int) -> Iterator[tuple[bytes, list[int]]]:
    """Each line from a unix socket, with the descriptors that came with it, until its other end is closed."""
    text, fds = b"", list[int]()
    while True:
        part, received = receive(fd)
        if not part:
            return
        *lines, text = (text + part).split(b"\n")
        fds += received
        for line in lines:
            yield line, fds
            fds = []
