"""A setting reaches what it is about, whichever way it is given, or is refused in words; it is never dropped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cclocal.command import SHOWN
from cclocal.paths import folders
from cclocal.settings import Settings, accepts, flags, lasting, options, variables
from tests.world import World, wait_for


@pytest.fixture
def ready(world: World) -> World:
    world.fake_server(obeys=True)
    world.fake_claude(exits=0)
    return world


@pytest.fixture
def served(ready: World) -> Iterator[World]:
    """A server of the tiny model in another terminal; its arguments are in first.json."""
    child = ready.start("--server", "--tiny")
    ready.server_pids()
    wait_for(lambda: "cclocal attach" in (ready.record / "out").read_text(), "the server")
    (ready.record / "pids.json").rename(ready.record / "first.json")
    ready.env["FIRST_PORT"] = str(ready.state()["port"])
    yield ready
    child.terminate()
    child.wait()


def argv_of_server(world: World) -> list[str]:
    return list(json.loads((world.record / "pids.json").read_text())["argv"])


def test_the_users_own_words_reach_the_agent_unchanged(ready: World) -> None:
    words = f"what is {SHOWN.key} in {SHOWN.folder} on {SHOWN.port} of {SHOWN.session_id}, and <first words>?"
    assert ready.run("--tiny", "--", "-p", words).returncode == 0
    argv = ready.agent()["argv"]
    assert argv[-2:] == ["-p", words]
    assert ready.agent()["env"]["ANTHROPIC_AUTH_TOKEN"] not in " ".join(argv)


@pytest.mark.parametrize("name", ["ANTHROPIC_API_KEY", "HTTPS_PROXY", "AWS_PROFILE", "CLAUDE_CODE_USE_VERTEX"])
def test_no_way_of_starting_hands_on_a_variable_that_redirects(served: World, name: str) -> None:
    url = f"http://127.0.0.1:{served.env['FIRST_PORT']}"
    for words in (("--url", url), ("--tiny",), (served.env["FIRST_PORT"],)):
        done = served.run(*words, "--pass-env", name, **{name: "secret"})
        assert done.returncode == 2, words
        assert "never reaches the agent" in done.stderr
        done = served.run(*words, CCLOCAL_PASS_ENV=name, **{name: "secret"})
        assert done.returncode == 2, words
    assert not (served.record / "agent.json").exists()


def test_a_variable_of_the_users_reaches_the_agent_on_any_server(served: World) -> None:
    url = f"http://127.0.0.1:{served.env['FIRST_PORT']}"
    for words in (("--url", url), ("--tiny",), (served.env["FIRST_PORT"],)):
        assert served.run(*words, "--pass-env", "DATABASE_URL", DATABASE_URL="mine").returncode == 0
        assert served.agent()["env"]["DATABASE_URL"] == "mine"
        (served.record / "agent.json").unlink()


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (("--gpu-layers", "3"), "--n-gpu-layers"),
        (("--kv", "q8_0"), "--cache-type-k"),
        (("--ubatch", "256"), "--ubatch-size"),
    ],
)
def test_an_option_about_the_server_gets_a_server_of_its_own(served: World, words: tuple[str, str], flag: str) -> None:
    assert served.run("--tiny", *words, "--", "-p", "x").returncode == 0
    argv = argv_of_server(served)
    assert argv[argv.index(flag) + 1] == words[1]


def test_an_option_that_cannot_be_kept_is_refused(served: World) -> None:
    nonsense = served.run("--tiny", "--backend", "nonsense", "--", "-p", "x")
    assert nonsense.returncode == 2
    assert "no backend “nonsense”" in nonsense.stderr
    url = f"http://127.0.0.1:{served.env['FIRST_PORT']}"
    for words in (
        ("--gpu-layers", "3"),
        ("--kv", "q8_0"),
        ("--backend", "ollama"),
        ("--slots", "2"),
        ("--quant", "Q8_0"),
    ):
        refused = served.run("--url", url, *words)
        assert refused.returncode == 2, words
        assert f"{words[0]} does nothing" in refused.stderr
        refused = served.run(served.env["FIRST_PORT"], *words)
        assert refused.returncode == 2, words
        assert f"{words[0]} does nothing" in refused.stderr
    assert not (served.record / "agent.json").exists()


def test_an_address_in_the_environment_that_is_not_used_is_said(ready: World) -> None:
    done = ready.run("--tiny", "--kv", "q8_0", "--", "-p", "x", CCLOCAL_URL="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert "CCLOCAL_URL is set but not used" in done.stderr
    assert argv_of_server(ready)


def test_what_is_checked_is_what_runs(ready: World) -> None:
    """The check takes what a launch takes, also from the environment, and its result says what was served."""
    program = ready.bin / "claude"
    program.unlink()
    program.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "2.1.331 (Claude Code)" && exit\n'
        'printf %s "it works on this machine" >proof.txt\n'
    )
    program.chmod(0o755)
    done = ready.run("check", "tiny", "--json", CCLOCAL_KV="q8_0", CCLOCAL_CTX="40960", CCLOCAL_SLOTS="2")
    assert done.returncode == 0, done.stderr
    argv = argv_of_server(ready)
    assert argv[argv.index("--ctx-size") + 1] == "40960"
    assert argv[argv.index("--cache-type-k") + 1] == "q8_0"
    assert argv[argv.index("--parallel") + 1] == "2"
    report = json.loads(done.stdout)
    assert (report["context_tokens"], report["kv_type"], report["agent"]) == (40960, "q8_0", "claude")
    state = json.loads((ready.home / ".local/state/cclocal/proofs.json").read_text())
    (key, result), *_ = state.items()
    assert (result["context_tokens"], result["kv_type"]) == (40960, "q8_0")
    assert "q8_0" in key


def test_a_plan_takes_what_a_launch_takes(ready: World) -> None:
    words = ("--out-tokens", "4096", "--lean", "--think", "--agent", "claude", "--wired-limit", "20000")
    done = ready.run("plan", "gemma", "--ram", "24", "--macos", "26", "--json", *words)
    assert done.returncode == 0, done.stderr
    assert "20000" in json.loads(done.stdout)["budget_source"]
    # a backend that has not every model hides none of the others
    rows = json.loads(ready.run("plan", "--backend", "vllm-mlx", "--json").stdout)
    assert {"unknown"} < {row["verdict"] for row in rows}


def test_a_commands_own_flag_is_no_other_command(ready: World) -> None:
    done = ready.run("stats", "--list")
    assert done.returncode == 2
    assert "--list" in done.stderr
    assert "no option --list" in done.stderr
    assert "cclocal stats -h" in done.stderr


def test_a_plan_is_shown_without_the_agent(world: World) -> None:
    world.fake_server()
    done = world.run("--tiny", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "claude was not found on PATH" in done.stdout
    assert "npm install" in done.stdout
    assert json.loads(world.run("--tiny", "--dry-run", "--json").stdout)["agent"]["argv"][0] == "claude"
    assert world.run("--tiny").returncode == 35


def test_an_engine_that_lacks_a_flag_is_not_its_own_remedy(world: World) -> None:
    """The wheel's server has no --override-kv; installing that wheel again does not help."""
    world.fake_claude()
    done = world.run("--review", "--quant", "UD-Q4_K_XL", "--dry-run")
    assert done.returncode == 31
    assert "a newer llama-server on PATH" in done.stderr
    assert "cclocal[engine]" not in done.stderr


