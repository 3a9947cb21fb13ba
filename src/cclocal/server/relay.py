"""Stands between the agent and its model server for the life of a session, so that a server can be replaced under it.

Run by the keeper as a program of its own, standard library only, one thread per connection. LISTENER is the session's
listening socket. The keeper holds a copy of it, so its port is never free, and connections wait in its backlog while a
relay that was killed is replaced. CONTROL is a socket to the keeper, a JSON object per line:

    in:  the options of `Relay`, then {"server": pid, "start": its start, "again": whether it replaces one, "model":
         its model} for each server, {"down": true} when it ended, {"gone": words} when there will be no other,
         {"failed": {model: words}} when another model could not be loaded, {"hold": true or false}, {"status": true},
         {"save": [method, path, body], "wait_s": …}, {"keep": a file for the agent's last request, "note": what goes
         before it}, {} with a descriptor: the listening socket of a sandbox
    out: {"up": pid} when a server answers, {"wants": model} when a request is for another one, {"in_flight": …, …} for
         a status, {"saved": the answer's text, "took_s": …}, {"kept": bytes}, {"waits": why requests wait for the
         server, empty when it answers again}

Only the head of a request is changed: key, Host and Connection. Its body is kept in memory until the first byte of
the answer, to be sent again to the next server; of the agent's last one until the next. Nothing is written to disk but
that one, where the keeper asks for it, and nothing to a log.
"""

from __future__ import annotations

import _thread
import contextlib
import itertools
import json
import os
import socket
import sys
import time
from typing import Any

if __name__ == "__main__":
    # -I -S: our own package is not on the path; of it only modules without other packages are imported
    sys.path.append(os.path.abspath(os.path.join(os.path.dirname(__file__), "../..")))

from cclocal.server.backing import POLL_S, Backing
from cclocal.server.descriptors import lines_from, tell
from cclocal.server.framing import (
    NOT_PASSED,
    Head,
    HungUp,
    Refused,
    check_client,
    check_sender,
    pieces_of,
    read_answer,
    read_body,
    read_head,
    replace,
    send,
)
from cclocal.server.last_request import LastRequest
from cclocal.server.prompt_size import PromptSize
from cclocal.server.slots import Slot, Slots

#: Seconds in which the keeper reports a server's end after its connections were cut.
NEWS_S = 2.0
#: Seconds between two tries of a request that waits for a server which somebody else runs.
RETRY_S = 1.0
#: What such a server, or a gateway before it, answers while it starts.
NOT_READY = (b"502", b"503", b"504")


