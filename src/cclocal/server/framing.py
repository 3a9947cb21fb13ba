"""HTTP as a relay reads it: heads are looked at, bodies pass. Standard library only, because the relay imports it."""

from __future__ import annotations

import json
import re
import select
import socket
import time

# `hmac` would cost a megabyte for this one function
from _operator import _compare_digest  # type: ignore[attr-defined,unused-ignore]
from collections.abc import Iterable, Iterator, Mapping

PIECE_BYTES = 65536
#: Anthropic's own limit for a request is 32 MB.
MOST_BODY_BYTES = 32 << 20
#: The most that is read of an answer before its head must have ended.
MOST_HEAD_BYTES = 1 << 20
END_OF_HEAD = b"\r\n\r\n"
#: An answer that is an error is read whole up to this size, so that its words can be replaced.
MOST_ERROR_BYTES = 65536
#: Fields of a request that are not sent on.
NOT_PASSED = frozenset((b"host", b"connection", b"keep-alive", b"authorization", b"x-api-key", b"expect"))


class HungUp(Exception):  # noqa: N818 - an event, no error
    """The agent closed its connection."""


class Refused(Exception):  # noqa: N818 - an answer
    """A request that is answered here, with a status and words."""

    def __init__(self, status: str, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind

    def as_answer(self) -> bytes:
        """The whole answer, in the words of every API."""
        error = {"type": self.kind, "code": self.kind, "message": str(self)}
        text = json.dumps({"type": "error", "error": error}).encode()
        head = f"HTTP/1.1 {self.status}\r\nContent-Type: application/json\r\nConnection: close\r\n"
        return f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text


class Head:
    """The first line and the fields of a request or an answer."""

    def __init__(self, raw: bytes) -> None:
        self.first, *self.lines = raw.split(b"\r\n")
        self.fields = {field_name(line): line.partition(b":")[2].strip() for line in self.lines}

    @property
    def path(self) -> str:
        """The path of a request, without its query."""
        return self.first.split(b" ")[1].partition(b"?")[0].decode("latin-1") if b" " in self.first else ""

    @property
    def is_last(self) -> bool:
        """Whether the sender closes the connection after this exchange, and waits for the other side to do so."""
        return self.fields.get(b"connection", b"").lower() == b"close"

    @property
    def is_short_error(self) -> bool:
        """Whether an answer is an error that is short enough to be read whole."""
        length = self.fields.get(b"content-length")
        return self.first[9:10] in (b"4", b"5") and length is not None and int(length) <= MOST_ERROR_BYTES

    def with_fields(self, dropped: frozenset[bytes], *added: bytes) -> bytes:
        """The head as it is sent on."""
        kept = [line for line in self.lines if field_name(line) not in dropped]
        return b"\r\n".join((self.first, *kept, *added, b"", b""))


def field_name(line: bytes) -> bytes:
    return line.partition(b":")[0].strip().lower()


def read_head(client: socket.socket, ahead: bytearray) -> Head:
    while (end := ahead.find(END_OF_HEAD)) < 0:
        piece = client.recv(PIECE_BYTES) if len(ahead) <= PIECE_BYTES else b""
        if not piece:
            raise HungUp
        ahead += piece
    head = Head(bytes(ahead[:end]))
    del ahead[: end + 4]
    return head


def check_sender(head: Head, key: bytes) -> None:
    """Refuse what is not the session's agent, before a byte of the body is read."""
    host = head.fields.get(b"host", b"").rpartition(b":")
    if (host[0] or host[2]) not in (b"127.0.0.1", b"localhost") or b"origin" in head.fields:
        # a web page in the user's browser: DNS rebinding, or a request from another site
        raise Refused("403 Forbidden", "permission_error", "Only programs of this machine are answered.")
    given = head.fields.get(b"x-api-key") or head.fields.get(b"authorization", b"").removeprefix(b"Bearer ")
    if not _compare_digest(given, key):
        raise Refused("401 Unauthorized", "authentication_error", "This is not the session's key.")


def read_body(client: socket.socket, head: Head, ahead: bytearray) -> bytearray:
    """A request's body, in one block of its size: one that grows would leave holes in memory."""
    if b"transfer-encoding" in head.fields:
        raise Refused("411 Length Required", "invalid_request_error", "A request needs a Content-Length.")
    size = int(head.fields.get(b"content-length", 0))
    if size > MOST_BODY_BYTES:
        raise Refused("413 Content Too Large", "request_too_large", f"{size:,} bytes are more than a request may have.")
    if b"expect" in head.fields:
        send(client, b"HTTP/1.1 100 Continue\r\n\r\n")
    body = bytearray(size)
    read = min(size, len(ahead))
    body[:read] = ahead[:read]
    del ahead[:read]
    with memoryview(body) as view:
        while read < size:
            received = client.recv_into(view[read:])
            if not received:
                raise HungUp
            read += received
    return body


def read_answer(pieces: Iterator[bytes]) -> tuple[Head, bytes] | None:
    """The head of an answer and the beginning of its body. None = the server ended before that.

    The head of a stream alone is no answer: while nothing of its body was sent, the server can be replaced.
    """
    data = b""
    for piece in pieces:
        data += piece
        end = data.find(END_OF_HEAD)
        if end < 0 and len(data) > MOST_HEAD_BYTES:
            raise Refused("502 Bad Gateway", "api_error", "The model server's answer is not HTTP.")
        if end >= 0 and (len(data) > end + 4 or b"text/event-stream" not in data):
            return Head(data[:end]), data[end + 4 :]
    return None


def replace(rows: Iterable[Mapping[str, str]], path: str, first: bytes, text: bytes) -> None:
    """Raise Refused in the agent's words if an answer is an error that the agent would misunderstand.

    `rows`: the refusals of `Relay`; `first`: the answer's first line.
    """
    for row in rows:
        status, found = first[9:12].decode(), re.search(row["pattern"], text.decode("utf-8", "replace"))
        if found and row.get("status", status) == status and row["path"] == path:
            raise Refused(row["becomes"], row["kind"], found.expand(row["message"]))


def send(client: socket.socket, data: bytes) -> None:
    try:
        client.sendall(data)
    except OSError:
        raise HungUp from None


def check_client(client: socket.socket, wait_s: float) -> None:
    """Wait a moment. Raises HungUp as soon as the agent closes its connection."""
    began = time.monotonic()
    if select.select([client], [], [], wait_s)[0]:
        if not client.recv(1, socket.MSG_PEEK):
            raise HungUp
        # it has sent its next request already
        time.sleep(max(0.0, wait_s - (time.monotonic() - began)))


def pieces_of(client: socket.socket, server: socket.socket) -> Iterator[bytes]:
    """What comes from the server until it closes. If the agent hangs up first, closing ours makes the engine stop."""
    poll = select.poll()
    poll.register(server, select.POLLIN)
    poll.register(client, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if client.fileno() in ready:
            if not client.recv(1, socket.MSG_PEEK):
                raise HungUp
            # it has sent its next request already, which is read when this answer is over
            poll.unregister(client)
        if server.fileno() in ready:
            try:
                piece = server.recv(PIECE_BYTES)
            except ConnectionError:
                return
            if not piece:
                return
            yield piece
