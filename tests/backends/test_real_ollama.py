"""The real Claude Code on the real Ollama, offline, with the tiny model. CI=true builds Ollama and runs these."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pexpect
import pytest

from cclocal import tiny
from cclocal.checks.picture import png
from tests.conftest import CACHE, CI, CLAUDES, OTHERS
from tests.talk import results, talk
from tests.two_models import write_with_two
from tests.world import FAKES, World, alive, wait_for

OLLAMA = CACHE / "ollama-0.17.4/bin/ollama"
pytestmark = pytest.mark.skipif(
    not (CI and OLLAMA.exists()), reason="needs Ollama, built from source with Go: CI=true runs it where Go is"
)


@pytest.fixture
def ollama(world: World) -> World:
    world.real("ollama", OLLAMA)
    world.real("claude", CLAUDES[0].path)
    return world


def test_a_file_is_written(ollama: World) -> None:
    words = ("--tiny", "--backend", "ollama", "--", "-p", "Create the file hello.txt with content: hello from Ollama")
    done = ollama.run(*words)
    assert (ollama.project / "hello.txt").read_text() == "hello from Ollama", done.stderr
    assert done.returncode == 0
    # a store of its own: the user's is not touched
    assert not (ollama.home / ".ollama/models/manifests").exists()
    again = ollama.run(*words)
    assert again.returncode == 0, again.stderr


def test_the_tiny_model_passes_its_check_and_what_it_would_cut_is_refused(ollama: World) -> None:
    ollama.patience_s = 400.0
    words = ("--ctx", "13312", "--out-tokens", "1024")
    done = ollama.run("check", "tiny", "--backend", "ollama", *words, "--json")
    told = json.loads(done.stdout)
    outcome = {row["name"]: row["status"] for row in told["rows"]}
    assert done.returncode == 0, told
    assert outcome["The real agent writes a real file"] == "pass"
    assert outcome["A second tool call after the first one's result"] == "pass"
    # Ollama answers 200 to it; the relay goes by the tokens per byte of earlier turns
    assert outcome["A prompt beyond the window is refused, not cut"] == "pass"
    # what Ollama is known not to do is red, and not hidden
    assert outcome["Tokens are counted before they are sent"] == "fail"
    assert outcome["A second turn does not read the whole prompt again"] == "not exercised"


def test_a_file_of_ones_own_goes_into_a_store_of_ours_and_is_refused_without_a_template(ollama: World) -> None:
    file = tiny.build(ollama.root)
    words = ("--model", str(file), "--backend", "ollama", "--ctx", "32768")
    refused = ollama.run(*words, "--", "-p", "hello")
    # this Ollama does not read a file's own template
    assert refused.returncode == 31, refused.stderr
    assert "cannot call tools" in refused.stderr
    assert list((ollama.home / ".local/share/cclocal/ollama/manifests").rglob("*tiny-copy*"))
    assert not (ollama.home / ".ollama/models/manifests").exists()


# -- a daemon that runs already ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Daemon:
    """Somebody's own Ollama, with its default window of 4,096 tokens."""

    url: str
    process: subprocess.Popen[bytes]

    def names(self) -> list[str]:
        rows = httpx.get(f"{self.url}/api/tags", trust_env=False).json()["models"]
        return sorted(row["name"] for row in rows)

    def loaded(self) -> dict[str, int]:
        rows = httpx.get(f"{self.url}/api/ps", trust_env=False).json()["models"]
        return {row["name"]: row["context_length"] for row in rows}

    def create(self, name: str, *sources: Path, template: str) -> None:
        digests = {source.name: f"sha256:{hashlib.sha256(source.read_bytes()).hexdigest()}" for source in sources}
        for source in sources:
            blob = f"{self.url}/api/blobs/{digests[source.name]}"
            httpx.post(blob, content=source.read_bytes(), trust_env=False).raise_for_status()
        body = {"model": name, "files": digests, "template": template, "stream": False}
        body["parameters"] = {"temperature": 0}
        httpx.post(f"{self.url}/api/create", json=body, trust_env=False).raise_for_status()


