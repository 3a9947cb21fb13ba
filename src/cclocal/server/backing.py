"""The server behind a relay: which process it is, and whether requests may go to it now. Standard library only."""

from __future__ import annotations

import _thread
import socket
import time
from typing import Any

from cclocal.server.choice import Choice
from cclocal.server.descriptors import tell
from cclocal.server.framing import Refused, check_client
from cclocal.server.process import end_group, end_strays
from cclocal.server.upstream import Upstream

#: Seconds between two looks while a request waits for its server.
POLL_S = 0.1
#: Seconds that a server may take to save its KV cache.
SAVE_LIMIT_S = 120.0
#: Seconds between a server's TERM and KILL where this program is the only guard that is left.
GRACE_S = 2.0


class Backing:
    """One session's servers, one after another.

    Options: `session`, its id; `url`, `is_ours` and `authorities`, see Upstream; `fields`, header lines that carry the
    server's own key; `health`, a path that answers 200 once the server can be used; `restore`, [method, path, body]
    requests that a replaced server gets first; and those of Choice.
    """

    def __init__(self, options: dict[str, Any], control: int) -> None:
        self.control = control
        self.session: str = options["session"]
        self.upstream = Upstream(options)
        self.health: str = options["health"]
        self.restore: list[list[str]] = options.get("restore", [])
        self.choice, self.lock = Choice(options), _thread.allocate_lock()
        #: how many servers there have been, and when the process of the last one started
        self.generation, self.server_start = 0, ""
        # a server that is not ours is not waited for: the agent is told that it does not answer
        self.is_up = not self.upstream.is_ours
        self.is_held = False
        self.gone = ""

    def obey(self, message: dict[str, Any]) -> None:
        """Take one message of the keeper's (relay.py has them all)."""
        if "server" in message and self.upstream.is_ours:
            with self.lock:
                self.generation += 1
                self.is_up, self.server_start = False, message["start"]
                self.choice.loaded, self.choice.wanted = message.get("model", ""), ""
                self.upstream.set_server(message["server"])
            _thread.start_new_thread(self.bring_up, (self.generation, message["again"]))
        if "down" in message and self.upstream.is_ours:
            with self.lock:
                self.is_up = False
                self.upstream.set_server(0)
        self.gone = message.get("gone", self.gone)
        self.choice.failed.update(message.get("failed", {}))
        self.is_held = message.get("hold", self.is_held)
        self.restore = message.get("restore", self.restore)
        if "save" in message:
            _thread.start_new_thread(self.save, (message["save"], message["wait_s"]))

    def tell(self, message: dict[str, Any]) -> None:
        """Send the keeper a message."""
        tell(self.control, message)

    def bring_up(self, generation: int, again: bool) -> None:
        """Wait until a server answers, restore what the one before it had kept, and let requests through."""
        while self.generation == generation and self.upstream.server:
            if self.upstream.ask("GET", self.health, "", limit_s=5.0)[0] == 200:
                for method, path, body in self.restore if again and self.choice.is_first else ():
                    self.upstream.ask(method, path, body, limit_s=60.0)
                with self.lock:
                    self.is_up = self.generation == generation and self.upstream.server > 0
                if self.is_up:
                    self.tell({"up": self.upstream.server})
                return
            time.sleep(POLL_S)

    def wait(self, client: socket.socket, model: str) -> int:
        """Which server answers, as soon as one with this model does. Raises Refused if none will, HungUp."""
        while not self.enters(model):
            if words := self.gone or self.choice.failed.pop(model, ""):
                # a status after which the agent does not try again
                raise Refused("400 Bad Request", "invalid_request_error", words)
            check_client(client, POLL_S)
        return self.generation

    def enters(self, model: str) -> bool:
        """Whether a request may go to the server now. For another model's that one is loaded first, once it is idle."""
        with self.lock:
            choice = self.choice
            if not self.is_up or self.is_held or model in choice.failed:
                return False
            if model in ("", choice.loaded):
                choice.at_server += 1
                return True
            if not choice.at_server:
                self.is_up, choice.wanted = False, model
        if choice.wanted == model:
            self.tell({"wants": model})
        return False

    def left(self) -> None:
        """A request that was let through is over."""
        with self.lock:
            self.choice.at_server -= 1

    def is_still(self, generation: int) -> bool:
        """Whether this server still answers, as far as the keeper said."""
        return self.is_up and self.generation == generation

    def save(self, request: list[str], wait_s: float) -> None:
        """Have the server save its KV cache, once no request is there; those that come meanwhile wait.

        llama.cpp would not begin with a request that came after a save which has to wait for a slot.
        """
        answer, began = (0, ""), time.monotonic()
        while not (is_free := self.hold()) and time.monotonic() - began < wait_s:
            time.sleep(POLL_S)
        if is_free:
            began = time.monotonic()
            method, path, body = request
            answer = self.upstream.ask(method, path, body, limit_s=SAVE_LIMIT_S)
            self.is_held = False
        self.tell({"saved": answer[1] if answer[0] == 200 else "", "took_s": time.monotonic() - began})

    def hold(self) -> bool:
        """Hold requests back, if none is at the server."""
        with self.lock:
            self.is_held = self.is_held or not self.choice.at_server
            return not self.choice.at_server

    def end_server(self) -> None:
        """The keeper was killed: end the server and what it left behind, as the twin does."""
        if server := self.upstream.server:
            end_group(server, self.server_start, GRACE_S)
            end_strays(self.session)
