"""Files and answers that are hostile or damaged: each ends in words, and none stops every start."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import in_a_namespace
from tests.world import World

DEEP = "[" * 100_000 + "]" * 100_000


def test_no_file_of_ours_stops_a_start_whatever_is_in_it(world: World) -> None:
    world.fake_server()
    world.fake_claude(exits=0)
    assert world.run("--tiny").returncode == 0
    world.wait_for_end()
    for folder in (".cache", ".local"):
        for path in (world.home / folder).rglob("*.json"):
            path.write_text(DEEP)
    bad = world.sessions / "deadbeef"
    bad.mkdir()
    (bad / "session.json").write_text(DEEP)
    done = world.run("--tiny")
    assert done.returncode == 0, done.stderr
    assert world.run("--list").returncode == 0
    assert world.run("stats").returncode in (0, 2)
    (bad / "session.json").unlink()
    bad.rmdir()


@pytest.mark.parametrize("text", ["a = " + DEEP, "a" + ".a" * 5000 + " = 1", "\0", "[models.x]\nname = 1e999"])
def test_a_hostile_user_file_is_a_mistake_in_it(world: World, text: str) -> None:
    folder = world.home / ".config/cclocal"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(text)
    done = world.run("--tiny", "--dry-run")
    assert done.returncode == 2, done.stderr[-500:]
    assert str(folder / "config.toml") in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("config", [DEEP, json.dumps({"model_type": [[]], "hidden_size": -1}), "{}", "\0"])
def test_a_hostile_model_folder_is_refused_in_words(world: World, config: str) -> None:
    folder = world.root / "mlx-model"
    folder.mkdir()
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "tokenizer.json").write_text("{}")
    done = world.run("--model", str(folder), "--dry-run")
    assert done.returncode in (0, 2, 30), done.stderr[-500:]
    assert "Traceback" not in done.stderr


class Hostile(BaseHTTPRequestHandler):
    """Answers the list of models by the path of its address."""

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            if self.server.kind == "long":  # type: ignore[attr-defined]
                for _ in range(300):
                    self.wfile.write(b" " * (1 << 20))
            else:
                self.wfile.write(DEEP.encode())
        except ConnectionError:
            # nobody reads it to its end
            pass


@pytest.fixture(params=["long", "deep"])
def hostile(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    server.daemon_threads = True
    server.kind = request.param  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield str(request.param), f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_hostile_server_is_refused_in_words(world: World, hostile: tuple[str, str]) -> None:
    kind, url = hostile
    world.fake_claude()
    done = world.run("--url", url)
    assert done.returncode == 33, done.stderr
    words = {"long": "its answer is longer than 64 MiB", "deep": "lists no models"}
    assert words[kind] in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_a_pid_namespace_with_another_ones_proc_is_told(world: World) -> None:
    world.fake_server()
    world.fake_claude(exits=0)
    words = in_a_namespace("--fork", "--pid")
    for command in (["--tiny"], ["--url", "http://127.0.0.1:1"]):
        done = world.run(*command, under=words)
        assert done.returncode == 24, done.stderr
        assert "/proc shows the processes of another pid namespace" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_where_localhost_is_only_an_ipv6_address_everything_works(world: World) -> None:
    hosts = world.root / "hosts"
    hosts.write_text("::1 localhost\n")
    world.fake_server()
    world.fake_claude(exits=0)
    script = 'mount --bind "$0" /etc/hosts && exec "$@"'
    words = in_a_namespace("--mount", "/bin/sh", "-c", script, str(hosts))
    done = world.run("--tiny", under=words)
    assert done.returncode == 0, done.stderr
    assert world.agent()["env"]["ANTHROPIC_BASE_URL"].startswith("http://127.0.0.1:")


def test_a_program_for_another_processor_is_told_before_any_download(world: World) -> None:
    """An ELF header of a machine that no computer of ours has, as a download for the wrong one would be."""
    program = world.bin / "llama-server"
    program.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x16\x00" + bytes(44))
    program.chmod(0o755)
    world.fake_claude(exits=0)
    done = world.run("--coder", "--backend", "llama-server", "--llama-server", str(program))
    assert done.returncode == 30, done.stderr
    assert "Exec format error" in done.stderr
    assert not Path(world.home / ".cache/huggingface").exists()