def test_the_folders_follow_the_environment_that_is_given() -> None:
    here = folders({"HOME": "/h", "XDG_STATE_HOME": "/s", "XDG_CACHE_HOME": "relative"})
    assert here.state == Path("/s/cclocal")
    assert str(here.config).startswith("/h/")
    assert str(here.cache).startswith("/h/")
    assert here.state != folders(os.environ).state


# -- one field, every way to give it

VALUES: dict[str, Any] = {"int": 4096, "str": "word", "bool": True, "tuple": ["ONE"]}


@pytest.mark.parametrize("name", lasting())
def test_a_field_is_an_option_a_variable_and_a_key(ready: World, name: str) -> None:
    """Shown by the source that a dry run reports for it."""
    value = {
        "model": "tiny",
        "agent": "claude",
        "sandbox": "off",
        "trust_model": ["ONE"],
        "allow_net": ["pypi"],
        "protect": ["ONE"],
        "also": ["coder"],
        "speculate": "off",
        "vision": False,
        "picture_tokens": 512,
        "mcp": [str(ready.project / "mcp.json")],
        "web": True,
        "receipt": True,
        "allow_write": ["ONE"],
        "allow_read": ["ONE"],
        "backend": "llama-server",
        "llama_server": "llama-server",
        "ctx": 32768,
        "out_tokens": 1024,
        "port": 8099,
        "pass_env": ["ONE"],
        "kv": "q8_0",
        "slots": 1,
        "ubatch": 256,
        "gpu_layers": 1,
        "cpu_moe": 1,
        "think": True,
        "safe": False,
        "mem_check": False,
        "cold": True,
        "keep_children": True,
        "nudge": False,
        "lean": True,
        "subagents": True,
    }.get(name)
    for other in ("CCLOCAL_ALLOW_READ", "CCLOCAL_ALLOW_WRITE", "CCLOCAL_SANDBOX"):
        ready.env.pop(other, None)
    (ready.project / "mcp.json").write_text('{"mcpServers": {}}')
    if name == "wired_limit":
        ready.mac(32, "15.5")
        ready.fake_server(devices=["MTL0: Apple M1 Max (21845 MiB, 21845 MiB free)"])
        value = 23000
    model = () if name == "model" else ("--tiny",)
    text = json.dumps(value) if not isinstance(value, list) else " ".join(value)
    text = text.strip('"')
    positive, *negative = flags(name)
    typed = [f"--{positive}"] if value is True else [f"--{negative[0]}"] if value is False else [f"--{positive}", text]

    def source(*words: str, **env: str) -> str:
        done = ready.run(*model, *words, "--dry-run", "--json", **env)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["sources"][name])

    assert source(*typed) == "command line"
    assert source(**{variables(name)[0]: text}) == "environment"
    config = ready.home / ".config/cclocal/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f"[defaults]\n{name} = {json.dumps(value)}\n")
    assert source() == f"user file {config}:2"
    assert accepts(name, value)


def test_every_option_has_a_field_and_every_number_a_range() -> None:
    for name, (_, option) in options().items():
        assert hasattr(Settings(), name)
        assert option.help
        assert option.declarations
