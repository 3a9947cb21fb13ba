"""A relay's connections to its model server: to that process and to no other, whoever else may listen there.

Standard library only, because the relay imports it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from cclocal.server.framing import END_OF_HEAD, PIECE_BYTES
from cclocal.server.process import LINUX

#: Seconds in which a server that is not ours must take a connection.
DIAL_LIMIT_S = 10.0
#: Seconds of silence after which its machine is asked whether the connection is still there, between two asks, and how
#: many are not answered before it counts as gone; milliseconds in which it must confirm what was sent.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 50_000}


class Upstream:
    """Where a session's server listens, from the relay's options.

    `url`: `unix:PATH`, `http://HOST:PORT` or `https://HOST:PORT`. `fields`: header lines that carry the server's own
    key. `is_ours`: it was started for this session, and only its process is spoken to; that is the leader of a session
    of its own. Any other server is taken as it is; with TLS by the system's authorities and those in `authorities`.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        scheme, _, place = options["url"].partition(":")
        self.path = place if scheme == "unix" else ""
        host, _, port = place.removeprefix("//").rpartition(":")
        self.host, self.port = host.strip("[]"), int(port) if port.isdecimal() else 0
        self.is_encrypted, self.authorities = scheme == "https", options.get("authorities", ())
        shown = "127.0.0.1" if self.path else place.removeprefix("//")
        self.fields = [field.encode() for field in (f"Host: {shown}", *options["fields"])]
        self.is_ours: bool = options["is_ours"]
        #: the server's process; 0 while there is none
        self.server = 0
        self.listening: tuple[str, str] | None = None

    def set_server(self, pid: int) -> None:
        """From now on only this process is spoken to."""
        self.server, self.listening = pid, None

    def dial(self) -> socket.socket:
        """A connection to the server. Raises OSError if it is not there, or if another process answers."""
        if not self.is_ours:
            return self._dial_other()
        server = self.server
        if not server:
            raise OSError("the server has ended")
        connection = socket.socket(socket.AF_UNIX if self.path else socket.AF_INET)
        try:
            if self.path:
                connection.connect(self.path)
                is_ours = _peer_is(connection, server)
            else:
                listening = self._find_listener(server)
                connection.connect((self.host, self.port))
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                is_ours = self._still_listens(listening)
            if not is_ours or server != self.server:
                raise OSError("another process answers")
        except OSError:
            connection.close()
            raise
        return connection

    def _dial_other(self) -> socket.socket:
        connection = socket.create_connection((self.host, self.port), DIAL_LIMIT_S)
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # a machine that loses its power or its network closes no connection; with these it is noticed within a minute
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            # not every system has them all
            if option := getattr(socket, name, None):
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
        if self.is_encrypted:
            # several megabytes, so only where it is needed
            import ssl

            context = ssl.create_default_context()
            for file in self.authorities:
                context.load_verify_locations(file)
            return context.wrap_socket(connection, server_hostname=self.host)
        return connection

    def ask(self, method: str, path: str, body: str, limit_s: float) -> tuple[int, str]:
        """(the status of the answer to a request of our own, its text); 0 if there is none."""
        lines = (f"{method} {path} HTTP/1.1", "Connection: close", f"Content-Length: {len(body)}")
        head = b"\r\n".join((*(line.encode() for line in lines), *self.fields, b"", b""))
        try:
            with self.dial() as server:
                server.settimeout(limit_s)
                server.sendall(head + body.encode())
                answer = server.recv(PIECE_BYTES)
                while piece := server.recv(PIECE_BYTES):
                    answer += piece
            return int(answer[9:12]), answer.partition(END_OF_HEAD)[2].decode("utf-8", "replace")
        except (OSError, ValueError):
            return 0, ""

    def _find_listener(self, server: int) -> tuple[str, str] | None:
        """The descriptor of the server's through which the port is listened on, and its socket (Linux).

        Known before we connect and still there afterwards, it shows that the connection is the server's: no other
        process could listen meanwhile. Raises OSError if another one does.
        """
        if self.listening or not LINUX:
            return self.listening
        for inode in _listeners(self.port):
            for link in _descriptors(server):
                with contextlib.suppress(OSError):
                    if os.readlink(link) == inode:
                        self.listening = (link, inode)
                        return self.listening
        raise OSError("the server does not listen")

    def _still_listens(self, listening: tuple[str, str] | None) -> bool:
        with contextlib.suppress(OSError):
            if listening is None or os.readlink(listening[0]) == listening[1]:
                return True
        self.listening = None
        return False


def _peer_is(connection: socket.socket, server: int) -> bool:
    """Whether the process behind a unix socket is the server or in its session. (Elsewhere its folder is private.)"""
    if not LINUX:
        return True
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    with contextlib.suppress(OSError):
        return uid == os.getuid() and os.getsid(pid) == server
    return False


def _listeners(port: int) -> Iterator[str]:
    """The sockets that listen on a port of this machine, as /proc names them (Linux)."""
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        with contextlib.suppress(OSError), open(table) as rows:
            for row in rows:
                fields = row.split()
                if fields[3] == "0A" and fields[1].endswith(f":{port:04X}"):
                    yield f"socket:[{fields[9]}]"


def _descriptors(server: int) -> Iterator[str]:
    """The open descriptors of a server's processes: it was started as the leader of a session of its own."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.getsid(int(pid)) == server:
                yield from (f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd"))
