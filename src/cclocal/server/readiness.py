"""Is it our server, and can it answer? The checks between "started" and "an agent may rely on it"."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cclocal.command import Readiness
from cclocal.errors import NotReadyError, PortError, ServerDiedError
from cclocal.server.keeper import how_it_ended, printable
from cclocal.server.start import Held

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

#: How often a server that is not ready is asked again: often enough not to be felt, seldom enough not to be load.
POLL_S = 0.05
_LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the user sees while the server loads: the phase, the seconds, and what its own log says last."""

    phase: str
    seconds: float
    log_line: str


class NotYet(Exception):  # noqa: N818 - no error, an answer: ask again
    """The server is not ready yet; the text is the phase."""


def check_models(reply: httpx.Response, model: str) -> None:
    """The answer of the models' list to the right key. Raises NotYet, or NotReadyError if it is not our server."""
    if reply.status_code in (502, 503, 504):
        raise NotYet("loading the model")
    if reply.status_code in (401, 403):
        raise NotReadyError("The server refuses the session's own key, so it is not the one that was started.")
    if reply.status_code != 200:
        raise NotReadyError(f"The server answered {reply.status_code} to {reply.request.url.path}.")
    try:
        ids = [entry["id"] for entry in reply.json()["data"]]
    except (ValueError, KeyError, TypeError):
        raise NotReadyError(
            "Something answers on the session's port, but it is no model server.", cause=[reply.text[:200]]
        ) from None
    # Ollama lists every name with its tag
    if not {model, f"{model}:latest"} & set(ids):
        raise NotReadyError(f"The server has {', '.join(map(str, ids)) or 'no model'}, not {model}.")


def check_health(reply: httpx.Response) -> None:
    """The answer of a server that tells of its model. Raises NotYet, or NotReadyError if it failed for good."""
    try:
        told = reply.json()
        status, loaded = told["status"], told["model_loaded"]
    except (ValueError, KeyError, TypeError):
        raise NotReadyError(
            "Something answers on the session's port, but it is not the server that was started.",
            cause=[reply.text[:200]],
        ) from None
    if status != "healthy":
        raise NotReadyError(f"The server says that it is {status}.", cause=[reply.text[:200]])
    if loaded is not True:
        raise NotYet("loading the model")


def check_wrong_key(reply: httpx.Response) -> None:
    """The answer to a wrong key. Raises NotReadyError unless it is a refusal."""
    if reply.status_code not in (401, 403):
        raise NotReadyError(
            f"The server lets anybody in: a wrong key was answered with {reply.status_code} instead of 401."
        )


def check_message(reply: httpx.Response) -> None:
    """The answer to a 1-token message. Raises NotYet while the model loads, NotReadyError if it cannot answer."""
    if reply.status_code == 503:
        raise NotYet("loading the model")
    try:
        body = reply.json()
        answered = reply.status_code == 200 and body["type"] == "message" and "content" in body
    except (ValueError, KeyError, TypeError):
        answered = False
    if not answered:
        raise NotReadyError(
            f"The server is up but cannot answer a message (status {reply.status_code}).",
            cause=[reply.text[:300]],
        )


