"""What a word means is decided in one place, so every command takes it for the same model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from cclocal import tiny
from cclocal.discovery.look import load_catalog
from cclocal.models.resolve import resolve
from cclocal.paths import Env
from tests.world import World

SNAPSHOT = ".cache/huggingface/hub/models--org--m/snapshots/abc"


@pytest.fixture
def shelf(world: World) -> World:
    """A model of every kind: a file and an MLX folder, a repository in the hub's cache, a tag in Ollama's store."""
    world.fake_server(obeys=True)
    world.fake_claude(exits=0)
    world.fake_mlx()
    world.program("ollama", "llama_server")
    (world.bin / "ollama").write_text('#!/bin/sh\necho "client version is 0.17.4"\n')
    (world.project / "own.gguf").write_bytes(tiny.gguf())
    shutil.copytree(tiny.build(world.root / "built", is_mlx=True), world.project / "folder")
    snapshot = world.home / SNAPSHOT
    snapshot.mkdir(parents=True)
    repo = snapshot.parents[1]
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("abc")
    (repo / "blobs").mkdir()
    (repo / "blobs/x").write_bytes(tiny.gguf())
    (snapshot / "m-Q4_K_M.gguf").symlink_to("../../blobs/x")
    store, digest = world.home / ".ollama/models", "sha256-" + "a" * 64
    manifest = store / "manifests/registry.ollama.ai/library/mine/8b"
    for path in (manifest, store / "blobs" / digest):
        path.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": digest.replace("-", ":"), "size": 1}
    manifest.write_text(json.dumps({"layers": [layer]}))
    (store / "blobs" / digest).write_bytes(tiny.gguf())
    world.env |= {"OLLAMA_HOST": "127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    return world


#: (the word, the model's id, where it comes from)
WORDS = [
    ("tiny", "tiny", ""),
    ("--tiny", "tiny", ""),
    ("Tiny copy circuit", "tiny", ""),
    ("light", "gemma-light", "unsloth/gemma-4-E4B-it-GGUF"),
    ("./own.gguf", "own", "PROJECT/own.gguf"),
    ("own.gguf", "own", "PROJECT/own.gguf"),
    ("./folder", "folder", "PROJECT/folder"),
    ("folder/", "folder", "PROJECT/folder"),
    ("org/m:Q4_K_M", "m", "org/m"),
    ("org/m", "m", "org/m"),
    ("mine:8b", "mine-8b", "mine:8b"),
]
MISSING = ["gema", "none.gguf", "./none.gguf", "/no/such/file", "org/a/b/c", "x" * 300, ""]


def source(world: World, word: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.chdir(world.project)
    model = resolve(load_catalog(), word, None, Env.of(world.env))
    return model.id, model.variants[0].source


@pytest.mark.parametrize(("word", "id_", "where"), WORDS)
def test_a_word_is_one_model(shelf: World, word: str, id_: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert source(shelf, word, monkeypatch) == (id_, where.replace("PROJECT", os.path.realpath(shelf.project)))


@pytest.mark.parametrize(("word", "id_", "where"), WORDS)
def test_every_command_takes_a_word_for_the_same_model(shelf: World, word: str, id_: str, where: str) -> None:
    """Launch, plan, check, fetch, list and rm; `check` and a launch are shown by their dry runs and their refusals."""
    launched = shelf.run("--model", word, "--dry-run", "--json")
    assert launched.returncode == 0, launched.stderr
    plan = json.loads(launched.stdout)
    assert plan["model"]["id"] == id_
    planned = shelf.run("plan", word, "--json")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["weights_bytes"] == plan["memory"]["weights_bytes"]
    removed = shelf.run("rm", word, "--dry-run")
    listed = shelf.run("list", word, "--json")
    is_stored = where in ("org/m", "mine:8b")
    assert (removed.returncode, listed.returncode) == ((0, 0) if is_stored else (2, 2)), removed.stderr
    if is_stored:
        assert where in removed.stdout
        assert [row["name"] for row in json.loads(listed.stdout)["models"]] == [where]
    else:
        assert "is not on this disk" in removed.stderr
    fetched = shelf.run("fetch", word)
    if where == "mine:8b":
        assert "fetched by Ollama" in fetched.stderr
    elif where.startswith("unsloth"):
        assert fetched.returncode == 22, fetched.stderr
    else:
        assert fetched.returncode == 0, fetched.stderr


@pytest.mark.parametrize("word", MISSING)
def test_a_word_that_means_nothing_is_refused_by_every_command(shelf: World, word: str) -> None:
    for command in (["--dry-run", "--model"], ["plan"], ["check"], ["fetch"], ["rm", "--dry-run"], ["list"]):
        if not word and command[0] in ("--dry-run", "check"):
            # an empty word is no word there: the default is meant
            continue
        done = shelf.run(*command, word)
        assert done.returncode in (2, 22, 23), (command, done.stderr)
        assert "Traceback" not in done.stderr


def test_a_missing_file_is_named_where_it_was_looked_for(shelf: World) -> None:
    done = shelf.run("--model", "sub/none.gguf", "--dry-run")
    assert str(Path(os.path.realpath(shelf.project), "sub/none.gguf")) in done.stderr
