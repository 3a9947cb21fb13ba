"""`cclocal plan` of whatever can be named: folders, repositories, Ollama tags, files in parts; and a second opinion."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.llama_fit_params import ask
from bench.published_shapes import HEADERS
from bench.sparse import write
from cclocal import tiny
from cclocal.memory.fit import Fit
from cclocal.memory.fit import fit as fit_memory
from cclocal.memory.footprint import MemoryConfig
from cclocal.models.headers import of_gguf
from tests.conftest import CACHE, CI
from tests.world import FAKES, World

MLX = json.loads((Path(__file__).parents[1] / "memory/recorded_mlx.json").read_text())
WEIGHTS = 3_000_000


def plan(world: World, *args: str, **env: str) -> dict[str, Any]:
    done = world.run("plan", *args, "--json", **env)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def mlx_model(folder: Path, name: str) -> Path:
    """The folder of an MLX model in two files, of whose weights only the lengths are there."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(MLX[name]["config"]))
    (folder / "tokenizer.json").write_text("{}")
    for part in (1, 2):
        header = json.dumps({"w": {"dtype": "U32", "shape": [1], "data_offsets": [0, WEIGHTS]}}).encode()
        path = folder / f"model-0000{part}-of-00002.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        os.truncate(path, 8 + len(header) + WEIGHTS)
    return folder


