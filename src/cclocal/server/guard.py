"""One server process under guard: it starts behind a gate, in a group of its own, with a twin that survives the keeper.

Standard library only, because the keeper runs without any other package.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence

from cclocal.server.process import LINUX, MARKER, ask_for_parent_death

#: What the guards themselves do not react to; the programs that they start do.
SHIELDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGPIPE, signal.SIGTTOU)
#: How much likelier than other processes the kernel ends a server when memory runs out (0 to 1000).
OOM_SCORE = "800"

# $0 = the server's process group, $1 = seconds of grace, $2 = the session's marker. Written for dash and bash:
# `kill -TERM -- -PGID` is an error in dash. /proc exists on Linux only; elsewhere the next start ends strays.
TWIN = """
read go && exit 0
kill -TERM -$0 2>/dev/null
n=0
while kill -0 -$0 2>/dev/null && [ $n -lt $(($1 * 10)) ]; do sleep .1; n=$((n + 1)); done
kill -KILL -$0 2>/dev/null
for e in /proc/[0-9]*/environ; do
  grep -qs "$2" "$e" || continue
  p=${e#/proc/}
  kill -KILL "${p%/environ}" 2>/dev/null
done
"""
GATE = 'read go || exit 125; exec "$@" </dev/null'


class Guarded:
    """A server's process, its group and its twin. `exit` is its exit status once it was reaped.

    shell: an absolute path. stop: signals with the seconds that each is given. pdeathsig: have the kernel end the
    server if this process dies. held_open: a descriptor that the twin keeps open. in_sandbox: the program is
    bubblewrap, whose exit status for a server that was killed by signal N is 128 + N.
    """

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        session: str,
        *,
        shell: str,
        stop: Sequence[tuple[str, float]],
        pdeathsig: bool,
        held_open: int | None,
        in_sandbox: bool,
    ) -> None:
        self.stop, self.in_sandbox = stop, in_sandbox
        self.exit: int | None = None
        self.group_is_gone = False
        gate, self._go = os.pipe()
        held, self._twin_pipe = os.pipe()

        def first() -> None:
            if pdeathsig:
                ask_for_parent_death()
            if LINUX:
                with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
                    score.write(OOM_SCORE)

        self.pid = spawn([shell, "-c", GATE, "gate", *argv], {**env, MARKER: session}, gate, first)
        grace_s = sum(seconds for _, seconds in stop)
        self.twin = spawn(
            [shell, "-c", TWIN, str(self.pid), str(int(grace_s) or 1), f"{MARKER}={session}"],
            dict(os.environ),
            held,
            # the twin ends the server if the keeper is killed; a raised wired limit must last until then
            None if held_open is None else lambda: os.set_inheritable(held_open, True),
        )
        os.close(gate)
        os.close(held)

    def open_gate(self) -> None:
        """Let the server's program start: its guards are in place."""
        os.write(self._go, b"go\n")
        os.close(self._go)

    def reap(self, *, wait: bool = False) -> None:
        """Collect the exit statuses of ended children; `wait`: until the server's is there."""
        with contextlib.suppress(ChildProcessError):
            if wait and self.exit is None:
                self.exit = self._exit_of(os.waitpid(self.pid, 0)[1])
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.pid:
                    self.exit = self._exit_of(status)

    def _exit_of(self, status: int) -> int:
        code = os.waitstatus_to_exitcode(status)
        return 128 - code if self.in_sandbox and code > 128 else code

    def signal_group(self, number: int) -> bool:
        """Signal the server's group; 0 only asks whether it exists. Returns whether it does."""
        if self.group_is_gone:
            return False
        self.reap()
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            # macOS answers PermissionError for a group of zombies
            if self.exit is not None:
                self.group_is_gone = True
                return False
            # just started: no group yet
            with contextlib.suppress(OSError):
                os.kill(self.pid, number)
        return True

    def end(self) -> None:
        """Stop the group: each signal in turn, with its time."""
        for name, grace_s in self.stop:
            if not self.signal_group(signal.Signals[f"SIG{name}"]):
                break
            deadline = time.monotonic() + grace_s
            while self.signal_group(0) and time.monotonic() < deadline:
                time.sleep(0.01)

    def release_twin(self) -> None:
        """Let the twin go: there is nothing left for it to end."""
        if self._twin_pipe >= 0:
            with contextlib.suppress(OSError):
                os.write(self._twin_pipe, b"go\n")
            os.close(self._twin_pipe)
            self._twin_pipe = -1

    def let_go_of_group(self) -> None:
        """Once the process group is empty its id may be reused, so neither we nor the twin signal it again."""
        if not self.signal_group(0):
            self.release_twin()


def spawn(argv: Sequence[str], env: Mapping[str, str], stdin: int, first: Callable[[], None] | None = None) -> int:
    """Start a program in a session of its own, with default signals and our log as its output. Returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        for number in (*SHIELDED, signal.SIGTERM, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        if first:
            first()
        os.dup2(stdin, 0)
        os.dup2(1, 2)
        os.execve(argv[0], list(argv), dict(env))
    finally:
        os._exit(127)