@contextlib.contextmanager
def running(ollama: World, tmp_path: Path) -> Iterator[Daemon]:
    """Somebody's daemon, with a model that calls tools and one whose template does not mention them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    ollama.env["OLLAMA_HOST"] = host
    store = ollama.home / ".ollama/models"
    env = {"HOME": str(tmp_path / "somebody"), "OLLAMA_MODELS": str(store), "OLLAMA_HOST": host}
    with (tmp_path / "daemon.log").open("wb") as log:
        process = subprocess.Popen([OLLAMA, "serve"], env=env, stdout=log, stderr=log, start_new_session=True)
    found = Daemon(f"http://{host}", process)

    def up() -> bool:
        try:
            return httpx.get(f"{found.url}/api/version", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_for(up, "the daemon")
        found.create("mine", tiny.build(tmp_path), template=tiny.ollama_template())
        found.create("mute", tiny.build(tmp_path), template="{{ .Prompt }}")
        yield found
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def daemon(ollama: World, tmp_path: Path) -> Iterator[Daemon]:
    with running(ollama, tmp_path) as found:
        yield found
        # whatever happened, it is still there and has what it had
        assert found.process.poll() is None
        wait_for(
            lambda: found.names() == ["mine:latest", "mute:latest"] or None, f"its own models, not {found.names()}"
        )


def test_the_model_is_changed_within_a_session(ollama: World, tmp_path: Path) -> None:
    """On an Ollama of cclocal's own, with the models that somebody has: a file is written with each."""
    # the same weights under another digest, else Ollama keeps what is loaded
    copy = tmp_path / "other.gguf"
    copy.write_bytes(tiny.gguf() + bytes(32))
    with running(ollama, tmp_path) as daemon:
        daemon.create("other", copy, template=tiny.ollama_template())
    words = ("--model", "mine:latest", "--backend", "ollama", "--ctx", "32768", "--lean")
    planned = ollama.run(*words, "--dry-run")
    # the one whose template mentions no tools is not among them
    assert "/model changes to other:latest. They take turns" in planned.stdout + planned.stderr
    write_with_two(ollama, words, "other:latest")
    log = (ollama.home / ".local/state/cclocal/server.log").read_text()
    # both were loaded with the planned window
    assert log.count("KvSize:32768") == 2


def test_a_picture_in_a_message_is_seen_and_one_that_a_tool_would_return_is_answered_in_words(
    ollama: World, tmp_path: Path
) -> None:
    """Ollama 0.17.4 drops pictures in results of tools without a word."""
    project, files = ollama.project, (tmp_path / "eyes.gguf", tmp_path / "mmproj.gguf")
    files[0].write_bytes(tiny.gguf("tiny-eyes"))
    files[1].write_bytes(tiny.projector())
    for name, colour in (("red.png", (255, 0, 0)), ("blue.png", (0, 0, 255))):
        (project / name).write_bytes(png(colour, 64, 64))
    # at this one the model's program ends
    (project / "shot.webp").write_bytes(b"RIFF\x24\x00\x00\x00WEBPVP8 ")
    with running(ollama, tmp_path) as daemon:
        daemon.create("eyes", *files, template=tiny.ollama_template())
    words = ("--model", "eyes:latest", "--backend", "ollama", "--ctx", "32768")
    with talk(ollama, *words) as session:
        assert str(session.say("What is @blue.png ?")[-1]["result"]) == "I see blue."
        told = results(session.say(f"Look at the picture: {project}/red.png"))
        assert "red.png was not read: the engine drops pictures that a tool returns" in told
        assert "I see red." in str(session.say("What is @red.png ?")[-1]["result"])
    program, once, _ = OTHERS["codex"]
    ollama.real("codex", program)
    done = ollama.run(*words, "--agent", "codex", "--", *once, "What do you see?", "-i", "blue.png")
    assert "I see blue." in done.stdout, done.stderr
    done = ollama.run(*words, "--", "-p", "Describe @shot.webp")
    assert "the engine reads no webp" in done.stdout + done.stderr
    told = json.loads(ollama.run("check", *words[1:], "--no-tune", "--json").stdout)
    assert {row["name"]: row["status"] for row in told["rows"]}["A picture in a message is seen"] == "pass"