@pytest.fixture
def serve(world: World) -> Iterator[Any]:
    """Start one of the stand-ins for servers, and return its port."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> str:
        server = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
        started.append(server)
        assert server.stdout
        return server.stdout.readline().strip()

    yield start
    for server in started:
        server.kill()
        server.wait()
        assert server.stdout
        server.stdout.close()


def test_a_folder_of_mlx(world: World) -> None:
    world.fake_server()
    folder = mlx_model(world.root / "gemma", "gemma-4-26b-a4b")
    told = plan(world, str(folder), "--ctx", "32768", "--ram", "24", "--macos", "15")
    assert told["weights_bytes"] == 2 * WEIGHTS
    assert told["kv_bytes"] == sum(MLX["gemma-4-26b-a4b"]["cases"][3][2:4])
    assert told["compute_bytes"] == 2 << 30
    small = plan(world, str(folder), "--ctx", "32768", "--prefill-step", "256", "--ram", "24", "--macos", "15")
    assert small["compute_bytes"] == 256 << 20
    shown = world.run("plan", str(folder), "--ram", "24", "--macos", "15").stdout
    assert "prefill step 2048" in shown
    assert "bf16" in shown
    (folder / "config.json").write_text("[]")
    broken = world.run("plan", str(folder))
    assert broken.returncode == 2
    assert "is not a complete MLX model" in broken.stderr
    assert world.run("plan", str(world.project)).returncode == 2


def test_repositories_of_the_hub(world: World, serve: Any) -> None:
    world.fake_server()
    hub = world.root / "hub"
    mlx_model(hub, "qwen3.5-9b")
    at = {"HF_ENDPOINT": f"http://127.0.0.1:{serve(str(FAKES / 'hub.py'), str(hub), str(world.record / 'hub.log'))}"}
    mlx = plan(world, "org/mlx", "--ctx", "32768", "--ram", "32", "--macos", "26", **at)
    assert mlx["architecture"] == "qwen3_5"
    assert mlx["kv_bytes"] == MLX["qwen3.5-9b"]["cases"][3][2]
    for quant in ("Q4_K_M", "Q8_0"):
        (hub / f"m-{quant}.gguf").write_bytes(tiny.gguf())
    gguf = plan(world, "org/m:q8_0", **at)
    assert gguf["model"] == "org/m, m-Q8_0.gguf"
    assert gguf["weights_bytes"] == plan(world, "tiny")["weights_bytes"]
    # the usual one if none is named
    assert plan(world, "org/m", **at)["model"] == "org/m, m-Q4_K_M.gguf"
    missing = world.run("plan", "org/m:IQ1", **at)
    assert missing.returncode == 2
    assert "m-Q8_0.gguf" in missing.stderr
    unreachable = world.run("plan", "org/m", HF_ENDPOINT="http://127.0.0.1:9")
    assert unreachable.returncode == 23
    assert "Traceback" not in unreachable.stderr


def test_ollama_tags(world: World, serve: Any) -> None:
    world.fake_server()
    large = world.root / "large.gguf"
    size = write(HEADERS["gemma-4-e4b"](), large)
    log = world.record / "registry.log"
    host = f"127.0.0.1:{serve(str(FAKES / 'registry.py'), str(large), str(log))}"
    told = plan(world, f"{host}/library/m:tag", "--ctx", "32768")
    assert told["kv_bytes"] == 552 << 20
    assert told["shape_source"] == "Ollama's registry"
    # the header and no more than that
    assert (
        sum(int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("SENT")) < 20 << 20 < size
    )
    missing = world.run("plan", f"{host}/library/missing:tag")
    assert missing.returncode == 23
    assert "has no model" in missing.stderr
    assert world.run("plan", f"{host}/library/broken:tag").returncode == 23
    # one that is pulled already is read where it is
    store = world.home / ".ollama/models"
    digest = "sha256-" + "a" * 64
    manifest = store / "manifests/registry.ollama.ai/library/mine/latest"
    for path in (manifest, store / "blobs" / digest):
        path.parent.mkdir(parents=True, exist_ok=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": digest.replace("-", ":"), "size": 1}
    manifest.write_text(json.dumps({"layers": [layer]}))
    (store / "blobs" / digest).write_bytes(tiny.gguf())
    assert plan(world, "mine:latest")["shape_source"] == "Ollama's own copy"
    manifest.write_text("{}")
    assert world.run("plan", "mine:latest").returncode == 23


def test_a_file_in_parts_is_one_model(world: World) -> None:
    world.fake_server()
    whole = HEADERS["gpt-oss-20b"]()
    cut = len(whole.tensors) // 2
    for number, tensors in enumerate((whole.tensors[:cut], whole.tensors[cut:]), 1):
        header = replace(whole, tensors=tensors)
        if number == 2:
            header = replace(header, metadata={"general.architecture": "gpt-oss"})
        part = world.root / f"big-0000{number}-of-00002.gguf"
        write(header, part)
    told = plan(world, str(world.root / "big-00001-of-00002.gguf"))
    write(whole, world.root / "whole.gguf")
    assert told["weights_bytes"] == plan(world, str(world.root / "whole.gguf"))["weights_bytes"]
    (world.root / "big-00002-of-00002.gguf").unlink()
    missing = world.run("plan", str(world.root / "big-00001-of-00002.gguf"))
    assert missing.returncode == 2
    assert "big-00002-of-00002.gguf" in missing.stderr


@pytest.mark.skipif(not CI, reason="needs llama-fit-params, built from source: CI=true runs it")
@pytest.mark.parametrize("name", ["gemma-4-e4b", "qwen3.5-9b", "qwen3-coder-30b-a3b"])
def test_llama_cpp_counts_the_same_caches(world: World, name: str) -> None:
    """llama-fit-params, which allocates nothing, is asked about the same header."""
    write(HEADERS[name](), world.root / "whole.gguf")
    fit = fit_of(world)
    opinion = ask(CACHE / "llama-server-0.3.36/build/bin/llama-fit-params", fit, world.env, world.root / "whole.gguf")
    assert opinion
    # it prints whole mebibytes
    assert abs(opinion.cache_bytes - fit.footprint.kv_bytes - fit.footprint.state_bytes) < 1 << 20


def fit_of(world: World) -> Fit:
    shape = of_gguf(world.root / "whole.gguf")
    assert shape
    return fit_memory(shape.shape, MemoryConfig(32768, kv_type="q8_0"), None)
