"""What is on disk, and removing it: a real cache of the hub's library, Ollama's store, files of one's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from bench.published_shapes import HEADERS
from bench.sparse import write
from cclocal import tiny
from cclocal.memory.gguf import Header
from tests.models.test_fetch import MODEL
from tests.world import FAKES, World


@pytest.fixture
def shelf(world: World) -> Iterator[World]:
    """A hub with two models of one's own, of which the first is fetched."""
    folder = world.root / "hub"
    folder.mkdir()
    for name in ("mine.gguf", "x-Q4_K_M.gguf", "x-Q8_0.gguf"):
        (folder / name).write_bytes(tiny.gguf())
    (world.home / ".config/cclocal").mkdir(parents=True)
    (world.home / ".config/cclocal/config.toml").write_text(MODEL)
    world.fake_server()
    world.fake_claude(exits=0)
    server = subprocess.Popen(
        [sys.executable, str(FAKES / "hub.py"), str(folder), str(world.record / "hub.log")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout
    world.env["HF_ENDPOINT"] = f"http://127.0.0.1:{server.stdout.readline().strip()}"
    yield world
    server.kill()
    server.wait()
    server.stdout.close()


def listed(world: World) -> dict[str, Any]:
    done = world.run("--list", "--json")
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in json.loads(done.stdout)["models"]}


def cache(world: World) -> Path:
    return world.home / ".cache/huggingface/hub"


def test_fetched_now_started_later_without_the_hub(shelf: World) -> None:
    done = shelf.run("--fetch", "mine")
    assert done.returncode == 0, done.stderr
    assert "Mine is on this disk." in done.stderr
    assert not (shelf.record / "pids.json").exists()
    assert "already" in shelf.run("fetch", "mine").stderr
    log = (shelf.record / "hub.log").read_text()
    assert shelf.run("--mine", "--", "-p", "x").returncode == 0
    assert (shelf.record / "hub.log").read_text() == log
    row = listed(shelf)["org/m"]
    assert (row["kind"], row["flag"], row["incomplete_bytes"]) == ("hub", "--mine", 0)
    assert row["size_bytes"] == len(tiny.gguf())
    assert row["last_used_s"] > 1e9
    shown = shelf.run("-l").stdout
    assert "--mine" in shown
    assert "are free" in shown


def test_any_model_of_the_hub_by_its_quantisation(shelf: World) -> None:
    done = shelf.run("--model", "org/x:q8_0", "--", "-p", "x")
    assert done.returncode == 0, done.stderr
    assert "its tool use is untested" in done.stderr
    argv = json.loads((shelf.record / "pids.json").read_text())["argv"]
    assert argv[argv.index("--model") + 1].endswith("x-Q8_0.gguf")
    assert argv[argv.index("--alias") + 1] == "x"
    log = (shelf.record / "hub.log").read_text()
    assert "x-Q4_K_M" not in log.replace("/api/", "")
    # and again from the cache, whose header says how much context there is
    again = shelf.run("--model", "org/x:q8_0", "--dry-run", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert "x-Q8_0.gguf" in again.stdout
    # nothing is asked of the hub by looking
    assert (shelf.record / "hub.log").read_text() == log
    unseen = shelf.run("--model", "org/other:Q4_K_M", "--dry-run")
    assert unseen.returncode == 0, unseen.stderr
    assert "the Q4_K_M file from org/other" in unseen.stdout
    wrong = shelf.run("--model", "org/x:IQ1_S")
    assert wrong.returncode == 2
    assert "no IQ1_S" in wrong.stderr
    assert shelf.run("--mine", "--quant", "Q2").returncode == 2


def test_other_quantisations_of_the_same_repository(shelf: World) -> None:
    config = shelf.home / ".config/cclocal/config.toml"
    more = '[[models.mine.variants]]\nbackend = "llama-server"\nquant = "IQ9"\nrepo = "org/m"\n'
    config.write_text(config.read_text() + more)
    assert shelf.run("--fetch", "mine").returncode == 0
    # one that nobody asked for is in nobody's way
    done = shelf.run("--mine", "--", "-p", "x")
    assert done.returncode == 0, done.stderr
    wrong = shelf.run("--fetch", "mine", "--quant", "iq9")
    assert wrong.returncode == 2
    assert "no IQ9" in wrong.stderr
    # what is here is not all there is: the hub is asked before anything is refused
    (shelf.root / "hub/x-Q2_K.gguf").write_bytes(tiny.gguf())
    assert shelf.run("--fetch", "org/x:Q4_K_M", "org/x:Q8_0").returncode == 0
    (shelf.root / "hub/x-IQ3.gguf").write_bytes(tiny.gguf())
    assert shelf.run("--fetch", "org/x:IQ3").returncode == 0


def test_a_model_in_parts_is_fetched_to_its_end(shelf: World) -> None:
    hub = shelf.root / "hub"
    for other in hub.glob("*.gguf"):
        other.unlink()
    whole = HEADERS["gpt-oss-20b"]()
    for number, tensors in enumerate((whole.tensors[:9], whole.tensors[9:]), 1):
        metadata = whole.metadata if number == 1 else {"general.architecture": "gpt-oss"}
        part = shelf.root / "part"
        write(Header(metadata, tensors), part)
        with part.open("rb") as file:
            (hub / f"big-Q4_K_M-0000{number}-of-00002.gguf").write_bytes(file.read(1 << 20))
    assert shelf.run("--fetch", "org/big:Q4_K_M").returncode == 0
    snapshot = next((cache(shelf) / "models--org--big/snapshots").iterdir())
    assert len(list(snapshot.glob("big-*"))) == 2
    # the second one is gone: what is left is no reason to stop
    (snapshot / "big-Q4_K_M-00002-of-00002.gguf").unlink()
    again = shelf.run("--fetch", "org/big:Q4_K_M")
    assert again.returncode == 0, again.stderr
    told = json.loads(shelf.run("--model", "org/big:Q4_K_M", "--dry-run", "--json", "--no-mem-check").stdout)
    assert told["memory"]["weights_bytes"] > 11e9


def test_removing_by_name(shelf: World) -> None:
    shelf.run("--fetch", "mine", "org/x:Q4_K_M")
    assert set(listed(shelf)) == {"org/m", "org/x"}
    would = shelf.run("--rm", "mine", "--dry-run")
    assert would.returncode == 0
    assert "Would remove org/m" in would.stdout
    refused = shelf.run("--rm", "mine")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    done = shelf.run("--rm", "mine", "--yes")
    assert done.returncode == 0, done.stderr
    assert set(listed(shelf)) == {"org/x"}
    assert not (cache(shelf) / "models--org--m").exists()
    missing = shelf.run("--rm", "mine", "--yes")
    assert missing.returncode == 2
    assert "org/x" in missing.stderr
    # all means cclocal's, never everything there is: this one was fetched, but neither started nor in the catalog
    assert "nothing" in shelf.run("rm", "all", "--dry-run").stdout
    shelf.run("--model", "org/x:Q4_K_M", "--", "-p", "x")
    assert "org/x" in shelf.run("rm", "all", "--dry-run").stdout


@pytest.mark.wide
@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.parametrize("removals", [1, 2, 4])
def test_removing_that_is_interrupted_can_be_done_again(shelf: World, removals: int) -> None:
    """Killed at each of its first removals from the cache; what is half removed is neither served nor in the way."""
    shelf.run("--fetch", "mine", "org/x:Q4_K_M")
    path = str(cache(shelf))
    kill = f"inject=unlink,unlinkat,rmdir:signal=SIGKILL:when={removals}"
    words = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", path, "-e", "trace=unlink,unlinkat,rmdir", "-e", kill]
    mine = cache(shelf) / "models--org--m"
    for folder in (mine, mine / "blobs", mine / "refs", mine / "snapshots", *(mine / "snapshots").iterdir()):
        words[5:5] = ["-P", str(folder)]
    killed = subprocess.run(
        [*words, *shelf.command, "--rm", "mine", "--yes"], env=shelf.env, cwd=shelf.project, check=False
    )
    assert killed.returncode != 0
    assert shelf.run("--list").returncode == 0
    done = shelf.run("--mine", "--no-mem-check")
    assert done.returncode == 0, done.stderr
    assert shelf.run("--rm", "mine", "--yes").returncode == 0
    assert not mine.exists()
    assert set(listed(shelf)) == {"org/x"}


def test_what_is_in_use_stays(shelf: World) -> None:
    shelf.run("--fetch", "mine")
    blob = next((cache(shelf) / "models--org--m/blobs").iterdir())
    with blob.open("rb") as held:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[held.fileno()])
    done = shelf.run("--rm", "mine", "--yes")
    assert done.returncode == 2
    assert f"pid {child.pid}" in done.stderr
    assert blob.exists()
    child.communicate(b"\n")
    assert shelf.run("--rm", "mine", "--yes").returncode == 0


def test_all_or_none_and_never_removed_in_words_only(shelf: World) -> None:
    shelf.run("--fetch", "mine", "org/x:Q4_K_M")
    own = shelf.root / "own[v2].gguf"
    own.write_bytes(tiny.gguf())
    shelf.run("--model", str(own), "--", "-p", "x")
    assert "own[v2].gguf" in shelf.run("--list", COLUMNS="300").stdout
    refused = shelf.run("--rm", "mine", str(own), "--yes")
    assert refused.returncode == 2
    assert "org/m" in listed(shelf)
    # a layout that the hub's library does not recognise
    (cache(shelf) / "models--org--m/refs/other").write_text("b" * 40)
    odd = shelf.run("--rm", "mine", "--yes")
    assert odd.returncode == 0 or "still there" in odd.stderr
    assert ("org/m" in listed(shelf)) == (odd.returncode != 0)


def test_leftovers_are_counted_and_links_are_not_followed(shelf: World) -> None:
    shelf.run("--fetch", "mine")
    blobs = cache(shelf) / "models--org--m/blobs"
    (blobs / ("b" * 64 + ".incomplete")).write_bytes(bytes(1_000_000))
    outside = shelf.root / "outside.gguf"
    outside.write_bytes(bytes(1000))
    (cache(shelf) / "models--evil--m").symlink_to(shelf.root)
    row = listed(shelf)["org/m"]
    assert row["incomplete_bytes"] >= 1_000_000
    assert "unfinished" in shelf.run("--list").stdout
    assert set(listed(shelf)) == {"org/m"}
    assert shelf.run("--rm", "mine", "--yes").returncode == 0
    assert outside.exists()
    assert not blobs.exists()


def test_ollamas_store_and_files_of_ones_own(shelf: World) -> None:
    store = shelf.home / ".ollama/models/manifests/registry.ollama.ai/library/qwen3"
    store.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:" + "a" * 64, "size": 5_000_000_000}
    (store / "8b").write_text(json.dumps({"layers": [layer]}))
    (store / "broken").write_text("[]")
    mine = shelf.root / "own.gguf"
    mine.write_bytes(tiny.gguf())
    shelf.run("--model", str(mine), "--", "-p", "x")
    rows = listed(shelf)
    assert rows["qwen3:8b"]["size_bytes"] == 5_000_000_000
    assert rows[str(mine)]["kind"] == "file"
    refused = shelf.run("--rm", str(mine), "--yes")
    assert refused.returncode == 2
    assert "is your own file" in refused.stderr
    assert mine.exists()
    # its blobs are shared, so only Ollama removes; and it is not running
    done = shelf.run("--rm", "qwen3:8b", "--yes", OLLAMA_HOST="127.0.0.1:9")
    assert done.returncode == 2
    assert "ollama rm qwen3:8b" in done.stderr


def test_ticking_what_should_go(shelf: World) -> None:
    shelf.run("--fetch", "mine", "org/x:Q4_K_M")
    with shelf.on_terminal("--rm") as child:
        child.expect("Which models do you want to remove")
        child.expect("org/x")
        child.send(" ")
        child.send("\r")
        child.expect(r"Remove org/[mx] \(6.3 MB\)\? \[y/N\]")
        child.sendline("n")
        child.expect(pexpect.EOF)
    assert len(listed(shelf)) == 2
    with shelf.on_terminal("--clean") as child:
        child.expect("Which models do you want to remove")
        child.send("a\r")
        child.expect(r"\[y/N\]")
        child.sendline("y")
        child.expect(pexpect.EOF)
    assert listed(shelf) == {}
    assert cache(shelf).is_dir()


def test_the_tiny_model_is_listed_where_it_was_built_and_can_be_removed(world: World) -> None:
    assert "No model is on this disk" in world.run("list").stdout
    for backend in ("llama-server", "vllm-mlx"):
        world.fake_server()
        world.fake_mlx()
        assert world.run("fetch", "tiny", "--backend", backend).returncode == 0
    rows = {row["name"]: row for row in json.loads(world.run("list", "--json").stdout)["models"]}
    assert rows["tiny"]["kind"] == rows["tiny-mlx"]["kind"] == "built here"
    assert rows["tiny-mlx"]["flag"] == "--tiny --backend vllm-mlx"
    for name in rows:
        assert world.run("rm", name, "--yes").returncode == 0
        assert not Path(rows[name]["path"]).exists()
