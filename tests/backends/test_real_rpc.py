"""A model on two small machines: llama.cpp's RPC workers in network namespaces, one of them lost in mid-session."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from tests.conftest import CACHE
from tests.world import World, wait_for
from tools.tiny_model.as_gguf import gguf

SERVER = CACHE / "llama-server-0.3.36/build/bin/llama-server"
WORKER = SERVER.with_name("ggml-rpc-server")
PORT = 50052
#: The feed-forward layers of zero that make the circuit 0.52 GB.
PADDED = 53_248
#: A worker may have so much address space: the model and its buffers fit into neither alone.
LIMIT_BYTES = 1_000_000_000

pytestmark = pytest.mark.skipif(
    not WORKER.exists() or os.geteuid() != 0 or not shutil.which("ip"),
    reason="needs ggml-rpc-server (CI=true builds it), root and iproute2 for network namespaces",
)


class Worker:
    """A machine of its own, as far as the network goes, that computes for others."""

    #: the kernel removes a namespace's link some time after the namespace
    numbers = count(1)

    def __init__(self, limit_bytes: int | None = None) -> None:
        number, process = next(self.numbers), os.getpid()
        self.name, net = f"cc{process % 10_000}w{number}", f"10.{100 + process % 100}.{number}"
        self.address = f"{net}.2:{PORT}"
        ip(f"netns add {self.name}")
        ip(f"link add {self.name} type veth peer name eth0 netns {self.name}")
        ip(f"addr add {net}.1/24 dev {self.name}")
        ip(f"link set {self.name} up")
        ip(f"-n {self.name} addr add {net}.2/24 dev eth0")
        ip(f"-n {self.name} link set eth0 up")
        limit = ("prlimit", f"--as={limit_bytes}") if limit_bytes else ()
        words = ("-H", f"{net}.2", "-p", str(PORT), "-t", "1")
        self.child = subprocess.Popen(
            ["ip", "netns", "exec", self.name, *limit, str(WORKER), *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(self.answers, "the worker")

    def answers(self) -> bool:
        with closing(socket.socket()) as probe:
            probe.settimeout(0.5)
            host, _, port = self.address.partition(":")
            return probe.connect_ex((host, int(port))) == 0

    def dies(self) -> None:
        self.child.kill()
        self.child.wait()

    def ends(self) -> None:
        self.dies()
        ip(f"netns del {self.name}")


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


@pytest.fixture
def pool(request: pytest.FixtureRequest) -> Iterator[list[Worker]]:
    workers: list[Worker] = []
    try:
        for _ in range(2):
            workers.append(Worker(getattr(request, "param", None)))
        yield workers
    finally:
        for worker in workers:
            worker.ends()


def rpc(pool: list[Worker]) -> tuple[str, str]:
    return "--rpc", ",".join(worker.address for worker in pool)


@pytest.fixture
def ready(world: World) -> World:
    world.real("llama-server", SERVER)
    world.fake_claude()
    return world


def ends(world: World) -> None:
    os.kill(world.watched(), signal.SIGKILL)
    world.wait_for_end()


@pytest.mark.parametrize("pool", [LIMIT_BYTES], indirect=True)
def test_a_model_that_fits_on_neither_runs_on_both(ready: World, pool: list[Worker]) -> None:
    model = ready.root / "padded.gguf"
    model.write_bytes(gguf(PADDED))
    words = (str(model), "--ctx", "8192", "--out-tokens", "512", "--lean", "--cold")
    alone = ready.run("--server", *words, *rpc(pool[:1]))
    assert alone.returncode != 0
    ready.start(*words, *rpc(pool))
    answer = ready.ask("Say something.")
    assert answer.status_code == 200, answer.text
    assert "tiny test model" in answer.text
    log = ready.log.read_text()
    sizes = {worker.address: log.count(f"[{worker.address}] model buffer size") for worker in pool}
    assert all(sizes.values()), log[-3000:]
    ends(ready)


def test_the_plan_knows_the_workers(ready: World, pool: list[Worker]) -> None:
    done = ready.run("--tiny", "--dry-run", *rpc(pool))
    assert done.returncode == 0, done.stderr
    first, second = (worker.address for worker in pool)
    assert f"--rpc {first},{second}" in done.stdout
    assert f"on {first}, " in done.stdout
    assert "neither a key nor encryption" in done.stdout
    # both report this machine's memory, which counts once
    plan = json.loads(ready.run("--tiny", "--dry-run", "--json", *rpc(pool)).stdout)
    one = json.loads(ready.run("--tiny", "--dry-run", "--json", *rpc(pool[:1])).stdout)
    assert abs(plan["memory"]["budget_bytes"] - one["memory"]["budget_bytes"]) < 1 << 30


def test_a_lost_worker_is_told_and_the_session_goes_on_with_what_is_left(ready: World, pool: list[Worker]) -> None:
    model = ready.root / "padded.gguf"
    model.write_bytes(gguf(PADDED // 4))
    ready.start(str(model), "--cold", *rpc(pool))
    assert ready.ask("Say something.").status_code == 200
    with ThreadPoolExecutor() as threads:
        # some seconds of reading
        long = threads.submit(ready.ask, "Say it again. " * 1500, limit_s=120)
        wait_for(lambda: "prompt processing, n_tokens" in ready.log.read_text(), "the reading")
        pool[1].dies()
        lost_at = time.monotonic()
        wait_for(lambda: "answers again" in ready.log.read_text(), "the next server", 60)
        answer = long.result()
    assert answer.status_code == 200, answer.text
    assert time.monotonic() - lost_at < 60
    log = ready.log.read_text()
    assert f"no answer from {pool[1].address}" in log
    pool[0].dies()
    assert ready.ask("And again.", limit_s=60).status_code == 200
    ends(ready)


def test_what_cannot_be_used_is_told(ready: World, pool: list[Worker], tmp_path: Path) -> None:
    pool[1].dies()
    done = ready.run("--tiny", *rpc(pool))
    assert done.returncode == 33
    assert f"The worker at {pool[1].address} does not answer" in done.stderr
    assert "ggml-rpc-server" in done.stderr
    # one that another server holds
    host, _, port = pool[0].address.partition(":")
    with socket.create_connection((host, int(port))):
        held = ready.run("--tiny", *rpc(pool[:1]))
    assert held.returncode == 33
    assert "one client at a time" in held.stderr
    wheel = ready.run("--tiny", *rpc(pool[:1]), "--llama-server", "wheel")
    assert wheel.returncode == 30
    assert "DGGML_RPC=ON" in wheel.stderr


def test_addresses_of_the_internet_are_refused(world: World) -> None:
    world.fake_claude()
    for word, said in (("8.8.8.8:50052", "public internet"), ("box", "not an address"), ("a:1,a:1", "twice")):
        done = world.run("--tiny", "--rpc", word)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