class Relay:
    """One session's relay.

    Options: `key`, the agent's; `refusals`, rows that replace a server's error by one that the agent understands:
    {"path": of the API, "status": if it matters, "pattern": of the error's text, "becomes": a status, "kind": …,
    "message": a template of the pattern's groups}; `asks`, the paths of messages; `wait_s`, how long a request waits
    for a server that does not answer; and those of Backing, PromptSize and Slots.
    """

    def __init__(self, options: dict[str, Any], control: int) -> None:
        self.control = control
        self.key = options["key"].encode()
        self.refusals: list[dict[str, Any]] = options.get("refusals", [])
        self.last = LastRequest(options.get("asks", ()))
        self.prompts, self.backing = PromptSize(options), Backing(options, control)
        self.slots = Slots(options, self.backing)
        #: how long a request waits for a server that does not answer, and whether one waits
        self.wait_s, self.is_waiting = float(options.get("wait_s", 0)), False
        self.lock = _thread.allocate_lock()
        self.in_flight = self.answered = self.sent_again = self.cut = 0
        self.unread = 0  # answers that wait for the agent to read on
        self.last_end = self.last_byte = time.monotonic()

    def obey(self, message: dict[str, Any]) -> None:
        """Take one message of the keeper's."""
        self.backing.obey(message)
        self.slots.obey(message)
        if "status" in message:
            tell(self.control, self.status())
        if "keep" in message:
            tell(self.control, {"kept": self.last.write(message["keep"], message["note"])})

    def status(self) -> dict[str, Any]:
        """Counts since the start; idle_s: since the last request ended, None while one is in flight; silent_s: since
        the last byte of an answer, 0 while an agent that was stopped (Ctrl-Z) does not read one.
        """
        now = time.monotonic()
        return {
            "in_flight": self.in_flight,
            "answered": self.answered,
            "sent_again": self.sent_again,
            "cut": self.cut,
            "idle_s": None if self.in_flight else round(now - self.last_end, 3),
            "silent_s": 0.0 if self.unread else round(now - self.last_byte, 3),
        }

    # -- the agent

    def accept(self, listener: socket.socket) -> None:
        """Serve each connection in a thread of its own. (`threading` adds a handshake of milliseconds under load.)"""
        _thread.stack_size(256 * 1024)
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                # no descriptor is left: connections wait in the backlog
                time.sleep(POLL_S)
                continue
            # else Nagle's algorithm holds tokens back
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _thread.start_new_thread(self.serve, (client,))

    def serve(self, client: socket.socket) -> None:
        """One connection of the agent's: requests one after the other."""
        with client:
            ahead = bytearray()
            with contextlib.suppress(HungUp, OSError, ValueError):
                while self.request(client, ahead):
                    pass

    def request(self, client: socket.socket, ahead: bytearray) -> bool:
        """Answer one request; whether the connection can take another. `ahead`: what was read of it already."""
        head = read_head(client, ahead)
        try:
            check_sender(head, self.key)
            body = read_body(client, head, ahead)
            self.prompts.check(head.path, body)
            counts = head.first.startswith(b"POST")
            with self.lock:
                self.in_flight += counts
                self.last_byte = time.monotonic()
            try:
                return self.forward(client, head, body) and not head.is_last
            finally:
                with self.lock:
                    self.in_flight -= counts
                self.last_end = time.monotonic() if counts else self.last_end
        except Refused as refusal:
            send(client, refusal.as_answer())
            return False

    def forward(self, client: socket.socket, head: Head, body: bytearray) -> bool:
        """Send a request to the server, and again to the next one if it dies before a byte of its answer."""
        upstream = self.backing.upstream
        request = head.with_fields(NOT_PASSED, b"Connection: close", *upstream.fields)
        failed_by, why, model = -1, "", self.backing.choice.of(body)
        failing_since = 0.0
        while True:
            generation = self.backing.wait(client, model)
            try:
                with self.slots.held(client, head.path, body, generation) as slot, upstream.dial() as server:
                    server.sendall(request)
                    server.sendall(body)
                    is_whole = self.answer(client, server, head, body, slot)
                if is_whole is not None:
                    return is_whole
                why = "it is not ready" if self.wait_s else "it closed the connection without an answer"
            except OSError as error:
                why = str(error)
            finally:
                self.backing.left()
            failing_since = failing_since or time.monotonic()
            if failed_by == generation:
                where = "" if upstream.is_ours else f" at {upstream.host}:{upstream.port}"
                words = f"The model server{where} does not answer: {why}."
                if time.monotonic() - failing_since >= self.wait_s:
                    raise Refused("502 Bad Gateway", "api_error", words)
                self.waits_for(words)
            else:
                self.sent_again += 1
            failed_by = generation
            deadline = time.monotonic() + (RETRY_S if self.wait_s else NEWS_S if upstream.is_ours else POLL_S)
            while self.backing.is_still(generation) and time.monotonic() < deadline:
                check_client(client, POLL_S)

    def waits_for(self, words: str) -> None:
        """Tell the keeper once that requests wait for the server, and with no words that it answers again."""
        with self.lock:
            is_news, self.is_waiting = bool(words) != self.is_waiting, bool(words)
        if is_news:
            tell(self.control, {"waits": words})

    def answer(
        self, client: socket.socket, server: socket.socket, head: Head, body: bytearray, slot: Slot | None
    ) -> bool | None:
        """Pass one answer on; whether it was whole. None = the server ended before it had begun."""
        pieces = pieces_of(client, server)
        begun = read_answer(pieces)
        if not begun:
            return None
        answer, piece = begun
        if self.wait_s and answer.first[9:12] in NOT_READY:
            return None
        self.waits_for("")
        length, is_chunked = answer.fields.get(b"content-length"), b"transfer-encoding" in answer.fields
        if answer.is_short_error:
            piece += b"".join(pieces)
            replace(self.refusals, head.path, answer.first, piece)
            pieces = iter(())
        self.slots.answers(slot)
        # this server does not need the prompt again
        learn = self.prompts.learner(len(body))
        if answer.first[9:12] == b"200":
            self.last.take(head.path, body)
        body.clear()
        self.answered += 1
        learn(piece)
        self.pass_on(client, answer.with_fields(frozenset((b"connection",))) + piece)
        passed, tail = len(piece), piece[-5:]
        for piece in pieces:
            learn(piece)
            self.pass_on(client, piece)
            passed, tail = passed + len(piece), (tail + piece)[-5:]
        is_whole = tail == b"0\r\n\r\n" if is_chunked else head.first.startswith(b"HEAD") or length == b"%d" % passed
        self.cut += not is_whole and (is_chunked or length is not None)
        return is_whole

    def pass_on(self, client: socket.socket, data: bytes) -> None:
        """Send the agent a piece of an answer. Waits as long as the agent does not read."""
        with self.lock:
            self.unread += 1
        try:
            send(client, data)
        finally:
            with self.lock:
                self.unread -= 1
            self.last_byte = time.monotonic()


def main(argv: list[str]) -> None:
    """Relay until the keeper is gone."""
    listener, control = int(argv[1]), int(argv[2])
    lines = lines_from(control)
    # the socket of a sandbox, which has a network of its own, may come with this line already
    options, early = next(lines)
    relay = Relay(json.loads(options), control)
    for line, fds in itertools.chain([(b"{}", [listener, *early])], lines):
        for fd in fds:
            _thread.start_new_thread(relay.accept, (socket.socket(fileno=fd),))
        relay.obey(json.loads(line))
    relay.backing.end_server()
    os._exit(0)  # threads may wait for a server that is gone


if __name__ == "__main__":
    main(sys.argv)
