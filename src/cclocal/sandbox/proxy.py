"""Carries connections out of a sandbox, to the hosts that the user named and to no others.

    proxy.py DOOR WATCHED REPORT RULE…

A program of its own, standard library only, started outside the sandbox when a host is named. DOOR is a unix socket:
through it come the sockets that listen in the sandbox: the proxy's own, then one for each port of this machine that a
rule names, which needs no CONNECT. WATCHED is the agent's process, with which this one ends.
REPORT is a file that says where connections went and where they were refused. The rules are those of nets.py.

The proxy speaks CONNECT only: what a connection carries, as a rule TLS, it does not see. It looks up names itself, so
that a name leads to a public address only: one of this machine or of the local network must be named as a number.
"""

from __future__ import annotations

import _thread
import contextlib
import ipaddress
import json
import os
import select
import socket
import sys
import time

if __name__ == "__main__":
    # -I -S: our own package is not on the path; of it only modules without other packages are imported
    sys.path.append(os.path.abspath(os.path.join(os.path.dirname(__file__), "../..")))

from cclocal.sandbox.nets import LOCAL, PLACE, allows, flag_for, local_ports

#: A request's head, which is a line and a few fields.
MOST_HEAD_BYTES = 8192
#: Seconds that a client has for its request, and a server to take the connection.
LIMIT_S = 20.0
#: Different places that the report names.
MOST_PLACES = 100
#: As many descriptors as Linux sends in one message are 253.
MOST_LISTENERS = 250
#: Seconds between two looks at the agent's process where there is no pidfd.
POLL_S = 0.2
_PIECE_BYTES = 65536


class Proxy:
    """The rules, what was reached (place → how often), and what was refused (place → the flag for it, or the cause)."""

    def __init__(self, rules: list[str], report: str) -> None:
        self.rules, self.path = rules, report
        self.reached: dict[str, int] = {}
        self.refused: dict[str, str] = {}
        self.lock = _thread.allocate_lock()
        self.write()

    def accept(self, listener: socket.socket) -> None:
        """Serve each connection in a thread of its own."""
        while True:
            client, _ = listener.accept()
            _thread.start_new_thread(self.serve, (client,))

    def serve(self, client: socket.socket) -> None:
        """Answer one client, and carry its connection until one end closes it."""
        with client, contextlib.suppress(OSError):
            client.settimeout(LIMIT_S)
            host, port, rest = _request(client)
            if not host:
                _refuse(client, "405", "cclocal's proxy carries https (CONNECT) only")
                return
            place, rule = f"{host}:{port}", allows(self.rules, host, port)
            if not rule:
                self.note(place, flag_for(host, port))
                _refuse(client, "403", f"not allowed in this sandbox: cclocal {flag_for(host, port)}")
                return
            try:
                server = self.dial(host, port)
            except OSError as error:
                self.note(place, str(error))
                _refuse(client, "502", str(error))
                return
            self.note(place)
            with server:
                server.sendall(rest)
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                _carry(client, server)

    def accept_local(self, listener: socket.socket, port: int) -> None:
        """Carry each connection to a port of this machine."""
        while True:
            client, _ = listener.accept()
            _thread.start_new_thread(self.serve_local, (client, port))

    def serve_local(self, client: socket.socket, port: int) -> None:
        """Carry one connection; where nothing listens it is closed."""
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), LIMIT_S) as server:
            self.note(f"{LOCAL}{port}")
            _carry(client, server)

    def dial(self, host: str, port: int) -> socket.socket:
        """A connection to a place, if each of its addresses is public or named by a rule. Raises OSError.

        The host can be an address itself: a rule for every public host does not open 127.0.0.1.
        """
        found = [str(row[4][0]) for row in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)]
        private = [one for one in found if not _is_public(one) and not self.is_named(one, port)]
        if private:
            words = f"{host} is at {private[0]}, which is not a public address"
            raise OSError(f"{words}; cclocal --allow-net {private[0]}:{port} allows it")
        error = OSError(f"{host} has no address")
        for address in found:
            try:
                return socket.create_connection((address, port), LIMIT_S)
            except OSError as failed:
                error = failed
        raise error

    def is_named(self, address: str, port: int) -> bool:
        """Whether a rule names this address as a number."""
        return f"{address}:{port}" in self.rules or f"[{address}]:{port}" in self.rules

    def note(self, place: str, why: str = "") -> None:
        """Remember where a connection went, or why it did not."""
        with self.lock:
            if place in self.reached or place in self.refused or len({*self.reached, *self.refused}) < MOST_PLACES:
                if why:
                    self.refused[place] = why
                else:
                    self.reached[place] = self.reached.get(place, 0) + 1
                self.write()

    def write(self) -> None:
        """Write the report; a reader finds the old one or the new one, never a part."""
        # a full disk must not cut a connection
        with contextlib.suppress(OSError):
            with open(os.open(f"{self.path}.part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
                json.dump({"reached": self.reached, "refused": self.refused}, out)
            os.replace(f"{self.path}.part", self.path)


def _request(client: socket.socket) -> tuple[str, int, bytes]:
    """(host, port, what came after the request) of a CONNECT; an empty host if it is no such request."""
    head = b""
    while b"\r\n\r\n" not in head:
        piece = client.recv(4096)
        if not piece or len(head) > MOST_HEAD_BYTES:
            return "", 0, b""
        head += piece
    first, _, rest = head.partition(b"\r\n\r\n")
    words = first.split(b"\r\n")[0].decode("ascii", "replace").split()
    place = PLACE.fullmatch(words[1]) if len(words) == 3 and words[0] == "CONNECT" else None
    return (place[1].lower(), int(place[2]), rest) if place else ("", 0, b"")


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address.split("%")[0])
    inner = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None) or found
    return bool(found.is_global and inner.is_global and not found.is_multicast)


