"""Supervises one session: its server, which it replaces when it dies, and its relay. It ends both with the watched
process, for any reason including SIGKILL.

Run as `python -I -S keeper.py FD`, standard library only, in a session of its own. FD is a socket to the launcher:
one JSON line with the session comes in, then orders; JSON lines about the server go out.

    launcher ──exec──▶ agent        the keeper watches this pid: exec keeps it, so nothing is handed over
       └─ keeper                    a pidfd (Linux) or kqueue (macOS); stops the server's whole group
            ├─ relay                between agent and server, on the listening socket that the keeper holds too
            ├─ server               waits behind a gate until its guards are in place
            └─ twin                 an `sh` on a pipe that only the keeper holds: EOF = the keeper was killed

If any one of them is killed, the server is gone within its grace period; docs/trust.md has the matrix. Where the
kernel does not end the server with its keeper (macOS), twin and relay do.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

if __name__ == "__main__":
    # -I -S: our own package is not on the path; of it only modules without other packages are imported
    sys.path.append(os.path.abspath(os.path.join(os.path.dirname(__file__), "../..")))

from cclocal.server.changes import (
    contents,
    differences,
    left_in_tmp,
    newest_conversation,
    remove_mount_points,
    report,
)
from cclocal.server.descriptors import receive, tell
from cclocal.server.guard import SHIELDED, Guarded, spawn
from cclocal.server.keep import Conversation, request_file
from cclocal.server.process import (
    AGENT_MARKER,
    LINUX,
    PR_SET_CHILD_SUBREAPER,
    Kqueue,
    Poll,
    boot_id,
    children,
    cpu_s,
    end_strays,
    machine_id,
    pid_namespace,
    prctl,
    start_of,
    strays,
)
from cclocal.server.receipt import NETWORK, read, receipt, refusals
from cclocal.turns import CONVERSATION, MODEL, NOTES, OURS, SENT_ON, STOPPED, end_of, plain_lines
from cclocal.units import how_it_ended

ANSWERS_AGAIN = "The model server answers again."
LOG_WAS_CUT = f"{OURS} the log was too long; what follows is its end"
#: Seconds between two looks at the log's size, and at the server of a request that waits.
TICK_S = 5.0
#: A server that died is started again so often within so many seconds.
MOST_RESTARTS, RESTARTS_WITHIN_S = 2, 600.0
#: Processor seconds between two looks that an idle server's threads use.
NOISE_S = 0.02
#: What engines write when an allocation fails.
MEMORY_WORDS = ("out of memory", "(failed|unable) to allocate", "cudaMalloc failed", "insufficient memory")
#: Seconds in which another machine must take a connection.
ANSWER_LIMIT_S = 3.0
#: A relay is replaced so often in a session: each was killed, or ours has a fault.
MOST_RELAYS = 20
#: Seconds that programs which the agent left in the background are given to end by themselves, then to obey TERM.
CHILDREN_LEAVE_S, CHILDREN_GRACE_S = 0.5, 2.0
#: Seconds that a save before the server's end waits for the last request to be gone, and may take in all.
SAVE_WAIT_S, SAVE_LIMIT_S = 5.0, 150.0
#: Seconds for writing a request to a file.
KEEP_LIMIT_S = 5.0
SHOW_CURSOR = b"\x1b[?25h"


class Keeper:
    """One session: its server, its relay, its folder, and the process that it is watching."""

    def __init__(self, control: int, session: dict[str, Any]) -> None:
        self.control = control
        self.session = session
        self.watched: int = session["launcher"]
        self.folder: str = session["folder"]
        self.events = Poll() if LINUX else Kqueue()
        self.state: dict[str, Any] = {}
        #: of the agent's folders: what other programs obey. What to say at the end of it, and of the network
        self.before: dict[str, bytes] = {}
        self.changes = ""
        #: the descriptor whose lock says that this session has a keeper
        self.state_lock = -1
        self.server: Guarded | None = None
        self.relay, self.relays, self.relay_control = 0, 0, -1
        #: what the launcher said: the server answers; the agent runs
        self.is_ready = self.agent_runs = False
        self.watched_ended = False
        #: the server's exit status when it will not be started again
        self.server_exit: int | None = None
        self.restarts: list[float] = []
        #: of the session's models: the first, the one that is served, and the one before that until it answers
        self.first_model = self.model = "".join(session["relay"].get("models", ())[:1])
        self.model_before = ""
        self.news: list[str] = []
        #: the server's last sign of life (log bytes, processor seconds), and how long there was none
        self.pulse, self.still_s, self.looked_at = (0, 0.0), 0.0, time.monotonic()
        self.hangs = False
        #: how often it is looked for; on Linux, and only of a server that was started for this session
        self.tick_s: float = min(TICK_S, session["stall_s"] / 4)
        self.feels_pulse: bool = LINUX and session["relay"]["is_ours"] and not session["is_tunnel"]
        #: of which the server's state is saved, if it can be
        self.kept = Conversation(session["keeps"]) if session["keeps"] else None
        #: the relay has written the conversation's last request
        self.request_kept = False
        self.oom_kills = _oom_kills()
        self.orders = b""
        #: on which a sandbox hands over its listening socket; those that were handed over
        self.door = -1
        self.inner: list[int] = []
        self.wake, self._wake_end = os.pipe()
        self.started = time.time()

    def run(self) -> None:
        """Guard the session from its first moment to its last."""
        for fd in (self.session["listener"], self.session["held_open"]):
            if fd is not None:
                os.set_inheritable(fd, False)
        for number in SHIELDED:
            signal.signal(number, signal.SIG_IGN)
        self.events.add_pid(self.watched)
        # Only now is it certain that the pid was not reused before we opened it.
        if os.getppid() != self.watched:
            return
        if LINUX:
            prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._on_term()
        last_words = b""
        try:
            self._start_or_say_why()
            self._watch()
            self._leave_terminal()
            self._compare()
            last_words = self._report()
            if not last_words:
                # A reader of the agent's stderr must not have to wait for the end of the server.
                os.dup2(1, 2)
        finally:
            self._end()
            # last, because writing may block
            with contextlib.suppress(OSError):
                os.write(2, last_words)

    def _on_term(self) -> None:
        # A pipe, because a signal that arrives between two waits must not be lost.
        os.set_blocking(self._wake_end, False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(self._wake_end)
        self.events.add_fd(self.wake)

    def _start_or_say_why(self) -> None:
        try:
            self._start()
        except OSError as error:
            # no folder, no space, no process: the launcher reports it
            self._tell({"failure": f"{error.strerror or error} ({error.filename or 'keeper'})"})
            raise SystemExit(1) from None

    # -- start --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        if self.session["socket"]:
            os.makedirs(os.path.dirname(self.session["socket"]), mode=0o700, exist_ok=True)
        self.before = contents(self.session["looks_at"], self.session["obeyed"])
        for name, content in self.session["files"].items():
            self._write(name, content)
        self.state = {
            **self.session["about"],
            "id": self.session["id"],
            "boot": boot_id(),
            "machine": machine_id(),
            "pid_namespace": pid_namespace(),
            **_party("keeper", os.getpid()),
            **_party("watched", self.watched),
        }
        self._log(f"{MODEL} {self.session['about'].get('model', '')}")
        server = self._start_server(self.session["command"]) if self.session["command"] else None
        self._start_relay()
        self._tell({"keeper": os.getpid(), **({"server": server.pid, "twin": server.twin} if server else {})})

    def _start_server(self, command: dict[str, Any]) -> Guarded:
        """Start a server's process, record it, and open its gate."""
        with contextlib.suppress(FileNotFoundError):
            # a server that was killed leaves its socket, and the next one could not bind to it
            os.unlink(self.session["socket"])
        server = self.server = Guarded(
            command["argv"],
            command["env"],
            self.session["id"],
            shell=self.session["shell"],
            stop=self.session["stop"],
            pdeathsig=self.session["pdeathsig"],
            held_open=self.session["held_open"],
            in_sandbox=self.session["in_sandbox"],
        )
        self.events.add_pid(server.pid)
        self.state |= {**_party("server", server.pid), **_party("twin", server.twin)}
        self._write_state()
        server.open_gate()
        return server

    def _start_relay(self) -> None:
        """Start a relay on the session's listening socket, and tell it which process is the server."""
        listener: int = self.session["listener"]
        ours, theirs = socket.socketpair()

        def first() -> None:
            for fd in (listener, theirs.fileno()):
                os.set_inheritable(fd, True)

        program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "relay.py")
        argv = [sys.executable, "-I", "-S", program, str(listener), str(theirs.fileno())]
        # glibc would keep the memory of large prompts in an arena per thread
        env = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
        null = os.open(os.devnull, os.O_RDONLY)
        self.relay = spawn(argv, env, null, first)
        os.close(null)
        theirs.close()
        self.relays += 1
        self.relay_control = ours.detach()
        self.events.add_pid(self.relay)
        self.events.add_fd(self.relay_control)
        self.state |= _party("relay", self.relay)
        self._write_state()
        self._tell_relay(self.session["relay"])
        self._tell_relay_of_server(again=False)
        for fd in self.inner:
            self._tell_relay({}, fd)

    def _tell_relay_of_server(self, *, again: bool) -> None:
        if self.server and self.server_exit is None:
            server = {"server": self.server.pid, "start": self.state["server_start"]}
            self._tell_relay({**server, "again": again, "model": self.model})

    def _write(self, name: str, content: str) -> None:
        path = os.path.join(self.folder, name)
        fd = os.open(path + ".part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as out:
            out.write(content)
        os.replace(path + ".part", path)

    def _write_state(self) -> None:
        """Write session.json, locked before it gets its name and for as long as this process lives.

        A session whose state file is not locked has lost its keeper. A process id could not show that to a reader in
        another pid namespace.
        """
        path = os.path.join(self.folder, "session.json")
        fd = os.open(path + ".part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, json.dumps(self.state, indent=1).encode())
        os.replace(path + ".part", path)
        if self.state_lock >= 0:
            os.close(self.state_lock)
        self.state_lock = fd

    # -- watch --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Until the watched process ends, we get TERM, or the launcher asks to stop."""
        self.events.add_fd(self.control)
        asked_at = time.monotonic()
        while True:
            ended, ready = self.events.wait(self.tick_s)
            self.watched_ended = self.watched in ended
            if self.watched_ended or self.wake in ready:
                return
            if self.server and self.server.pid in ended:
                self._server_ended(self.server)
            if self.relay in ended:
                # what its socket says now is only its end, and the next relay's may have the same number
                self._relay_ended()
            elif self.relay_control in ready:
                self._hear_relay()
            if self.door in ready:
                self._take_listener()
            if self.control in ready and not self._obey():
                return
            if self.server and self.server_exit is not None:
                self.server.let_go_of_group()
            with contextlib.suppress(OSError):
                self._cap_log()
            if self.is_ready and self.feels_pulse and time.monotonic() - asked_at >= self.tick_s:
                asked_at = time.monotonic()
                self._tell_relay({"status": True})

    def _feel_pulse(self, relay: dict[str, Any]) -> None:
        """Notice a server that was stopped or hangs: a request waits, and it neither writes nor uses the processor.

        `relay`: its status. Only time in which this process itself ran counts, so that a suspended machine is no
        hanging server.
        """
        now, stall_s = time.monotonic(), self.session["stall_s"]
        # a late answer, of a machine that was suspended, is worth two looks at most
        passed_s, self.looked_at = min(now - self.looked_at, 2 * self.tick_s), now
        if not relay["in_flight"] or not self.server:
            self.still_s = 0.0
            return
        before, self.pulse = self.pulse, (os.fstat(1).st_size, cpu_s(self.server.pid))
        is_still = self.pulse[0] == before[0] and self.pulse[1] - before[1] <= NOISE_S
        self.still_s = self.still_s + passed_s if is_still else 0.0
        if self.still_s >= stall_s and relay["silent_s"] >= stall_s:
            # its end is noticed as any other
            self.hangs, self.still_s = True, 0.0
            self.server.signal_group(signal.SIGKILL)

    def _obey(self) -> bool:
        """Carry out the launcher's orders; whether to go on."""
        part, fds = receive(self.control)
        if not part:
            # closed by exec, or by the launcher's own end, which is noticed as such
            self.events.drop_fd(self.control)
        *lines, self.orders = (self.orders + part).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if order.get("end"):
                self.agent_runs = False
                return False
            self.is_ready = self.is_ready or bool(order.get("ready"))
            self.agent_runs = self.agent_runs or bool(order.get("exec"))
            if order.get("door"):
                self.door = fds.pop()
                self.events.add_fd(self.door)
            if "mount_points" in order:
                self.state |= {"mount_points": order["mount_points"], "tmp": order["tmp"]}
                self._write_state()
            if restore := order.get("restore"):
                self._restore_later(restore)
            if self.kept and "kept" in order:
                self.kept.begin(order["kept"])
        return True

    def _restore_later(self, requests: list[list[str]]) -> None:
        """Have a server that takes this one's place be asked this first."""
        self.session["relay"]["restore"] = requests
        self._tell_relay({"restore": requests})

    def _take_listener(self) -> None:
        """Give the relay the listening socket of a sandbox, which only then starts the agent."""
        _, fds = receive(self.door)
        self.events.drop_fd(self.door)
        for fd in fds:
            self.inner.append(fd)
            self._tell_relay({}, fd)
        with contextlib.suppress(OSError):
            os.write(self.door, b"." * len(fds))
        os.close(self.door)
        self.door = -1

    def _server_ended(self, server: Guarded) -> None:
        """Start the server again, if the session uses it already and it has not died too often."""
        # blocking: the end may be reported before the status is there
        server.reap(wait=True)
        self._tell_relay({"down": True})
        how = how_it_ended(server.exit or 0)
        if self.hangs:
            how = f"it showed no sign of life for {self.session['stall_s']:.0f} s"
        why = "" if self.hangs else self._cause(server.exit or 0)
        if self.model_before:
            last = "".join(f" {line}" for line in self._last_lines(1))
            failed, before, self.model_before = self.model, self.model_before, ""
            words = f"{failed} could not be loaded ({how}{why}).{last}"
            self._note(words)
            self._tell_relay({"failed": {failed: words}})
            self._change_model(before)
            return
        if self.is_ready:
            self.hangs, words = False, ""
            now = time.monotonic()
            self.restarts = [then for then in self.restarts if now - then < RESTARTS_WITHIN_S]
            if len(self.restarts) < MOST_RESTARTS:
                again = self.session["less_memory" if why and self.restarts else "command"]
                if lost := [worker for worker in self.session["workers"] if not _answers(worker)]:
                    left = ",".join(worker for worker in self.session["workers"] if worker not in lost)
                    why = f"; no answer from {' and '.join(lost)}"
                    fewer = self.session["fewer"].get(left, {"command": None, "words": ""})
                    again, words = fewer["command"], fewer["words"]
                self.restarts.append(now)
                if again:
                    self._note(f"{STOPPED} ({how}{why}) and is started again.{words}")
                    self._end_server()
                    with contextlib.suppress(OSError):
                        self._start_server(again)
                        self._tell_relay_of_server(again=True)
                        return
            self._note(f"{STOPPED} ({how}{why}) and is not started again.{words}")
            self._tell_relay({"gone": f"{STOPPED} ({how}{why}).{words} End this session and start it again."})
        self.server_exit = server.exit
        server.let_go_of_group()
        self._tell({"server_exit": self.server_exit, "why": why})
        with contextlib.suppress(OSError):
            self.state["server_exit"] = self.server_exit
            self._write_state()

    def _change_model(self, model: str) -> None:
        """Serve another of the session's models: they take turns in memory."""
        turn = self.session["turns"].get(model)
        if not turn or self.server_exit is not None:
            return
        self._save_and_wait()
        self._log(f"{MODEL} {turn['word']}")
        self._log(f"Loading {model}, in the place of {self.model}.")
        self.model = model
        self.session |= turn["commands"]
        self.state["model"] = turn["word"]
        self._tell_relay({"down": True})
        self._end_server()
        with contextlib.suppress(OSError):
            self._start_server(self.session["command"])
            self._tell_relay_of_server(again=True)

    def _cause(self, code: int) -> str:
        """Why a server died, as words to be added to how it ended; empty if that is not known."""
        kills = _oom_kills()
        was_killed_for_memory = code == -signal.SIGKILL and kills > self.oom_kills
        self.oom_kills = kills
        if was_killed_for_memory:
            return ", by the kernel, because memory ran out"
        lines = self._last_lines(20)
        if any(re.search(pattern, line, re.IGNORECASE) for pattern in MEMORY_WORDS for line in lines):
            return ", out of memory"
        return ""

    def _relay_ended(self) -> None:
        with contextlib.suppress(KeyError, OSError):
            # dropped already if the socket's end was noticed first
            self.events.drop_fd(self.relay_control)
        os.close(self.relay_control)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.relay, os.WNOHANG)
        self.relay_control = self.relay = -1
        if self.kept:
            self.kept.give_up()
        if self.relays < MOST_RELAYS:
            self._note("The relay was killed and is started again.")
            with contextlib.suppress(OSError):
                self._start_relay()

    def _hear_relay(self) -> bool:
        """Take the relay's messages; False at its end."""
        text = b""
        with contextlib.suppress(OSError):
            text = os.read(self.relay_control, 4096)
        if not text:
            with contextlib.suppress(KeyError, OSError):
                self.events.drop_fd(self.relay_control)
        for line in text.splitlines():
            try:
                message = json.loads(line)
            except ValueError:
                # of a relay that was killed in the middle of it
                continue
            if "wants" in message:
                self.model_before = self.model
                self._change_model(message["wants"])
            elif "up" in message and self.model_before:
                self.model_before = ""
            elif "up" in message and self.restarts:
                self._note(ANSWERS_AGAIN)
            if "in_flight" in message:
                self._feel_pulse(message)
                if self.kept and self.agent_runs and self.model == self.first_model and self.kept.is_due(message):
                    self._save(wait_s=0.0)
            if "waits" in message:
                self._note(f"{message['waits']} Requests wait for it." if message["waits"] else ANSWERS_AGAIN)
            self.request_kept = self.request_kept or "kept" in message
            if self.kept and "saved" in message:
                words, restore = self.kept.saved(message["saved"], message["took_s"])
                if words:
                    self._log(words)
                    self._restore_later([restore])
        return bool(text)

    def _save(self, wait_s: float) -> None:
        """Have the conversation's state saved, if it has an id."""
        conversation = newest_conversation(self.session["conversations"], self.started)
        if self.kept and conversation:
            self._tell_relay({"save": self.kept.save(conversation), "wait_s": wait_s})

    def _save_and_wait(self) -> None:
        """The same before the server is ended, when the agent has ended or changes the model."""
        is_there = self.server and self.server_exit is None and self.relay > 0
        if not (self.kept and self.agent_runs and self.is_ready and is_there and self.model == self.first_model):
            return
        self.kept.learn()
        if not self.kept.saving and self.kept.is_worth_it():
            self._save(wait_s=SAVE_WAIT_S)
        kept = self.kept
        self._hear_relay_while(lambda: bool(kept.saving), SAVE_LIMIT_S)
        self.kept.carry(newest_conversation(self.session["conversations"], self.started))

    def _keep_request(self) -> None:
        """Have the relay write the conversation's last request, if it has an id: the next session may read it ahead."""
        wanted = self.session["requests"]
        found = newest_conversation(self.session["conversations"], self.started) if self.agent_runs else ""
        if not (wanted and found and self.relay > 0):
            return
        note = {**wanted["note"], "conversation": found}
        self._tell_relay({"keep": request_file(wanted["folder"], note), "note": note})
        self._hear_relay_while(lambda: not self.request_kept, KEEP_LIMIT_S)

    def _hear_relay_while(self, is_awaited: Callable[[], bool], limit_s: float) -> None:
        """Take the relay's messages until what is awaited is there, the relay has ended, or the time is over."""
        deadline = time.monotonic() + limit_s
        while is_awaited() and time.monotonic() < deadline:
            if select.select([self.relay_control], [], [], 0.2)[0] and not self._hear_relay():
                break

    def _note(self, text: str) -> None:
        """Write what happened to the log, for the status line and `cclocal stats`, and tell a launcher that waits."""
        self.news.append(f"{time.strftime('%H:%M:%S')} {text}")
        self._log(text)
        self._tell({"news": text})

    def _tell(self, message: dict[str, Any]) -> None:
        tell(self.control, message)

    def _tell_relay(self, message: dict[str, Any], *fds: int) -> None:
        tell(self.relay_control, message, *fds)

    def _cap_log(self) -> None:
        """Keep the log's end: an agent left running for weeks must not fill the disk."""
        cap = self.session["log_cap_bytes"]
        if os.fstat(1).st_size <= cap:
            return
        with open(self.session["log"], "rb") as log:
            log.seek(-cap // 4, os.SEEK_END)
            tail = log.read()
        # the server's descriptor appends, so it goes on at the new end
        os.ftruncate(1, 0)
        os.write(1, LOG_WAS_CUT.encode() + b"\n" + tail)

    def _last_lines(self, most: int) -> list[str]:
        """The last lines of the log that are not ours."""
        lines = plain_lines(end_of(self.session["log"], 16384))
        return [line for line in lines if not line.startswith(OURS)][-most:]

    def _log(self, words: str) -> None:
        """Write a line of ours to the log."""
        with contextlib.suppress(OSError):
            os.write(1, f"{OURS} {time.strftime('%H:%M:%S')} {words}\n".encode())

    def _leave_terminal(self) -> None:
        """Reset what the agent, or a launcher killed under its live line, left switched on in the terminal.

        Say there how to go on with the conversation, whose id goes into the log.
        """
        found = newest_conversation(self.session["conversations"], self.started) if self.agent_runs else ""
        if found:
            self._log(f"{CONVERSATION} {found}")
        if self.session["tty"] and self.watched_ended:
            reset = self.session["terminal_reset"].encode() if self.agent_runs else SHOW_CURSOR
            words = self.session["farewell"].replace("{id}", found).replace("\n", "\r\n") if found else ""
            # a shell may have written its prompt already: in the place of that one, and then it writes it again
            _write_to_terminal(self.session["tty"], reset + (f"\r\x1b[K{words}" if words else "").encode())
            shell, start = self.session["parent"]
            if words and start_of(shell) == start:
                with contextlib.suppress(OSError):
                    os.kill(shell, signal.SIGWINCH)

    def _compare(self) -> None:
        """What to say at the end: of the agent's folders, without the sandbox's mount points, its /tmp, its network."""
        if mounted := self.state.pop("mount_points", ()):
            # before the other sessions' are looked at: of two that end at once, at least one removes what both use
            with contextlib.suppress(OSError):
                self._write_state()
            remove_mount_points(mounted, self.folder)
        folders = self.session["looks_at"]
        seen = read(os.path.join(self.folder, NETWORK))
        words = receipt(self.session["level"], seen) if self.agent_runs and self.session["level"] else ""
        if words:
            self._log(words)
            self.changes = refusals(seen) + (f"\n• {words}\n" if self.session["receipt"] else "")
        if "tmp" in self.state:
            self.changes += left_in_tmp(self.state["tmp"])
        self._take_notes()
        if found := differences(self.before, contents(folders, self.session["obeyed"])):
            self.changes += report(found, self.before, folders[0], self.session["shelf"])

    def _take_notes(self) -> None:
        """Put into the log what a program of the agent's noted in its sandbox. The agent can write there too."""
        for line in plain_lines(end_of(os.path.join(self.folder, NOTES), 16384)):
            if re.fullmatch(rf"{re.escape(OURS)} \d\d:\d\d:\d\d {re.escape(SENT_ON)}", line):
                with contextlib.suppress(OSError):
                    os.write(1, f"{line}\n".encode())

    def _report(self) -> bytes:
        """What to print after the agent: what it changed of what other programs obey, and how its server died."""
        if not self.agent_runs or not (self.news or self.changes):
            return b""
        words = self.changes + ("".join(f"\n• {line}" for line in self.news) + "\n" if self.news else "")
        if self.server_exit is not None:
            last = "".join(f"    {line}\n" for line in self._last_lines(3))
            how = how_it_ended(self.server_exit)
            words += f"✗ {STOPPED} during the session ({how}).\n{last}{self.session['advice']}"
        return words.encode("utf-8", "replace")

    # -- end ----------------------------------------------------------------------------------------------------

    def _end_server(self) -> None:
        """End the server, what it left behind, and its twin's watch."""
        if not self.server:
            return
        self.server.end()
        # Processes that left the group are our children now (Linux) or carry our marker.
        for _ in range(20):
            left = {*children(), *strays(self.session["id"])} - {self.server.twin, self.relay}
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            self.server.reap()
            if not left:
                break
            time.sleep(0.02)
        self.server.release_twin()

    def _end_children(self) -> None:
        """End what the agent's commands left in the background, once the agent itself has ended."""
        # first the time that the agent's own helpers need to follow it
        if not self.watched_ended or not self._children_after(CHILDREN_LEAVE_S):
            return
        found = end_strays(self.session["id"], AGENT_MARKER, signal.SIGTERM)
        what = "1 program was" if found == 1 else f"{found} programs were"
        self._note(f"{what} left running by the agent, and ended; --keep-children keeps such programs.")
        if self._children_after(CHILDREN_GRACE_S):
            end_strays(self.session["id"], AGENT_MARKER)

    def _children_after(self, most_s: float) -> bool:
        """Whether processes with the agent's mark are still there after so many seconds at most."""
        deadline = time.monotonic() + most_s
        while any(True for _ in strays(self.session["id"], AGENT_MARKER)):
            if time.monotonic() >= deadline:
                return True
            time.sleep(0.05)
        return False

    def _end(self) -> None:
        self._end_children()
        self._save_and_wait()
        self._keep_request()
        self._end_server()
        if self.relay > 0:
            self._tell_relay({"down": True})
            os.close(self.relay_control)
            with contextlib.suppress(OSError):
                os.kill(self.relay, signal.SIGKILL)
                os.waitpid(self.relay, 0)
        self._remove_instructions()
        import shutil

        shutil.rmtree(self.folder, ignore_errors=True)
        self._tell({"ended": True})

    def _remove_instructions(self) -> None:
        """Remove what the relay had saved for the slots of this server (server/slots.py)."""
        folder = self.session["relay"].get("slots", {}).get("folder")
        with contextlib.suppress(OSError):
            for name in os.listdir(folder) if folder else ():
                if name.startswith(self.session["id"]):
                    os.unlink(os.path.join(folder, name))


def _party(name: str, pid: int) -> dict[str, Any]:
    """What the state file says of a process: pid and start, which together are its identity."""
    return {name: pid, f"{name}_start": start_of(pid)}


def _answers(worker: str) -> bool:
    """Whether another machine takes a connection."""
    host, _, port = worker.rpartition(":")
    with contextlib.suppress(OSError):
        socket.create_connection((host, int(port)), ANSWER_LIMIT_S).close()
        return True
    return False


def _oom_kills() -> int:
    """How many processes the kernel of this machine has ended because memory ran out (Linux)."""
    with contextlib.suppress(OSError), open("/proc/vmstat") as counters:
        for line in counters:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _write_to_terminal(path: str, data: bytes) -> None:
    with contextlib.suppress(OSError):
        # O_NOCTTY: it must not become our controlling terminal. O_NONBLOCK: Ctrl-S must not block us.
        fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        for _ in range(50):
            try:
                os.write(fd, data)
                break
            except BlockingIOError:
                # the shell is writing its prompt at this moment
                time.sleep(0.01)
        os.close(fd)


def main(argv: list[str]) -> None:
    """Read the session from the socket, then keep it."""
    control = int(argv[1])
    os.set_inheritable(control, False)
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(control, 65536)
        if not part:
            return
        line += part
    Keeper(control, json.loads(line)).run()


if __name__ == "__main__":
    main(sys.argv)
