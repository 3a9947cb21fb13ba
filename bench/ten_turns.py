"""Conversations of ten turns whose server is killed once at a random moment: python bench/ten_turns.py ENGINE…

ENGINE: wheel, binary, vllm-mlx, ollama (by default those that are there; CI=true looks for all four). In each turn the
real Claude Code runs a command that writes a file; a session passes if all ten files are right and it ended with 0.
--sessions N of each engine, --seed S. --down-s SECONDS: a killed llama-server needs so long to load again (binary
only). Ends with 1 if one does not pass.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.conftest import BACKENDS
from tests.talk import talk
from tests.world import World, wait_for

TURNS = 10


def slow_after_the_first(world: World, program: Path, down_s: float) -> None:
    """A llama-server that needs so long to load from its second start of a session on."""
    (world.bin / "llama-server").write_text(
        f'#!/bin/sh\ncase "$*" in *--port*|*--host*) if [ -e {world.root}/begun ]; then sleep {down_s}; fi\n'
        f'touch {world.root}/begun;; esac\nexec "{program}" "$@"\n'
    )
    (world.bin / "llama-server").chmod(0o755)


def session(world: World, backend: str, seed: str) -> tuple[str, float]:
    """One conversation; returns at which moment its server was killed, and the seconds that its longest turn took."""
    choose = random.Random(seed)
    at_turn, delay_s = choose.randrange(TURNS), choose.uniform(0.0, 4.0)
    longest_s = 0.0
    with talk(world, "--tiny", "--backend", backend, "--cold") as conversation:
        for number in range(TURNS):
            if number == at_turn:
                pid = int(wait_for(world.state, "the session")["server"])
                killer = threading.Timer(delay_s, os.kill, (pid, signal.SIGKILL))
                killer.start()
            began = time.monotonic()
            conversation.say(f"Run the command: echo {number} > {number}.txt")
            longest_s = max(longest_s, time.monotonic() - began)
        killer.join()
    for number in range(TURNS):
        assert (world.project / f"{number}.txt").read_text() == f"{number}\n", f"{number}.txt is wrong"
    return f"killed {delay_s:.1f} s into turn {at_turn}", longest_s


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("engines", nargs="*", default=list(BACKENDS))
    parser.add_argument("--sessions", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--down-s", type=float, default=0.0)
    options = parser.parse_args()
    claude = shutil.which("claude")
    if not claude:
        raise SystemExit("claude is not on PATH")
    failed = 0
    for name in options.engines:
        backend, program, target = BACKENDS[name]
        for number in range(options.sessions):
            with tempfile.TemporaryDirectory(prefix="cclocal-turns-") as root:
                world = World(Path(root))
                world.patience_s = 1800
                world.real("claude", Path(claude))
                world.real(program, target)
                if options.down_s:
                    (world.bin / "llama-server").unlink()
                    slow_after_the_first(world, Path(str(target)), options.down_s)
                began = time.monotonic()
                try:
                    how, longest_s = session(world, backend, f"{options.seed} {number}")
                    took_s = time.monotonic() - began
                    # the keeper says what happened when everything has ended
                    world.assert_clean()
                    told = (world.record / "err").read_text()
                    assert told.count("is started again.") == 1, told
                    print(
                        f"{name} {number}: {how}, all right, {took_s:.0f} s, longest turn {longest_s:.0f} s", flush=True
                    )
                except Exception as error:
                    failed += 1
                    print(f"{name} {number}: FAILED {type(error).__name__}: {error}", flush=True)
                finally:
                    world.close()
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
