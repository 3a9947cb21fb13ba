"""The real Claude Code on the real vllm-mlx, on the processor. CI=true runs it, with the tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import psutil
import pytest

from cclocal import tiny
from tests.conftest import CACHE, CI, CLAUDES
from tests.world import World, wait_for

PROGRAM = CACHE / "vllm-mlx-0.6.0/bin/vllm-mlx"
# it needs minutes for a prompt, on a machine that has other things to do too
pytestmark = [pytest.mark.skipif(not CI, reason="CI=true runs vllm-mlx too"), pytest.mark.timeout(1800)]
#: A prompt of Claude Code's takes half a minute here, and its file another.
PATIENCE_S = 300.0


@pytest.fixture
def mlx(world: World) -> World:
    world.patience_s = PATIENCE_S
    world.real("vllm-mlx", PROGRAM)
    world.real("claude", CLAUDES[0].path)
    return world


def test_the_tiny_model_passes_its_check_and_its_streams_hide_nothing(mlx: World) -> None:
    # one of its rows fills the whole window
    words = ("--ctx", "13312", "--out-tokens", "1024")
    done = mlx.run("check", "tiny", "--backend", "vllm-mlx", *words, "--json")
    told = json.loads(done.stdout)
    outcome = {row["name"]: row["status"] for row in told["rows"]}
    assert done.returncode == 0, told
    assert outcome["The real agent writes a real file"] == "pass"
    assert outcome["A second tool call after the first one's result"] == "pass"
    # what vllm-mlx knows and does not tell by itself
    assert outcome["A stream reports the prompt's token count"] == "pass"
    assert outcome["A reply that is cut off has the stop reason for it"] == "pass"
    assert outcome["A tool call that is cut off is not reported as complete"] == "pass"
    assert outcome["A prompt beyond the window is refused, not cut"] == "pass"


def test_only_its_key_opens_it_and_nobody_can_read_that_key(mlx: World) -> None:
    mlx.fake_claude()
    child = mlx.start("--tiny", "--backend", "vllm-mlx")
    env = mlx.agent()["env"]
    state, token = mlx.state(), env["ANTHROPIC_AUTH_TOKEN"]
    key = next(mlx.sessions.glob("*/key")).read_text().strip()
    words = " ".join(psutil.Process(state["server"]).cmdline())
    assert token not in words
    assert key not in words
    with httpx.Client(base_url=env["ANTHROPIC_BASE_URL"], trust_env=False) as client:
        assert client.get("/v1/models").status_code == 401
        # the relay takes the session's key in either header
        assert client.get("/v1/models", headers={"x-api-key": token}).status_code == 200
        ours = {"authorization": f"Bearer {token}"}
        assert client.get("/v1/models", headers=ours).status_code == 200
        other = {"model": "other", "max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}]}
        refused = client.post("/v1/messages", json=other, headers=ours)
        # another model asked for in mid-session is refused in words
        assert refused.status_code == 404
        assert "other" in refused.text
    # the server has a key of its own, and takes it in one way only
    with httpx.Client(base_url=state["server_url"], trust_env=False) as client:
        for headers, status in (
            (ours, 401),
            ({"x-api-key": key}, 401),
            ({"authorization": f"Bearer {key}"}, 200),
        ):
            assert client.get("/v1/models", headers=headers).status_code == status
    child.terminate()
    child.wait()


def test_two_requests_at_once_wait_for_each_other(mlx: World) -> None:
    mlx.fake_claude()
    child = mlx.start("--tiny", "--backend", "vllm-mlx")
    env = mlx.agent()["env"]
    body = {"model": "tiny", "max_tokens": 16, "messages": [{"role": "user", "content": "Hello " * 400}]}
    ours = {"authorization": f"Bearer {env['ANTHROPIC_AUTH_TOKEN']}"}
    from concurrent.futures import ThreadPoolExecutor

    def ask(_: int) -> int:
        url = f"{env['ANTHROPIC_BASE_URL']}/v1/messages"
        return httpx.post(url, json=body, headers=ours, timeout=60, trust_env=False).status_code

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(ask, range(3))) == [200, 200, 200]
    child.terminate()
    child.wait()


def test_its_own_request_timeout_would_end_a_prefill_and_ours_does_not(mlx: World) -> None:
    mlx.fake_claude()
    config = mlx.home / ".config/cclocal/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(
        """
        [models.short]
        name = "short"
        note = "its server hangs up after a second"
        native_context_tokens = 131072
        out_tokens = 4096
        context_tokens = 32768
        [[models.short.variants]]
        backend = "vllm-mlx"
        quant = "F32"
        builtin = "tiny"
        tool_parser = "hermes"
        extra_args = ["--timeout", "1"]
        """
    )
    outcomes = {}
    for model in ("short", "tiny"):
        child = mlx.start(f"--{model}", "--backend", "vllm-mlx")
        env = mlx.agent()["env"]
        body = {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "Hello there. " * 2000}]}
        outcomes[model] = httpx.post(
            f"{env['ANTHROPIC_BASE_URL']}/v1/messages",
            json=body,
            headers={"authorization": f"Bearer {env['ANTHROPIC_AUTH_TOKEN']}"},
            timeout=120,
            trust_env=False,
        ).status_code
        child.terminate()
        child.wait()
        wait_for(lambda: not mlx.leftovers(), "its end")
        (mlx.record / "agent.json").unlink()
    assert outcomes == {"short": 504, "tiny": 200}


def test_a_folder_of_ones_own_and_one_that_brings_a_program_along(mlx: World, tmp_path: Path) -> None:
    mlx.fake_claude(exits=0)
    folder = tiny.build(tmp_path / "models", is_mlx=True)
    done = mlx.run("--model", str(folder))
    assert done.returncode == 0, done.stderr
    assert "untested" in done.stderr
    evil = tmp_path / "evil"
    shutil.copytree(folder, evil)
    config = json.loads((evil / "config.json").read_text())
    (evil / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (evil / "config.json").write_text(json.dumps(config | {"model_file": "evil.py"}))
    refused = mlx.run("--model", str(evil))
    assert refused.returncode == 40, refused.stderr
    assert "model_file" in refused.stderr
    assert not (tmp_path / "ran").exists()
