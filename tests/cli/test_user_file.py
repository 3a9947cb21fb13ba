"""config.toml: lasting defaults and models of one's own; flags beat the environment, which beats the file."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cclocal import tiny
from tests.world import World


@pytest.fixture
def ready(world: World) -> World:
    world.fake_claude()
    world.fake_server()
    (world.home / ".config/cclocal").mkdir(parents=True)
    return world


def write(world: World, text: str) -> None:
    (world.home / ".config/cclocal/config.toml").write_text(text)


def plan(world: World, *args: str, **env: str) -> dict[str, Any]:
    done = world.run(*args, "--dry-run", "--json", **env)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_flags_beat_environment_beats_file_beats_catalog(ready: World) -> None:
    assert plan(ready, "--gemma")["out_tokens"] == 8192
    assert plan(ready, "--gemma")["sources"]["out_tokens"] == "catalog"
    write(ready, "[defaults]\nout_tokens = 1000\n")
    from_file = plan(ready, "--gemma")
    assert from_file["out_tokens"] == 1000
    assert from_file["sources"]["out_tokens"].startswith("user file ")
    from_env = plan(ready, "--gemma", CCLOCAL_OUT_TOKENS="2000")
    assert (from_env["out_tokens"], from_env["sources"]["out_tokens"]) == (2000, "environment")
    from_flag = plan(ready, "--gemma", "--out-tokens", "3000", CCLOCAL_OUT_TOKENS="2000")
    assert (from_flag["out_tokens"], from_flag["sources"]["out_tokens"]) == (3000, "command line")


def test_every_lasting_default_is_taken(ready: World) -> None:
    write(
        ready,
        "[defaults]\nmodel = 'coder'\nbackend = 'llama-server'\nllama_server = 'llama-server'\nctx = 40960\n"
        "out_tokens = 4096\nport = 8099\npass_env = ['ONE', 'TWO']\nsafe = false\n",
    )
    for name in ("CCLOCAL_ALLOW_READ", "CCLOCAL_ALLOW_WRITE"):
        ready.env.pop(name)
    got = plan(ready, ONE="1", TWO="2")
    assert got["model"]["id"] == "coder"
    assert got["context_tokens"] == 40960
    assert {"ONE", "TWO"} <= set(got["agent"]["kept"])
    assert got["port"] == 8099
    assert got["agent"]["env"]["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:8099"
    assert all(source.startswith(("user file", "catalog")) for source in got["sources"].values())


def test_a_flag_beats_a_lasting_model(ready: World) -> None:
    write(ready, "[defaults]\nmodel = 'coder'\n")
    assert plan(ready, "--gemma")["model"]["id"] == "gemma"
    assert plan(ready, "--gemma", CCLOCAL_MODEL="tiny")["model"]["id"] == "gemma"
    assert plan(ready, CCLOCAL_MODEL="tiny")["model"]["id"] == "tiny"


def test_a_model_of_ones_own_gets_a_flag_and_a_change_keeps_the_rest(ready: World) -> None:
    write(
        ready,
        """
[models.mine]
name = "Mine"
note = "my own"
native_context_tokens = 65536
[[models.mine.variants]]
backend = "llama-server"
quant = "Q4"
repo = "me/mine"
files = ["mine.gguf"]