def _refuse(client: socket.socket, status: str, words: str) -> None:
    """Answer with an error. Most programs show its first line only."""
    words = "".join(c if c.isprintable() and c.isascii() else "?" for c in words)
    client.sendall(f"HTTP/1.1 {status} {words}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())


def _carry(client: socket.socket, server: socket.socket) -> None:
    """Pass on what either end sends, until both have ended."""
    for end in (client, server):
        end.settimeout(None)
    other = {client: server, server: client}
    while other:
        for end in select.select(list(other), [], [])[0]:
            data = end.recv(_PIECE_BYTES)
            if data:
                other[end].sendall(data)
                continue
            with contextlib.suppress(OSError):
                other[end].shutdown(socket.SHUT_WR)
            del other[end]


def main(argv: list[str]) -> None:
    """Serve the socket that comes through the door, until the agent ends."""
    watched, proxy = int(argv[2]), Proxy(argv[4:], argv[3])
    with socket.socket(fileno=int(argv[1])) as door:
        # without any the agent's process ended before it could send them
        _, fds, *_ = socket.recv_fds(door, 64, MOST_LISTENERS)
        if fds:
            first, *others = (socket.socket(fileno=fd) for fd in fds)
            _thread.start_new_thread(proxy.accept, (first,))
            for listener, port in zip(others, local_ports(proxy.rules), strict=False):
                _thread.start_new_thread(proxy.accept_local, (listener, port))
            with contextlib.suppress(OSError):
                door.send(b".")
    _wait_for_end(watched)
    os._exit(0)


def _wait_for_end(watched: int) -> None:
    """Return when the process has ended that started this one."""
    watch = -1
    # macOS has no pidfd, nor have old kernels
    with contextlib.suppress(AttributeError, OSError):
        watch = os.pidfd_open(watched)
    # looked at after it was opened: else the number could be another process's by now
    while os.getppid() == watched:
        if watch >= 0:
            select.select([watch], [], [])
        else:
            time.sleep(POLL_S)


if __name__ == "__main__":
    main(sys.argv)