def test_a_daemon_that_runs_serves_the_planned_window_and_is_left_as_it_was(ollama: World, daemon: Daemon) -> None:
    words = ("--model", "mine:latest", "--ctx", "32768", "--")
    prompt = "Create the file hello.txt with content: hello from your own Ollama"
    done = ollama.run(*words, "-p", prompt)
    assert done.returncode == 0, done.stderr
    assert (ollama.project / "hello.txt").read_text() == "hello from your own Ollama", done.stdout + done.stderr
    assert "and does not stop it" in done.stderr
    wait_for(lambda: not daemon.loaded() or None, "the model out of memory")


def test_what_the_daemon_serves_is_seen_in_its_own_words(ollama: World, daemon: Daemon) -> None:
    (ollama.bin / "claude").unlink()
    ollama.fake_claude()
    first = ollama.start("--model", "mine:latest", "--ctx", "32768")
    name = ollama.agent()["env"]["ANTHROPIC_MODEL"]
    assert daemon.loaded() == {f"{name}:latest": 32768}
    # a second session of the same model uses the same, and only the last one takes it away
    (ollama.record / "agent.json").unlink()
    second = ollama.start("--model", "mine:latest", "--ctx", "32768")
    assert ollama.agent()["env"]["ANTHROPIC_MODEL"] == name
    first.terminate()
    first.wait()
    wait_for(lambda: len(list(ollama.sessions.glob("*"))) == 1 or None, "the end of the first")
    assert f"{name}:latest" in daemon.names()
    second.terminate()
    second.wait()
    wait_for(lambda: f"{name}:latest" not in daemon.names() or None, "the end of the derived model")


@pytest.mark.parametrize("victim", ["agent", "keeper", "server", "all"])
def test_a_daemon_that_runs_survives_and_is_cleaned_whatever_is_killed(
    ollama: World, daemon: Daemon, victim: str
) -> None:
    (ollama.bin / "claude").unlink()
    ollama.fake_claude()
    child = ollama.start("--model", "mine:latest", "--ctx", "32768")
    ollama.agent()
    state = ollama.state()
    pids = {"agent": child.pid, "keeper": state["keeper"], "server": state["server"]}
    for pid in pids.values() if victim == "all" else [pids[victim]]:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(state["server"]), "the end of what held the model")
    child.kill()
    child.wait()
    if victim in ("agent", "server"):
        # its keeper takes the model away, also one that was put there again for a killed holder
        ollama.wait_for_end(60)
    # what could not be taken away is at the next start
    ollama.fake_claude(exits=0)
    ollama.fake_server()
    assert ollama.run("--tiny", "--backend", "llama-server").returncode == 0


def test_nothing_is_left_when_the_launcher_dies_the_moment_the_model_is_there(ollama: World, daemon: Daemon) -> None:
    (ollama.bin / "claude").unlink()
    ollama.fake_claude()
    for number in (signal.SIGINT, signal.SIGKILL):
        child = ollama.start("--model", "mine:latest", "--ctx", "32768")
        wait_for(lambda: [name for name in daemon.names() if name.startswith("cclocal-")], "the derived model")
        os.kill(child.pid, number)
        child.wait()
        wait_for(lambda: daemon.names() == ["mine:latest", "mute:latest"] or None, "its end")


def test_one_that_is_loaded_already_is_used_and_stays(ollama: World, daemon: Daemon) -> None:
    """Ollama keeps one runner for the same weights and window, under the name that came first."""
    body = {"model": "mine", "options": {"num_ctx": 32768}, "keep_alive": "10m"}
    httpx.post(f"{daemon.url}/api/generate", json=body, trust_env=False, timeout=60).raise_for_status()
    assert daemon.loaded() == {"mine:latest": 32768}
    (ollama.bin / "claude").unlink()
    ollama.fake_claude(exits=0)
    done = ollama.run("--model", "mine:latest", "--ctx", "32768")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: not [name for name in daemon.names() if name.startswith("cclocal-")], "the derived model's end")
    assert daemon.loaded() == {"mine:latest": 32768}


