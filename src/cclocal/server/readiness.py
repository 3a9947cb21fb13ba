"""Whether a server is the one we started and can answer: the checks between its start and the agent's."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil

from cclocal import http
from cclocal.command import UNIX, Readiness
from cclocal.errors import NotReadyError, PortError
from cclocal.programs import last_line, last_lines
from cclocal.server.start import Server
from cclocal.wires import Wire

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

#: Seconds between two questions to a server that is not ready.
POLL_S = 0.05
_LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the user sees while the server loads: the phase, the seconds so far, the last line of its log."""

    phase: str
    seconds: float
    log_line: str


class NotYet(Exception):  # noqa: N818 - an answer, no error: ask again
    """The server is not ready yet; the text is the phase."""


def check_models(reply: httpx.Response, model: str) -> None:
    """Judge the list of models, asked with the right key. Raises NotYet, or NotReadyError if it is not our server."""
    if reply.status_code in (502, 503, 504):
        raise NotYet("loading the model")
    if reply.status_code in (401, 403):
        raise NotReadyError("The server refuses the session's own key, so it is not the one that was started.")
    if reply.status_code != 200:
        raise NotReadyError(f"The server answered {reply.status_code} to {reply.request.url.path}.")
    try:
        ids = [entry["id"] for entry in reply.json()["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NotReadyError(
            "Another program, which is not a model server, answers on the session's port.", cause=[reply.text[:200]]
        ) from None
    # Ollama lists every name with its tag
    if not {model, f"{model}:latest"} & set(ids):
        raise NotReadyError(f"The server has {', '.join(map(str, ids)) or 'no model'}, not {model}.")


def check_wrong_key(reply: httpx.Response) -> None:
    """Judge the answer to a wrong key. Raises NotReadyError unless it is a refusal."""
    if reply.status_code not in (401, 403):
        raise NotReadyError(
            f"The server does not check keys: it answered a wrong key with {reply.status_code} instead of 401."
        )


def check_message(reply: httpx.Response, wire: Wire) -> None:
    """Judge a message of one token. Raises NotYet while the model loads, NotReadyError if the server cannot answer."""
    if reply.status_code == 503:
        raise NotYet("loading the model")
    if not wire.is_reply(reply.status_code, reply.text):
        raise NotReadyError(
            f"The server is up but cannot answer a message (status {reply.status_code}).", cause=[reply.text[:300]]
        )


def wait_until_ready(
    server: Server,
    readiness: Readiness,
    wire: Wire,
    on_wait: Callable[[Waiting], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Return when the server has shown everything in `readiness`.

    Raises ServerDiedError with its last lines as soon as it ends, NotReadyError if it answers wrongly or gives no sign
    of life for `stall_s`, PortError if the socket is not the server's or is open to other machines.
    """
    import httpx

    started = clock()
    # a program that only holds a model elsewhere uses a little CPU time all the time
    signs = SignsOfLife(server.pid, server.log, clock, computes=readiness.owns_socket)
    endpoint = readiness.endpoint
    wrong = {"x-api-key": "wrong", "authorization": "Bearer wrong"}
    phase = "starting"

    def look() -> None:
        """Report and check the state between two questions to the server."""
        server.check_alive()
        on_wait(Waiting(phase, clock() - started, last_line(server.log)))
        if signs.idle_s() > readiness.stall_s:
            raise NotReadyError(
                f"The server gave no sign of life for {readiness.stall_s:.0f} s while {phase}.",
                cause=last_lines(server.log),
                log=str(server.log),
            )

    with http.client(endpoint.url, endpoint.key, limit_s=2.0) as client:
        ask = partial(client.post, wire.PATH, json=wire.one_token(endpoint.model), timeout=None)
        while True:
            try:
                if readiness.owns_socket and not endpoint.url.startswith(UNIX):
                    # before any key is sent
                    check_socket(server.pid, endpoint.port)
                check_models(client.get("/v1/models"), endpoint.model)
                if readiness.checks_key:
                    check_wrong_key(client.get("/v1/models", headers=wrong))
                phase = "waiting for the first token"
                # asked once: a server that computes may take long, one that hangs is noticed by `look`
                check_message(patiently(ask, look), wire)
                return
            except NotYet as news:
                phase = str(news)
            except httpx.TransportError:
                # not listening yet, slow, or ending: the next look shows it
                pass
            look()
            server.poll(POLL_S)


def patiently(ask: Callable[[], T], look: Callable[[], None]) -> T:
    """The answer to a request that may take long. Meanwhile `look` is called again and again; it raises to give up."""
    # it imports logging, which a plan can do without
    from concurrent.futures import Future, wait

    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:
            # also of a request whose client was closed because nothing waits for it any more
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while not wait([answer], POLL_S).done:
        look()
    return answer.result()


class SignsOfLife:
    """How long a process has neither written to its log nor used the processor."""

    #: CPU seconds between two looks that an idle server's threads use
    NOISE_S = 0.02

    def __init__(self, pid: int, log: Path, clock: Callable[[], float], *, computes: bool = True) -> None:
        self.pid, self.log, self.clock, self.computes = pid, log, clock, computes
        self.size_bytes, self.busy_s, self.since = 0, 0.0, clock()

    def idle_s(self) -> float:
        """Seconds since the last sign of life."""
        size_bytes, busy_s = self.log.stat().st_size if self.log.exists() else 0, 0.0
        if self.computes:
            with contextlib.suppress(psutil.Error):
                times = [one.cpu_times() for one in family(self.pid)]
                busy_s = sum(one.user + one.system for one in times)
        if size_bytes != self.size_bytes or busy_s - self.busy_s > self.NOISE_S:
            self.size_bytes, self.busy_s, self.since = size_bytes, busy_s, self.clock()
        return self.clock() - self.since


def family(pid: int) -> list[psutil.Process]:
    """A process and its children, so that a runner under a server counts too. Raises psutil.Error if it is gone."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def check_socket(pid: int, port: int) -> None:
    """Check that our child listens on the port, on this machine only. Raises NotYet or PortError."""
    try:
        addresses = _listening(pid, port)
        if not addresses:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) != 0:
                    raise NotYet("starting")
            # ours may have begun to listen since the first look
            addresses = _listening(pid, port)
    except psutil.AccessDenied:
        # a hardened system hides even our own child's sockets; the key check has to be enough
        return
    except psutil.Error:
        # gone between two looks: the next one reports it
        raise NotYet("starting") from None
    if not addresses:
        raise PortError(f"Port {port} is answered by another program, not by the server that was started.")
    if outside := [address for address in addresses if address not in _LOOPBACK]:
        raise PortError(f"The server listens on {outside[0]}, reachable from other machines; only 127.0.0.1 is safe.")


def _listening(pid: int, port: int) -> list[str]:
    """The addresses on which a process or one of its children listens on a port."""
    return [
        c.laddr.ip
        for one in family(pid)
        if one.status() != psutil.STATUS_ZOMBIE
        for c in one.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN and c.laddr.port == port
    ]


def holder_of(port: int) -> str:
    """The program that listens on a port, in words."""
    with contextlib.suppress(psutil.Error):
        for c in psutil.net_connections("tcp"):
            if c.pid and c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port:
                return f"{psutil.Process(c.pid).name()} (process {c.pid})"
    return "a program of another user"