def wait_until_ready(
    held: Held,
    readiness: Readiness,
    on_wait: Callable[[Waiting], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> float:
    """Return, with the seconds it took, when the server has shown everything in `readiness`.

    Raises ServerDiedError with its last lines as soon as the child ends, NotReadyError if it answers wrongly or
    gives no sign of life for `stall_s`, PortError if the socket is not the child's or is open to other machines.
    """
    import httpx

    started = clock()
    # one that only holds a model elsewhere works a little all the time
    signs = SignsOfLife(held.server_pid, held.log, clock, computes=readiness.owns_socket)
    endpoint = readiness.endpoint
    ours = {"x-api-key": endpoint.key, "authorization": f"Bearer {endpoint.key}"}
    wrong = {"x-api-key": "wrong", "authorization": "Bearer wrong"}
    phase = "starting"

    def look() -> None:
        """One look at how things are, between two questions to the server."""
        check_alive(held)
        on_wait(Waiting(phase, clock() - started, last_line(held.log)))
        if signs.idle_s() > readiness.stall_s:
            raise NotReadyError(
                f"The server gave no sign of life for {readiness.stall_s:.0f} s while {phase}.",
                cause=last_lines(held.log),
                log=str(held.log),
            )

    # trust_env=False: a proxy or a .netrc of the user's has no business here
    with httpx.Client(base_url=endpoint.url, trust_env=False, timeout=2.0) as client:
        while True:
            try:
                if readiness.owns_socket:
                    # before any key is sent anywhere
                    check_socket(held.server_pid, endpoint.port)
                if readiness.health_path:
                    check_health(client.get(readiness.health_path))
                check_models(client.get(readiness.models_path, headers=ours), endpoint.model)
                if readiness.checks_key:
                    check_wrong_key(client.get(readiness.models_path, headers=wrong))
                phase = "waiting for the first token"
                check_message(_first_token(client, endpoint.model, ours, look))
                return clock() - started
            except NotYet as news:
                phase = str(news)
            except httpx.TransportError:
                # refused: not listening yet; slow: ask again; cut off: it is dying, which the next look tells
                pass
            look()
            held.poll(POLL_S)


def _first_token(client: httpx.Client, model: str, headers: dict[str, str], look: Callable[[], None]) -> httpx.Response:
    """Ask for one token, once: a server that computes may take its time, one that hangs is told by `look`."""
    body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}
    return patiently(lambda: client.post("/v1/messages", json=body, headers=headers, timeout=None), look)


def patiently(ask: Callable[[], T], look: Callable[[], None]) -> T:
    """The answer to a request that may take its time; meanwhile `look` looks how things are, and raises to end it."""
    answers: queue.SimpleQueue[T | Exception] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put(ask())
        except Exception as error:
            # also what happens to a request whose client was closed because nobody waits any more
            answers.put(error)

    threading.Thread(target=run, daemon=True).start()
    while True:
        with contextlib.suppress(queue.Empty):
            answer = answers.get(timeout=POLL_S)
            if isinstance(answer, Exception):
                raise answer
            return answer
        look()


class SignsOfLife:
    """How long a process has neither written to its log nor used the processor."""

    #: less CPU time than this between two looks is what an idle server's threads use
    NOISE_S = 0.02

    def __init__(self, pid: int, log: Path, clock: Callable[[], float], *, computes: bool = True) -> None:
        self.pid, self.log, self.clock, self.computes = pid, log, clock, computes
        self.last = (0, 0.0)
        self.since = clock()

    def idle_s(self) -> float:
        """Seconds since the last sign of life."""
        now = (self.log.stat().st_size if self.log.exists() else 0, _cpu_s(self.pid) if self.computes else 0.0)
        if now[0] != self.last[0] or now[1] - self.last[1] > self.NOISE_S:
            self.last, self.since = now, self.clock()
        return self.clock() - self.since


def _cpu_s(pid: int) -> float:
    """Processor time of a process and its children, so that a runner under a server counts too."""
    import psutil

    total = 0.0
    try:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            times = one.cpu_times()
            total += times.user + times.system
    except psutil.Error:
        pass
    return total


def check_alive(held: Held) -> None:
    """Raises ServerDiedError, with its last lines, if the server has ended."""
    code = held.poll()
    if code is None:
        return
    raise ServerDiedError(
        f"The server stopped while starting ({how_it_ended(code)}).", cause=last_lines(held.log), log=str(held.log)
    )


def check_socket(pid: int, port: int) -> None:
    """The port must be listened on by our child, on this machine only. Raises NotYet or PortError."""
    import psutil

    try:
        addresses = _listening(pid, port)
        if not addresses:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) != 0:
                    raise NotYet("starting")
            # somebody listens; ours may have begun to since the first look
            addresses = _listening(pid, port)
    except psutil.AccessDenied:
        # a hardened system hides even our own child's sockets; the key check has to do
        return
    except psutil.Error:
        # gone between two looks: the next one says so
        raise NotYet("starting") from None
    if not addresses:
        raise PortError(f"Port {port} is answered by another program, not by the server that was started.")
    if outside := [address for address in addresses if address not in _LOOPBACK]:
        raise PortError(f"The server listens on {outside[0]}, open to other machines; it may only listen on 127.0.0.1.")


def _listening(pid: int, port: int) -> list[str]:
    """The addresses on which a process or one of its children listens on a port."""
    import psutil

    process = psutil.Process(pid)
    return [
        c.laddr.ip
        for one in (process, *process.children(recursive=True))
        if one.status() != psutil.STATUS_ZOMBIE
        for c in one.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN and c.laddr.port == port
    ]


def last_lines(log: Path, count: int = 3) -> tuple[str, ...]:
    """The last lines of a log that say something, the cause of a crash before whatever follows it."""
    lines = [line for line in _tail(log) if line]
    words = ("error", "exception", "failed", "abort", "cannot", "unable")
    causes = [line for line in lines[-12:] if any(word in line.lower() for word in words)]
    if causes:
        # the first complaint is nearest to the cause, the last to the end
        return tuple(dict.fromkeys((causes[0], causes[-1], lines[-1])))
    return tuple(lines[-count:])


def last_line(log: Path) -> str:
    """The last line of a log, or nothing."""
    return next((line for line in reversed(_tail(log)) if line), "")


def _tail(log: Path, size_bytes: int = 8192) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - size_bytes))
            return [printable(line) for line in file.read().decode("utf-8", "replace").splitlines()]
    except OSError:
        return []


def holder_of(port: int) -> str:
    """Who listens on a port, in words."""
    import psutil

    try:
        listeners: Iterable[int | None] = {
            c.pid
            for c in psutil.net_connections("tcp")
            if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port
        }
        for pid in listeners:
            if pid:
                return f"{psutil.Process(pid).name()} (process {pid})"
    except psutil.Error:
        pass
    return "a program of another user"
