"""MLX models: which engine serves them, what is fetched, what is refused. vllm-mlx is a stand-in here."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cclocal import tiny
from cclocal.backends.vllm_mlx import wrapper
from tests.world import FAKES, World, wait_for


@pytest.fixture
def mlx(world: World) -> World:
    world.fake_mlx()
    world.fake_claude(exits=0)
    return world


@pytest.fixture
def hub(mlx: World) -> Iterator[dict[str, str]]:
    """A hub that has the tiny model as an MLX repository, with what such repositories have besides."""
    folder = mlx.root / "hub"
    folder.mkdir()
    for name, data in tiny.mlx_files().items():
        (folder / name).write_bytes(data)
    for name in ("README.md", "modeling.py", "original.safetensors", ".gitattributes"):
        (folder / name).write_bytes(b"x" * 100)
    server = subprocess.Popen(
        [sys.executable, str(FAKES / "hub.py"), str(folder), str(mlx.record / "hub.log")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout
    yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.stdout.readline().strip()}"}
    server.kill()
    server.wait()
    server.stdout.close()


def argv(world: World) -> list[str]:
    return [str(word) for word in json.loads((world.record / "pids.json").read_text())["argv"]]


def test_it_is_the_first_choice_on_apple_silicon_and_the_last_elsewhere(mlx: World) -> None:
    mlx.fake_server()
    assert "\n  llama-server," in mlx.run("--tiny", "--dry-run").stdout
    mlx.mac(64, "26.1")
    told = mlx.run("--tiny", "--dry-run").stdout
    assert "\n  vllm-mlx, in its own environment, version 0.6.0, mlx-lm 0.31.3\n" in told
    assert "backend: the first choice on this machine" in told
    # what has no MLX variant is served by what has one
    assert "\n  llama-server," in mlx.run("--nemotron", "--dry-run").stdout


def test_a_repository_is_fetched_without_what_mlx_does_not_read(mlx: World, hub: dict[str, str]) -> None:
    done = mlx.run("--model", "org/tiny-mlx", **hub)
    assert done.returncode == 0, done.stderr
    snapshot = Path(argv(mlx)[1])
    assert sorted(path.name for path in snapshot.iterdir()) == sorted(tiny.mlx_files())
    # its own template says how it writes its calls
    assert argv(mlx)[argv(mlx).index("--tool-call-parser") + 1] == "hermes"
    # and then no network is used
    (mlx.record / "hub.log").unlink()
    again = mlx.run("--model", "org/tiny-mlx", HF_ENDPOINT="http://127.0.0.1:9")
    assert again.returncode == 0, again.stderr
    assert not (mlx.record / "hub.log").exists()
    listed = json.loads(mlx.run("--list", "--json").stdout)["models"]
    assert [row["name"] for row in listed] == ["org/tiny-mlx"]


def test_a_shard_that_its_index_names_is_missed(mlx: World, hub: dict[str, str]) -> None:
    assert mlx.run("--model", "org/tiny-mlx", **hub).returncode == 0
    snapshot = Path(argv(mlx)[1])
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (mlx.home / ".cache/cclocal/listings.json").unlink()
    done = mlx.run("--model", "org/tiny-mlx", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert done.returncode == 22, done.stderr
    assert "model-00002-of-00002.safetensors" in done.stderr


def test_a_model_that_brings_a_program_along_is_refused_before_it_is_here(mlx: World, hub: dict[str, str]) -> None:
    config = mlx.root / "hub/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_file": "modeling.py"}))
    done = mlx.run("--model", "org/evil-mlx", **hub)
    assert done.returncode == 40, done.stderr
    assert "model_file" in done.stderr
    asked = [line for line in (mlx.record / "hub.log").read_text().splitlines() if "safetensors" in line]
    assert not asked


def test_one_that_is_too_old_or_broken_is_refused_and_stops_nobody_else(mlx: World) -> None:
    mlx.fake_mlx(mlx_lm="0.31.1")
    old = mlx.run("--tiny", "--backend", "vllm-mlx")
    assert old.returncode == 31, old.stderr
    assert "uv tool install" in old.stderr
    mlx.fake_mlx(breaks=True)
    broken = mlx.run("--tiny", "--backend", "vllm-mlx")
    assert broken.returncode == 30, broken.stderr
    assert "No module named 'mlx'" in broken.stderr
    mlx.fake_server()
    assert mlx.run("--tiny").returncode == 0


def test_it_is_not_ready_before_it_says_so(mlx: World) -> None:
    mlx.fake_mlx(health={"status": "unhealthy", "model_loaded": True})
    sick = mlx.run("--tiny", "--backend", "vllm-mlx")
    assert sick.returncode == 33, sick.stderr
    assert "unhealthy" in sick.stderr
    assert mlx.run("--tiny", "--backend", "vllm-mlx", "--kv", "q8_0").returncode == 31


def test_a_parser_can_be_named_where_parsers_are(mlx: World) -> None:
    assert mlx.run("--tiny", "--backend", "vllm-mlx", "--parser", "qwen3_coder").returncode == 0
    assert argv(mlx)[argv(mlx).index("--tool-call-parser") + 1] == "qwen3_coder"
    refused = mlx.run("--tiny", "--backend", "llama-server", "--parser", "hermes")
    assert refused.returncode == 2
    assert "--parser is for vllm-mlx" in refused.stderr


def test_what_is_wished_for_decides_among_engines_that_are_there(mlx: World) -> None:
    mlx.fake_server()
    mlx.mac(64, "26.1")
    assert "\n  vllm-mlx," in mlx.run("--gemma", "--dry-run").stdout
    # what vllm-mlx cannot do the other one does, and naming a llama-server is asking for it
    for words in (("--kv", "q8_0"), ("--slots", "2"), ("--llama-server", str(mlx.bin / "llama-server"))):
        assert "\n  llama-server," in mlx.run("--gemma", *words, "--dry-run").stdout, words
    mlx.fake_mlx(version="0.5.0")
    assert "\n  llama-server," in mlx.run("--gemma", "--dry-run").stdout


def test_a_lasting_backend_is_what_is_planned_and_fetched_too(mlx: World, hub: dict[str, str]) -> None:
    mlx.fake_server()
    mlx.mac(64, "26.1")
    config = mlx.home / ".config/cclocal/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[defaults]\nbackend = "llama-server"\n')
    assert json.loads(mlx.run("plan", "gemma", "--json").stdout)["architecture"] == "gemma4"
    assert "mlx-community" not in mlx.run("--fetch", "gemma", **hub).stderr


@pytest.mark.parametrize("missing", ["tokenizer.json", "shard", "bytes"])
def test_half_a_model_is_none(mlx: World, missing: str) -> None:
    folder = tiny.build(mlx.root / "models", is_mlx=True).rename(mlx.root / "half")
    weights = folder / "model.safetensors"
    if missing == "shard":
        weights.rename(folder / "model-00001-of-00002.safetensors")
    elif missing == "bytes":
        weights.write_bytes(weights.read_bytes()[:-1000])
    else:
        (folder / missing).unlink()
    done = mlx.run("--model", str(folder), "--dry-run")
    assert done.returncode == 2
    assert "not a complete MLX model" in done.stderr


def test_names_of_the_catalog_come_before_what_is_in_the_folder(mlx: World) -> None:
    (mlx.project / "review").write_text("notes")
    tiny.build(mlx.root / "models", is_mlx=True).rename(mlx.project / "tiny")
    for flag, name in (("--review", "GLM 4.7 Flash"), ("--tiny", "Tiny copy circuit")):
        assert name in mlx.run(flag, "--dry-run").stdout
    # with a separator it is the folder, however it is written
    for word in ("./tiny", "../project/tiny", str(mlx.project / "tiny")):
        told = json.loads(mlx.run("--model", word, "--dry-run", "--json").stdout)
        assert told["server"]["argv"][4] == str(mlx.project / "tiny"), word


def test_what_is_damaged_stops_only_what_would_use_it(mlx: World) -> None:
    mlx.fake_server()
    manifest = mlx.home / ".ollama/models/manifests/registry.ollama.ai/library/qwen2.5-coder/7b"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("garbage")
    for words in (("--coder7b", "--dry-run"), ("plan",), ("plan", "coder7b")):
        done = mlx.run(*words)
        assert done.returncode == 0, done.stderr


def test_a_session_without_tools_stays_one_when_it_is_joined(mlx: World) -> None:
    mlx.fake_server()
    mlx.fake_claude()
    child = mlx.start("--server", "--tiny", "--no-tools", "--port", "18131")
    wait_for(lambda: "cclocal attach 18131" in (mlx.record / "out").read_text(), "the server")
    mlx.fake_claude(exits=0)
    assert mlx.run("attach", "18131").returncode == 0
    given = mlx.agent()["argv"]
    assert given[given.index("--tools") + 1] == ""
    assert "--allowedTools" not in given
    child.send_signal(signal.SIGINT)
    assert child.wait() == 0


def test_an_agent_that_asks_for_no_temperature_gets_the_models_own() -> None:
    """vllm-mlx's conversion gives it 0.7, which would go before --default-temperature."""

    def convert(asked: Any) -> Any:
        return SimpleNamespace(temperature=asked.temperature or 0.7, top_p=asked.top_p or 0.9)

    names = ("_stream_anthropic_messages", "_prepare_anthropic_endpoint_invocation")
    server = SimpleNamespace(**dict.fromkeys(names, convert), anthropic_to_openai=convert)
    wrapper.amend(server, 4096)
    assert vars(server.anthropic_to_openai(SimpleNamespace(temperature=None, top_p=0.5))) == {
        "temperature": None,
        "top_p": 0.5,
    }