[models.gemma]
context_tokens = 32768
""",
    )
    assert " mine" in ready.run("-h").stdout
    assert plan(ready, "--mine")["fetch"]["repo"] == "me/mine"
    changed = plan(ready, "--gemma")
    assert (changed["context_tokens"], changed["model"]["name"]) == (32768, "Gemma 4 26B-A4B")


X = """[models.x]
name = 'X'
note = 'x'
native_context_tokens = 65536
[[models.x.variants]]
backend = 'llama-server'
quant = 'q'
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[defaults]\n\nout_token = 5\n",
            "config.toml:3: defaults.out_token is unknown. Perhaps you meant out_tokens.",
        ),
        ("[default]\n", "config.toml:1: default is unknown. Perhaps you meant defaults."),
        ("[defaults]\nport = 'x'\n", "config.toml:2: defaults.port must be a whole number"),
        ("[defaults]\nport = true\n", "config.toml:2: defaults.port must be a whole number"),
        ("[defaults]\npass_env = 'A'\n", "config.toml:2: defaults.pass_env must be a list of texts."),
        ("defaults = 5\n", "config.toml:1: defaults must be a table."),
        ("[defaults\n", "config.toml:1:10"),
        (
            "[models.gemma]\ncontxt_tokens = 5\n",
            "config.toml:2: models.gemma.contxt_tokens is unknown. Perhaps you meant context_tokens.",
        ),
        ("[models]\ngemma = 5\n", "config.toml:2: models.gemma must be a table."),
        ("[models.x]\nname = 'X'\n", "config.toml:1: models.x.note is missing."),
        (
            "[models.gemma]\n[[models.gemma.variants]]\nbackend='llama-server'\nquant='x'\nsampling = {tmp = 1}\n",
            "config.toml:5: models.gemma.variants.0.sampling.tmp is unknown. Perhaps you meant temp.",
        ),
        ("[models.gemma]\nflags = ['tiny']\n", "has the flag --tiny, which tiny has too"),
        ("[models.gemma]\nflags = ['port']\n", "config.toml:2: models.gemma.flags cannot have the flag --port"),
        ("[models.help]\nname = 'X'\n", "config.toml:1: models.help"),
        ("[models.gemma]\ncontext_tokens = '65536'\n", "config.toml:2: models.gemma.context_tokens is wrong"),
        ("[models.gemma]\ncontext_tokens = -5\n", "config.toml:2: models.gemma.context_tokens is wrong"),
        ("[models.gemma]\nport = 700000\n", "config.toml:2: models.gemma.port is wrong"),
        ("[defaults]\nport = 99999999\n", "config.toml:2: defaults.port must be a whole number, 1 to 65535."),
        ("[defaults]\nbackend = 'nope'\n", "config.toml:2"),
        ("[defaults]\npass_env = ['AWS_X']\n", "config.toml:2"),
        (
            X + "",
            "config.toml:5: models.x.variants.0 must say where it comes from",
        ),
        (
            X + "repo='../../x'\nfiles=['a']\n",
            "config.toml:8: models.x.variants.0.repo must look like owner/name",
        ),
        (
            X + "repo='a/b'\nfiles=['../../etc/passwd']\n",
            "files must name files inside",
        ),
        (
            X + "tag='x:1b'\n",
            "tag is for the backend ollama",
        ),
    ],
)
def test_a_mistake_in_it_is_shown_with_its_line(ready: World, text: str, words: str) -> None:
    write(ready, text)
    done = ready.run("--gemma", "--dry-run")
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
    # help must work above all when something is wrong
    assert ready.run("-h").returncode == 0
    # and the file is never written
    assert (ready.home / ".config/cclocal/config.toml").read_text() == text


def test_two_ids_that_differ_in_a_dash_are_refused_in_words(ready: World) -> None:
    own = X + "repo = 'a/b'\nfiles = ['c']\n"
    write(ready, own.replace("models.x", "models.a-b") + own.replace("models.x", "models.'a.b'"))
    done = ready.run("--gemma", "--dry-run")
    assert done.returncode == 2
    assert "has too" in done.stderr
    assert ready.run("-h").returncode == 0


def test_a_model_file_of_the_users_own_by_path(ready: World) -> None:
    text = MINE.replace("repo = 'me/mine'\nfiles = ['mine.gguf']", "path = '~/models/own.gguf'")
    write(ready, text)
    missing = ready.run("--mine", "--dry-run")
    assert missing.returncode == 2
    assert f"There is no file {ready.home}/models/own.gguf" in missing.stderr
    (ready.home / "models").mkdir()
    (ready.home / "models/own.gguf").write_bytes(tiny.gguf())
    assert f"{ready.home}/models/own.gguf" in plan(ready, "--mine")["server"]["argv"]


MINE = """
[models.mine]
name = "Mine"
note = "my own"
native_context_tokens = 65536
[[models.mine.variants]]
backend = "llama-server"
quant = "Q4"
repo = 'me/mine'
files = ['mine.gguf']
"""


def test_a_file_in_the_project_is_never_read(ready: World) -> None:
    (ready.project / "models.toml").write_text("default = 'evil'\n[models.evil]\n")
    (ready.project / "config.toml").write_text("[defaults]\nout_tokens = 1000\n")
    assert plan(ready, "--gemma")["out_tokens"] == 8192
