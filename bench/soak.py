"""Kills a random party of a session at a random moment, again and again: python bench/soak.py [--launches N] [--seed S]

Real llama.cpp (the wheel's), the real Claude Code on PATH, the tiny model; print mode and terminals, with and without
the parent-death signal, some sessions in a pid namespace of their own (as root), some beside a second session that must
not notice. After each: no process and no port is left, and the next launch writes its file with the prompt restored
from disk, after which no session folder is left and every kept prompt is whole. Ends with 1 at the first failure, and
prints how to repeat that one alone.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.world import World, port_is_free, wait_for

PARTIES = ("launcher", "agent", "keeper", "relay", "twin", "server", "keeper and twin", "nothing")
SIGNALS = ("KILL", "KILL", "TERM", "HUP", "INT")
#: Parties whose end a session survives.
REPLACED = ("relay", "twin", "server", "nothing")


@dataclass(frozen=True)
class Case:
    """One launch: who is killed, how and when, and around it what."""

    party: str
    signal: str
    delay_s: float
    pdeathsig: bool
    terminal: bool
    namespace: bool
    beside: bool

    @classmethod
    def of(cls, seed: str) -> Case:
        choose = random.Random(seed)
        party = choose.choice(PARTIES)
        number = "KILL" if party in ("relay", "twin", "server", "keeper and twin") else choose.choice(SIGNALS)
        return cls(
            party,
            number,
            choose.uniform(0.0, 5.0),
            choose.random() < 0.5,
            choose.random() < 0.25,
            os.geteuid() == 0 and choose.random() < 0.2,
            choose.random() < 0.2,
        )

    def __str__(self) -> str:
        words = [f"{self.party} by {self.signal} after {self.delay_s:.1f} s"]
        words += [] if self.pdeathsig else ["no parent-death signal"]
        flags = {"on a terminal": self.terminal, "in a namespace": self.namespace, "beside another": self.beside}
        return ", ".join([*words, *(word for word, is_so in flags.items() if is_so)])


class Soak:
    def __init__(self, root: Path) -> None:
        self.world = World(root)
        self.world.patience_s = 300
        self.names = 0
        found = shutil.which("claude")
        if not found:
            raise SystemExit("claude is not on PATH")
        self.world.real("claude", Path(found))
        self.launch()

    def new_name(self) -> str:
        # one digit: the tiny model has no tokens for longer numbers
        self.names = (self.names + 1) % 10
        name = f"file-{self.names}.txt"
        (self.world.project / name).unlink(missing_ok=True)
        return name

    def is_written(self, name: str) -> bool:
        file = self.world.project / name
        return file.exists() and file.read_text() == name

    def words(self, name: str) -> list[str]:
        return ["--tiny", "--", "-p", f"Create the file {name} with content: {name}"]

    def launch(self, *, warm: bool = False) -> None:
        """One launch as a user does it: its file is right, and nothing is left."""
        name = self.new_name()
        done = self.world.run(*self.words(name))
        assert self.is_written(name), done.stdout + done.stderr
        assert not warm or "tokens of the prompt were restored" in done.stderr, done.stderr
        assert wait_for(lambda: not list(self.world.sessions.glob("*")), "the session's folder to go", 20)
        for note in (self.world.home / ".cache/cclocal").glob("*/*.json"):
            if "sha256" in (told := json.loads(note.read_text())):
                state = note.with_suffix(".bin").read_bytes()
                assert hashlib.sha256(state).hexdigest() == told["sha256"], f"{note} is damaged"

    def case(self, case: Case) -> None:
        beside, other = None, ""
        if case.beside:
            other = self.new_name()
            beside = self.start(other, Case("nothing", "KILL", 0, True, False, False, False))
            wait_for(lambda: list(self.world.sessions.glob("*/session.json")), "the session beside")
        before = {path.name for path in self.world.sessions.glob("*")}
        name = self.new_name()
        child = self.start(name, case)
        time.sleep(case.delay_s)
        state = self.state(before)
        self.kill(case, child, state)
        if case.party in REPLACED and not case.terminal:
            # a server that dies before it has answered once ends the launch with words
            is_loading = case.party == "server" and child.wait(120) == 32
            assert is_loading or child.wait(120) == 0, (self.world.record / "err").read_text()
            assert is_loading or self.is_written(name), (self.world.record / "err").read_text()
        else:
            # an agent whose keeper was killed, or one on a terminal, does not end by itself
            agent = state.get("watched")
            if isinstance(agent, int) and not case.namespace and not case.terminal:
                with contextlib.suppress(OSError):
                    os.kill(agent, signal.SIGKILL)
            child.kill()
            child.wait()
        if beside:
            assert beside.wait(120) == 0
            assert self.is_written(other)
        wait_for(lambda: not self.world.leftovers(), f"the end of {self.world.leftovers()}", 30)
        # a process that is ending shows no environment any more, and may still hold its descriptors for a moment
        wait_for(lambda: not state or port_is_free(int(str(state["port"]))), "the port", 5)

    def start(self, name: str, case: Case) -> subprocess.Popen[str]:
        env = {"CCLOCAL_TEST_PDEATHSIG": "1" if case.pdeathsig else "0"}
        command = [*self.world.command, *self.words(name)]
        if case.terminal:
            # without -p: the agent takes the terminal over, and waits
            command = command[: command.index("--") + 1]
            # a pty whose other end is drained by a process that goes with it
            drain = (
                "import pexpect, sys; c = pexpect.spawn(sys.argv[1], sys.argv[2:], timeout=None); c.expect(pexpect.EOF)"
            )
            command = [sys.executable, "-c", drain, *command]
        if case.namespace:
            command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *command]
        with (self.world.record / "err").open("w") as err:
            return subprocess.Popen(
                command,
                env={**self.world.env, **env},
                cwd=self.world.project,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
                text=True,
                start_new_session=True,
            )

    def state(self, before: set[str]) -> dict[str, object]:
        """The new session's record, if it has one by now."""
        for path in self.world.sessions.glob("*/session.json"):
            if path.parent.name not in before:
                with contextlib.suppress(OSError, ValueError):
                    return dict(json.loads(path.read_text()))
        return {}

    def kill(self, case: Case, child: subprocess.Popen[str], state: dict[str, object]) -> None:
        number = signal.Signals[f"SIG{case.signal}"]
        names = {"agent": ["watched"], "keeper and twin": ["twin", "keeper"], "launcher": [], "nothing": []}
        for name in names.get(case.party, [case.party]):
            pid = state.get(name)
            # in a namespace its pid is another one here
            if isinstance(pid, int) and not case.namespace:
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
        if case.party == "launcher" or (case.namespace and case.party not in REPLACED):
            with contextlib.suppress(OSError):
                os.kill(child.pid, number)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--launches", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="repeat this one alone")
    options = parser.parse_args()
    killed: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="cclocal-soak-") as root:
        soak = Soak(Path(root))
        began = time.monotonic()
        try:
            for number in [options.only] if options.only is not None else range(options.launches):
                case = Case.of(f"{options.seed} {number}")
                print(f"{number}: {case}", flush=True)
                try:
                    soak.case(case)
                    soak.launch(warm=True)
                except Exception:
                    print(f"FAILED: python bench/soak.py --seed {options.seed} --only {number}", flush=True)
                    raise
                killed[case.party] += 1
        finally:
            soak.world.close()
    took_s = time.monotonic() - began
    parties = ", ".join(f"{party} {count}" for party, count in sorted(killed.items()))
    print(f"{sum(killed.values())} launches killed and as many after them, in {took_s:.0f} s: nothing left. {parties}")


if __name__ == "__main__":
    main()
