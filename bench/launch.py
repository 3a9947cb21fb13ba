"""From the command to the agent: python bench/launch.py [RUNS] [--llama-cpp FOLDER] [--layers N]

cclocal against what one would do by hand: start llama-server with the same flags, ask /health every 100 ms until it
answers 200, start the agent. Both with a model that is on disk: the tiny one, and 1.2 GB of random weights. Printed:
medians in seconds, their difference and their ratio. Aim: at most 0.5 s more, and a ratio of at most 1.1 once the load
takes over five seconds. cclocal does more in that time: it plans, proves that the server is its own, takes one token
from the model, and sets up what ends the server later.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.memory import a_gigabyte, find
from bench.sparse import write
from cclocal import tiny
from cclocal.server.start import free_port
from tests.world import World


def prepared(root: Path, server: Path) -> World:
    """A world whose agent notes when it was started, and ends."""
    world = World(root)
    world.real("llama-server", server)
    agent = world.bin / "claude"
    # no interpreter to start: the shell's first act is the stamp
    agent.write_text(f'#!/bin/sh\ndate +%s.%N >{world.record}/agent\n[ "$1" = --version ] && echo "2.1.331 (x)"\n')
    agent.chmod(0o755)
    return world


def by_cclocal(world: World, model: Path) -> float:
    began = time.time()
    done = world.run("--model", str(model), "--ctx", "32768", "--", "-p", "x")
    assert done.returncode in (0, 1), done.stderr
    return float((world.record / "agent").read_text()) - began


def flags_of(world: World, model: Path) -> list[str]:
    """What cclocal starts the server with."""
    done = world.run("--model", str(model), "--ctx", "32768", "--dry-run", "--json")
    return [str(word) for word in json.loads(done.stdout)["server"]["argv"]]


def by_hand(world: World, words: list[str]) -> float:
    port = free_port()
    key = world.root / "key"
    key.write_text("key\n")
    filled = [word.replace("<free port>", str(port)).replace("<session folder>/key", str(key)) for word in words]
    began = time.time()
    with subprocess.Popen(filled, env=world.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            while True:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as reply:
                    if reply.status == 200:
                        break
                time.sleep(0.1)
            subprocess.run([str(world.bin / "claude"), "-p", "x"], check=False)
        finally:
            server.kill()
    return float((world.record / "agent").read_text()) - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="?", type=int, default=7)
    parser.add_argument("--llama-cpp", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--layers", type=int, default=24, help="24 = 1.2 GB; 240 = 11 GB, which takes over five seconds"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        world = prepared(root / "world", find("llama-server", options.llama_cpp))
        little, large = root / "tiny.gguf", root / "gigabyte.gguf"
        little.write_bytes(tiny.gguf())
        write(a_gigabyte(options.layers), large, random_weights=True)
        for model in (little, large):
            words = flags_of(world, model)
            # once without counting: what is read from disk the first time is nobody's fault
            by_cclocal(world, model)
            ours = statistics.median(by_cclocal(world, model) for _ in range(options.runs))
            theirs = statistics.median(by_hand(world, words) for _ in range(options.runs))
            print(
                f"{model.stem:9} cclocal {ours:.2f} s, by hand {theirs:.2f} s: "
                f"{ours - theirs:+.2f} s, ratio {ours / theirs:.2f}",
                flush=True,
            )
        world.close()


if __name__ == "__main__":
    main()
