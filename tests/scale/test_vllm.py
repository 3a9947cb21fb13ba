"""A real vLLM on the processor, behind `cclocal --url`: `make test-scale` fetches it, nothing else runs this.

One node, then two by vLLM's own executor, each with the tiny model in the form that transformers reads. Each start
takes some two minutes of the processor.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from cclocal import http, tiny
from cclocal.server.start import free_port
from tests.conftest import CACHE, CLAUDES, OTHERS
from tests.world import World, wait_for

VLLM = CACHE / "vllm-0.32.0/bin/vllm"
KEY = "the-key-of-vllm"
WINDOW = 65_536
START_S = 900.0
pytestmark = pytest.mark.skipif(os.environ.get("CCLOCAL_SCALE") != "1", reason="make test-scale runs it")


class Vllm:
    """A vLLM that serves the tiny model on the processor, on one node or as one of two."""

    def __init__(self, folder: Path, *words: str, host: str = "127.0.0.1", name: str = "vllm") -> None:
        self.port = free_port()
        self.log = folder / f"{name}.log"
        model = folder / "tiny"
        if not model.exists():
            model.mkdir()
            for file, data in tiny.hf_files().items():
                (model / file).write_bytes(data)
        env = {
            "PATH": f"{VLLM.parent}:/usr/bin:/bin",
            "HOME": str(folder),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_API_KEY": KEY,
            "VLLM_HOST_IP": host,
        }
        words = (
            *("--dtype", "float32", "--host", "127.0.0.1", "--port", str(self.port), "--max-model-len", str(WINDOW)),
            *("--max-num-seqs", "4", "--enable-prefix-caching", "--enable-prompt-tokens-details"),
            *("--enable-auto-tool-choice", "--tool-call-parser", "hermes", *words),
        )
        argv = [str(VLLM), "serve", str(model), "--served-model-name", "tiny", *words]
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True)

    @property
    def url(self) -> tuple[str, ...]:
        return "--url", f"http://127.0.0.1:{self.port}", "--key-env", "VLLM_API_KEY"

    def is_up(self) -> bool:
        assert self.child.poll() is None, self.log.read_text()[-3000:]
        with suppress(httpx.TransportError), http.client(f"http://127.0.0.1:{self.port}", KEY, limit_s=5.0) as client:
            return client.get("/v1/models").status_code == 200
        return False

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()


@contextmanager
def up(*nodes: Vllm) -> Iterator[Vllm]:
    try:
        wait_for(nodes[0].is_up, "vLLM", START_S)
        yield nodes[0]
    finally:
        for node in nodes:
            node.kill()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    with up(Vllm(tmp_path_factory.mktemp("one"), "--enforce-eager")) as server:
        yield server


@pytest.fixture
def here(world: World) -> World:
    world.real("claude", CLAUDES[0].path)
    world.env["VLLM_API_KEY"] = KEY
    world.patience_s = 600.0
    return world


def test_claude_code_writes_a_file_and_knows_the_window(here: World, one: Vllm) -> None:
    done = here.run(*one.url, "--", "-p", "Create the file a.txt with content: by vLLM")
    assert done.returncode == 0, done.stderr
    assert (here.project / "a.txt").read_text() == "by vLLM"
    assert f"tiny on vLLM 0.32.0 at http://127.0.0.1:{one.port}, with a context window of 65,536" in done.stderr


def test_the_next_session_reads_only_what_is_its_own(here: World, one: Vllm) -> None:
    def turn(name: str) -> tuple[int, int]:
        here.project = here.root / name
        here.project.mkdir()
        done = here.run(*one.url, "--", "-p", "How are you?", "--output-format", "json")
        usage = json.loads(done.stdout.splitlines()[-1])["usage"]
        return usage["input_tokens"], usage["cache_read_input_tokens"]

    turn("first")
    read, kept = turn("second")
    assert read < 700 < 5000 < kept


@pytest.mark.skipif("codex" not in OTHERS, reason="codex is not here")
def test_codex_runs_a_command(here: World, one: Vllm) -> None:
    program, once, _ = OTHERS["codex"]
    here.real("codex", program)
    words = (*once, "--skip-git-repo-check", "Run the command: echo by codex > c.txt")
    done = here.run("--agent", "codex", *one.url, "--", *words)
    assert (here.project / "c.txt").read_text() == "by codex\n", done.stderr


def test_the_check_passes(here: World, one: Vllm) -> None:
    told = json.loads(here.run("check", *one.url, "--json").stdout)
    assert told["works"], json.dumps(told, indent=1)
    assert told["context_tokens"] == WINDOW


def test_a_prompt_beyond_the_window_is_told(here: World, one: Vllm) -> None:
    here.fake_claude()
    child = here.start(*one.url)
    answer = here.ask("word " * 70_000, limit_s=300)
    assert answer.status_code == 400
    assert "prompt is too long" in answer.text
    # a reply that is cut says so
    cut = here.ask("Hello", out_tokens=1).json()
    assert cut["stop_reason"] == "max_tokens"
    os.kill(here.watched(), signal.SIGKILL)
    child.wait()


def test_two_nodes_and_one_that_is_lost(here: World, tmp_path: Path) -> None:
    master, pipeline = free_port(), '{"mode":2,"backend":"eager"}'
    words = (
        *("--pipeline-parallel-size", "2", "--distributed-executor-backend", "mp", "--nnodes", "2"),
        *("--master-addr", "127.0.0.3", "--master-port", str(master), "--compilation-config", pipeline),
    )
    head = Vllm(tmp_path, *words, "--node-rank", "0", host="127.0.0.3", name="head")
    other = Vllm(tmp_path, *words, "--node-rank", "1", "--headless", host="127.0.0.2", name="other")
    with up(head, other):
        done = here.run(*head.url, "--", "-p", "Create the file b.txt with content: by two nodes")
        assert (here.project / "b.txt").read_text() == "by two nodes", done.stderr
        other.kill()
        # it lists its models, and no message is answered
        lost = here.run(*head.url, "--", "-p", "hi", CCLOCAL_TEST_HANG_S="15")
        assert lost.returncode == 33
        assert "one of its machines is gone" in lost.stderr or "cannot answer a message" in lost.stderr
