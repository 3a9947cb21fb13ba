"""Several agents at once on one server: python bench/team.py [--quick] [--vllm] [--agents 1,2,4,8]

Real Claude Codes, each in a folder of its own, each writing a file in two turns: one after the other until all slots
are warm, then N at once, new ones, on what those before them left. Three servers: cclocal's with N slots; llama-server
with N slots, as it is used without cclocal's slots (`cclocal --url`); cclocal's with one slot, where they queue.
Printed: the tokens that each agent read and the sum, the seconds to the slowest one's first word and until all had
ended, turns a minute, and that as a share of one agent's. One machine, one run, the engine in the wheel. With --vllm
also a real vLLM on the processor (tools/vllm.sh fetches it), with the bare model.

The model is the tiny copy circuit padded to 0.13 GB, so that a token of a prompt costs what it costs with a real model
of that size; --quick takes the bare one, for counts alone. Needs a claude on PATH, or the suite's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import Popen

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.conftest import CLAUDES
from tests.engine import engine
from tests.scale.test_vllm import KEY, Vllm, up
from tests.team import Team, ask, result, told, written
from tests.world import World
from tools.tiny_model.as_gguf import gguf

#: The feed-forward layers of zero that make it 0.13 GB.
PADDED = 13_312
Start = Callable[[str], Popen[str]]
#: What was measured: the tokens that each agent read, seconds to the slowest one's first word, and until all had ended.
Measured = tuple[list[int], float, float]
Run = Callable[[Path, Path, int], Measured]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--vllm", action="store_true")
    parser.add_argument("--agents", default="1,2,4,8")
    options = parser.parse_args()
    counts = [int(count) for count in options.agents.split(",")]
    with tempfile.TemporaryDirectory(prefix="cc-", dir="/tmp") as name:
        model = Path(name) / "model.gguf"
        model.write_bytes(gguf() if options.quick else gguf(PADDED))
        print("| server | agents | read by each | in all | first word, s | seconds | turns/min | of one agent |")
        print("|---|---:|---|---:|---:|---:|---:|---:|")
        servers: dict[str, Run] = {"cclocal, N slots": slots, "llama-server, N slots": plain}
        servers["cclocal, 1 slot"] = partial(slots, of_server=1)
        if options.vllm:
            servers["vLLM"] = by_vllm
        for number, (title, run) in enumerate(servers.items()):
            alone = 0.0
            for count in counts:
                read, first_s, seconds = run(Path(name) / f"{number}-{count}", model, count)
                per_min = 2 * count * 60 / seconds
                alone = alone or per_min
                each = " ".join(f"{tokens:,}" for tokens in read)
                speed = f"{first_s:.1f} | {seconds:.1f} | {per_min:.1f} | {per_min / alone:.2f}"
                print(f"| {title} | {count} | {each} | {sum(read):,} | {speed} |", flush=True)


def world_at(root: Path) -> World:
    world = World(root)
    world.real("claude", Path(shutil.which("claude") or CLAUDES[0].path))
    world.patience_s = 900.0
    return world


def measure(world: World, start: Start, count: int) -> Measured:
    """Of so many new agents at once, after as many old ones."""
    for number in range(count):
        told(start(f"old{number}"))
    began = time.monotonic()
    agents = {name: start(name) for name in (f"new{number}" for number in range(count))}
    results = [result(agent) for agent in agents.values()]
    seconds = time.monotonic() - began
    assert all(written(world, name) == f"written by {name}" for name in agents)
    read = [one["usage"]["input_tokens"] for one in results]
    return read, max(one["ttft_ms"] for one in results) / 1000, seconds


def slots(root: Path, model: Path, count: int, of_server: int = 0) -> Measured:
    """With a slot each, or with so many."""
    world = world_at(root)
    with Team(world, of_server or count, str(model)) as team:
        return measure(world, team.asks, count)


def plain(root: Path, model: Path, count: int) -> Measured:
    world = world_at(root)
    context, threads = str(32768 * count), str(os.cpu_count() or 1)
    with engine(None, model, root, "--ctx-size", context, "--parallel", str(count), "--threads", threads) as client:
        world.env["KEY"] = "key"
        words = ("--url", str(client.base_url).rstrip("/"), "--key-env", "KEY")
        return measure(world, lambda name: ask(world, name, *words), count)


def by_vllm(root: Path, model: Path, count: int) -> Measured:
    world = world_at(root)
    with up(Vllm(root, "--enforce-eager")) as server:
        world.env["VLLM_API_KEY"] = KEY
        return measure(world, lambda name: ask(world, name, *server.url), count)


if __name__ == "__main__":
    main()