def test_other_spellings_of_what_it_has_are_not_pulled_again(ollama: World, daemon: Daemon) -> None:
    (ollama.bin / "claude").unlink()
    ollama.fake_claude(exits=0)
    for name in ("MINE:latest", "library/mine:latest"):
        done = ollama.run("--model", name, "--backend", "ollama", "--ctx", "32768")
        assert done.returncode == 0, done.stderr
    refused = ollama.run("--model", "mine:latest", "--ctx", "32768", "--port", "4000")
    assert refused.returncode == 2
    assert "runs already" in refused.stderr


def test_two_windows_of_one_model_at_once_do_not_end_each_other(ollama: World, daemon: Daemon) -> None:
    (ollama.bin / "claude").unlink()
    ollama.fake_claude()
    first = ollama.start("--model", "mine:latest", "--ctx", "32768")
    ollama.agent()
    (ollama.record / "agent.json").unlink()
    second = ollama.start("--model", "mine:latest", "--ctx", "16384", "--out-tokens", "4096")
    ollama.agent()
    assert len(daemon.names()) == 4
    second.terminate()
    second.wait()
    wait_for(lambda: len(daemon.names()) == 3 or None, "the second's model to go")
    assert alive(first.pid)
    assert any("-32768-" in name for name in daemon.names())
    first.terminate()
    first.wait()


def test_a_model_that_calls_no_tools_is_refused_and_can_be_talked_to(ollama: World, daemon: Daemon) -> None:
    refused = ollama.run("--model", "mute:latest", "--ctx", "32768", "--", "-p", "hello")
    assert refused.returncode == 31, refused.stderr
    assert "cannot call tools" in refused.stderr
    assert "--no-tools" in refused.stderr
    talk = ollama.run("--model", "mine:latest", "--no-tools", "--ctx", "32768", "--", "-p", "hello")
    assert talk.returncode == 0, talk.stderr
    assert "I am a tiny test model." in talk.stdout


def test_a_daemon_that_answers_nonsense_is_told_in_words(ollama: World, tmp_path: Path) -> None:
    script = tmp_path / "daemon.py"
    script.write_text(
        "from http.server import *\n"
        "class H(BaseHTTPRequestHandler):\n"
        "    def log_message(self, *a): pass\n"
        "    def do_GET(self):\n"
        '        self.send_response(200); self.end_headers(); self.wfile.write(b\'{"version": "0.17.4"}\')\n'
        "    def do_POST(self):\n"
        "        self.send_response(502); self.end_headers(); self.wfile.write(b'<html>bad gateway</html>')\n"
        "    do_DELETE = do_POST\n"
        "s = HTTPServer(('127.0.0.1', 0), H); print(s.server_port, flush=True); s.serve_forever()\n"
    )
    server = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert server.stdout
    try:
        at = f"127.0.0.1:{server.stdout.readline().strip()}"
        done = ollama.run("--model", "mine:latest", "--ctx", "32768", OLLAMA_HOST=at)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    assert done.returncode == 33, done.stderr
    assert "bad gateway" in done.stderr
    assert "Traceback" not in done.stderr
    # what it could not take away is still on record
    assert len(list((ollama.home / ".local/state/cclocal/ollama").glob("*.json"))) == 1


def test_a_tag_is_pulled_with_true_progress(ollama: World, tmp_path: Path) -> None:
    ollama.env["OLLAMA_HOST"] = "127.0.0.1:1"
    model = tiny.build(tmp_path)
    template = tmp_path / "template"
    template.write_text(tiny.ollama_template())
    log = tmp_path / "registry.log"
    registry = subprocess.Popen(
        [sys.executable, str(FAKES / "registry.py"), str(model), str(log), str(template)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert registry.stdout
    port = registry.stdout.readline().strip()
    try:
        with ollama.on_terminal(
            *("--model", f"127.0.0.1:{port}/library/m:tag", "--backend", "ollama", "--ctx", "32768"),
            *("--", "-p", "Create the file pulled.txt with content: it came from the registry"),
        ) as child:
            child.expect("Downloading")
            child.expect("6.3 MB")
            child.expect_exact("Done.", timeout=60)
            child.expect(pexpect.EOF)
    finally:
        registry.kill()
        registry.wait()
        registry.stdout.close()
    assert (ollama.project / "pulled.txt").read_text() == "it came from the registry"
    # into the user's own store, where `ollama list` finds it
    assert list((ollama.home / ".ollama/models/manifests").glob("*/library/m/tag"))
