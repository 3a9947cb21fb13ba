"""A server that is already there, anybody's: asked what it is, used, and never stopped."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pexpect
import pytest

from cclocal import tiny
from cclocal.server.start import free_port
from tests.talk import compacts_at
from tests.world import FAKES, World, alive, port_is_free, wait_for

Serve = Callable[..., int]
LLAMA_CPP = {"/props": {"default_generation_settings": {"n_ctx": 40960}, "total_slots": 1}}


@pytest.fixture
def serve(world: World) -> Iterator[Serve]:
    """Start somebody's server with switches; returns its port."""
    world.fake_claude(exits=0)
    started: list[subprocess.Popen[bytes]] = []

    def start(*, key: str = "", alias: str = "some-model", **switches: Any) -> int:
        port = free_port()
        started.append(start_somebodys(world, port, key=key, alias=alias, record=str(world.record), **switches))
        return port

    yield start
    for server in started:
        # whatever happened, it was left alone
        assert alive(server.pid)
        server.kill()
        server.wait()
    (world.record / "pids.json").unlink(missing_ok=True)


def start_somebodys(
    world: World, port: int, *, key: str = "", alias: str = "some-model", **switches: Any
) -> subprocess.Popen[bytes]:
    """A server that cclocal knows nothing of, listening."""
    keys = world.root / f"key-{port}"
    keys.write_text(key)
    switches = {**({} if key else {"lets_anybody_in": True}), **switches}
    code = f"import sys; sys.path.insert(0, {str(FAKES)!r}); from llama_server import main; main({switches!r})"
    words = ["--port", str(port), "--alias", alias, "--api-key-file", str(keys)]
    server = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL)
    wait_for(lambda: not port_is_free(port), "the server")
    return server


def env(world: World) -> dict[str, str]:
    return dict(world.agent()["env"])


def test_the_agent_goes_by_the_servers_own_window(world: World, serve: Serve) -> None:
    port = serve(routes=LLAMA_CPP)
    done = world.run(str(port), "--", "-p", "x")
    assert done.returncode == 0, done.stderr
    assert "some-model on llama-server" in done.stderr
    assert "40,960" in done.stderr
    got = env(world)
    # the agent speaks to the session's relay, on a port of its own
    assert got["ANTHROPIC_BASE_URL"] != f"http://127.0.0.1:{port}"
    assert got["ANTHROPIC_MODEL"] == "some-model"
    assert int(got["CLAUDE_CODE_MAX_CONTEXT_TOKENS"]) - 8192 - 13000 == compacts_at(40960, 8192)
    assert world.agent()["argv"][-2:] == ["-p", "x"]
    assert world.run("--url", f"http://localhost:{port}/v1", "--", "-p", "x").returncode == 0


def test_a_key_comes_from_a_variable_and_nowhere_else(world: World, serve: Serve) -> None:
    port = serve(key="s3cret", routes=LLAMA_CPP)
    refused = world.run(str(port))
    assert refused.returncode == 2
    assert "--key-env" in refused.stderr
    done = world.run("--url", f"http://127.0.0.1:{port}", "--key-env", "MY_KEY", MY_KEY="s3cret")
    assert done.returncode == 0, done.stderr
    # the key is the relay's; the agent has the session's own
    assert "s3cret" not in env(world).values()
    assert "MY_KEY" not in env(world)
    assert "s3cret" not in done.stderr + " ".join(world.agent()["argv"])
    assert world.run("--url", f"http://127.0.0.1:{port}", "--key-env", "NOT_THERE").returncode == 2


@pytest.mark.parametrize(
    ("routes", "context"),
    [
        ({"/api/ps": {"models": [{"name": "some-model", "context_length": 32768}]}}, 32768),
        ({"/v1/models": {"data": [{"id": "some-model", "max_model_len": 50000}]}}, 50000),
    ],
    ids=["Ollama", "vLLM"],
)
def test_other_servers_tell_their_window_otherwise(
    world: World, serve: Serve, routes: dict[str, Any], context: int
) -> None:
    done = world.run(str(serve(routes=routes)))
    assert done.returncode == 0, done.stderr
    assert f"{context:,}" in done.stderr


def test_a_window_that_is_too_small_is_refused_and_an_unknown_one_asked_for(world: World, serve: Serve) -> None:
    small = world.run(str(serve(routes={"/api/ps": {"models": [{"name": "some-model", "context_length": 4096}]}})))
    assert small.returncode == 2
    assert "4,096" in small.stderr
    unknown = serve()
    asked = world.run(str(unknown))
    assert asked.returncode == 2
    assert "--ctx" in asked.stderr
    assert world.run(str(unknown), "--ctx", "32768").returncode == 0
    more = world.run(str(serve(routes=LLAMA_CPP)), "--ctx", "65536")
    assert more.returncode == 2
    assert "more than the 40,960" in more.stderr


def test_a_window_can_be_given_with_an_address(world: World, serve: Serve) -> None:
    world.fake_claude(exits=0)
    port = serve(routes=LLAMA_CPP)
    done = world.run("--url", f"http://127.0.0.1:{port}", "--ctx", "20480", "--out-tokens", "2048")
    assert done.returncode == 0, done.stderr
    # a variable is about servers that are started, and --model chooses among the models of this one
    done = world.run("--model", "served", CCLOCAL_URL=f"http://127.0.0.1:{port}", CCLOCAL_CTX="999999")
    assert "is set but not used" not in done.stderr
    assert f"127.0.0.1:{port}" in done.stderr


def test_of_several_models_one_is_named(world: World, serve: Serve) -> None:
    routes = {**LLAMA_CPP, "/v1/models": {"data": [{"id": "a"}, {"id": "b"}]}}
    port = serve(routes=routes)
    several = world.run(str(port))
    assert several.returncode == 2
    assert "a, b" in several.stderr
    assert world.run(str(port), "--model", "c").returncode == 2
    assert world.run("--url", f"127.0.0.1:{port}", "--model", "b").returncode == 0
    assert env(world)["ANTHROPIC_MODEL"] == "b"


def test_what_is_no_server_for_an_agent_is_said(world: World, serve: Serve) -> None:
    nothing = world.run(str(free_port()))
    assert nothing.returncode == 33
    assert "Nothing answers" in nothing.stderr
    foreign = world.run(str(serve(foreign=True)))
    assert foreign.returncode == 33
    assert "not a model server" in foreign.stderr
    chat = world.run(str(serve(no_messages=True, routes=LLAMA_CPP)))
    assert chat.returncode == 33
    assert "/v1/messages" in chat.stderr


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://192.168.1.7:8080", "--insecure-http"),
        ("ftp://127.0.0.1", "not "),
        ("http://user:pw@127.0.0.1:1", "not "),
        ("http://127.0.0.1:99999", "not "),
        ("http://[::1", "not "),
        ("http://127.0.0.1:8080/api/v2", "has a path"),
    ],
)
def test_addresses_that_are_refused(world: World, url: str, words: str) -> None:
    world.fake_claude()
    done = world.run("--url", url)
    assert done.returncode == 2
    assert words in done.stderr


def test_our_own_server_is_found_by_its_address_too(world: World) -> None:
    world.fake_server()
    world.fake_claude(exits=0)
    child = world.start("--server", "--tiny")
    port = world.state()["port"]
    wait_for(lambda: "cclocal attach" in (world.record / "out").read_text(), "the server")
    for words in ((str(port),), ("--url", f"http://127.0.0.1:{port}"), ("attach", str(port))):
        done = world.run(*words)
        assert done.returncode == 0, done.stderr
        assert env(world)["ANTHROPIC_MODEL"] == "tiny"
        (world.record / "agent.json").unlink()
    child.terminate()
    child.wait()


def test_what_a_plain_agent_needs_is_printed_and_the_key_only_where_nobody_sees_it(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    child = world.start("--server", "--tiny")
    wait_for(lambda: "cclocal attach" in (world.record / "out").read_text(), "the server")
    port = str(world.state()["port"])
    key = world.run("env", port, "--key").stdout.strip()
    assert key.startswith("cclocal-")
    # a shell that takes them over can ask the server
    script = f'eval "$({" ".join(world.command)} env {port})" && env'
    done = subprocess.run(["/bin/sh", "-c", script], env=world.env, capture_output=True, text=True, check=True)
    told = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert told["ANTHROPIC_BASE_URL"] == f"http://127.0.0.1:{port}"
    reply = httpx.get(f"{told['ANTHROPIC_BASE_URL']}/v1/models", headers={"x-api-key": told["ANTHROPIC_AUTH_TOKEN"]})
    assert reply.status_code == 200
    for agent, words in (("codex", "export CCLOCAL_KEY="), ("pi", "models.json"), ("claude", "export ANTHROPIC_MODEL")):
        assert words in world.run("env", port, "--agent", agent).stdout
    settings = json.loads(world.run("env", port, "--vscode").stdout)
    assert settings["claudeCode.disableLoginPrompt"] is True
    assert {"name": "ANTHROPIC_AUTH_TOKEN", "value": key} in settings["claudeCode.environmentVariables"]
    with world.on_terminal("env", port) as terminal:
        terminal.expect(pexpect.EOF)
        shown = str(terminal.before)
    assert key not in shown
    assert "env" in shown
    with world.on_terminal("env", port, "--show-key") as terminal:
        terminal.expect(key)
    missing = world.run("env", "1")
    assert missing.returncode == 2
    assert "No server of cclocal's listens on port 1" in missing.stderr
    child.terminate()
    child.wait()


def test_a_server_with_several_slots_gives_the_window_of_one(world: World) -> None:
    world.fake_server(load_s=2.0)
    world.fake_claude(exits=0)
    child = world.start("--server", "--tiny", "--ctx", "65536", "--slots", "2")
    port = world.state()["port"]
    # it is still loading, and waited for
    done = world.run(str(port))
    assert done.returncode == 0, done.stderr
    assert int(env(world)["CLAUDE_CODE_MAX_CONTEXT_TOKENS"]) - 4096 - 13000 == compacts_at(32768, 4096)
    assert world.run(str(port), "--model", "other").returncode == 2
    assert world.run(str(port), "--ctx", "65536").returncode == 2
    child.terminate()
    child.wait()


def test_a_model_that_is_served_already_is_not_loaded_twice(world: World) -> None:
    world.fake_server()
    world.fake_claude(exits=0)
    # in a sandbox the agent has a relay of its own, and so a port
    world.env["CCLOCAL_SANDBOX"] = "off"
    child = world.start("--server", "--tiny")
    port = world.state()["port"]
    world.server_pids()
    (world.record / "pids.json").rename(world.record / "first.json")
    done = world.run("--tiny", "--", "-p", "x")
    assert done.returncode == 0, done.stderr
    assert f"on port {port}: using that" in done.stderr
    assert env(world)["ANTHROPIC_BASE_URL"] == f"http://127.0.0.1:{port}"
    assert not (world.record / "pids.json").exists()
    # with wishes of its own it gets a server of its own
    assert world.run("--tiny", "--ctx", "65536", "--", "-p", "x").returncode == 0
    assert env(world)["ANTHROPIC_BASE_URL"] != f"http://127.0.0.1:{port}"
    child.terminate()
    child.wait()


def test_a_file_of_the_same_name_elsewhere_is_another_model(world: World) -> None:
    """A model's path is compared whole: ./m.gguf is another file in another folder."""
    world.fake_server()
    world.fake_claude(exits=0)
    other = world.root / "other"
    for folder in (world.project, other):
        folder.mkdir(exist_ok=True)
        (folder / "m.gguf").write_bytes(tiny.gguf())
    server = world.start("--server", "--model", "./m.gguf")
    wait_for(lambda: "attach" in (world.record / "out").read_text(), "the server")
    here = world.run("--model", "m.gguf")
    assert "is served in another terminal already" in here.stderr
    done = subprocess.run(
        [*world.command, "--model", "./m.gguf"], env=world.env, cwd=other, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "is served in another terminal already" not in done.stderr
    server.send_signal(signal.SIGINT)
    server.wait()


def test_a_window_too_small_for_the_agent_is_refused_on_our_own_server_too(world: World) -> None:
    world.fake_server()
    world.fake_claude(exits=0)
    server = world.start("--server", "--tiny")
    wait_for(lambda: "attach" in (world.record / "out").read_text(), "the server")
    port = world.state()["port"]
    done = world.run("attach", str(port), "--ctx", "2000")
    assert done.returncode == 2
    assert "has a window of 2,000 tokens" in done.stderr
    server.send_signal(signal.SIGINT)
    server.wait()


def test_what_is_said_beside_an_address(world: World, serve: Serve) -> None:
    port = serve(routes=LLAMA_CPP)
    url = f"http://127.0.0.1:{port}"
    for words in (("--url", url, "--dry-run"), ("--url", url, "--tiny"), ("--key-env", "X"), ("--insecure-http",)):
        done = world.run(*words)
        assert done.returncode == 2, words
        assert not (world.record / "agent.json").exists()
    # a lasting default is about servers that we start; what is typed beats a variable
    config = world.home / ".config/cclocal/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[defaults]\nmodel = "gemma"\nctx = 65536\n')
    assert world.run("--url", url).returncode == 0
    assert env(world)["ANTHROPIC_MODEL"] == "some-model"
    world.fake_server()
    plan = world.run("--tiny", "--dry-run", CCLOCAL_URL=url)
    assert "Tiny copy circuit" in plan.stdout


def test_a_server_of_another_that_goes_is_told_in_words(world: World) -> None:
    """It is not ours to start again: the agent is told, and asks again by itself."""
    with somebodys_server(world) as (server, port):
        world.fake_claude()
        session = world.start(str(port))
        assert world.ask().status_code == 200
        server.kill()
        server.wait()
        reply = world.ask()
        assert reply.status_code == 502
        assert f"The model server at 127.0.0.1:{port} does not answer" in reply.text
        session.terminate()
        session.wait()


def test_a_key_that_is_refused_later_asks_for_no_login(world: World) -> None:
    with somebodys_server(world, key="s3cret") as (server, port):
        world.fake_claude()
        session = world.start("--url", f"http://127.0.0.1:{port}", "--key-env", "MY_KEY", MY_KEY="s3cret")
        assert world.ask().status_code == 200
        server.kill()
        server.wait()
        with somebodys_server(world, key="another", port=port):
            reply = world.ask()
        assert reply.status_code == 400
        assert "refuses its key" in reply.json()["error"]["message"]
        session.terminate()
        session.wait()


@contextlib.contextmanager
def somebodys_server(world: World, *, key: str = "", port: int = 0) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server that the test may end."""
    port = port or free_port()
    server = start_somebodys(world, port, key=key, routes=LLAMA_CPP)
    try:
        yield server, port
    finally:
        server.kill()
        server.wait()


def certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody trusts, and its key, in one file."""
    file = folder / "server.pem"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    words += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(file), "-out", str(folder / "cert.pem")]
    subprocess.run(["openssl", *words], check=True, capture_output=True)
    with file.open("a") as both:
        both.write((folder / "cert.pem").read_text())
    return file


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")
def test_a_server_behind_tls(world: World, serve: Serve) -> None:
    """Its certificate is checked by launcher and relay; the agent speaks plain HTTP to this machine only."""
    file = certificate(world.root)
    port = serve(routes=LLAMA_CPP, key="s3cret", tls=str(file))
    words = ("--url", f"https://127.0.0.1:{port}", "--key-env", "MY_KEY")
    refused = world.run(*words, MY_KEY="s3cret")
    assert refused.returncode == 33
    assert f"The certificate of https://127.0.0.1:{port} is not trusted." in refused.stderr
    assert "--ca FILE" in refused.stderr
    # by a variable of the system's, by an option, by a variable of ours
    for given, more in (((), "SSL_CERT_FILE"), (("--ca", "../cert.pem"), ""), ((), "CCLOCAL_CA")):
        done = world.run(*words, *given, MY_KEY="s3cret", **({more: str(world.root / "cert.pem")} if more else {}))
        assert done.returncode == 0, done.stderr
    for wrong, why in (("../none.pem", "No such file"), ("../notes.pem", "it holds no certificate")):
        (world.root / "notes.pem").write_text("no certificate")
        done = world.run(*words, "--ca", wrong, MY_KEY="s3cret")
        assert done.returncode == 2
        assert why in done.stderr
    (world.record / "agent.json").unlink()
    world.fake_claude()
    session = world.start(*words, "--ca", str(world.root / "cert.pem"), MY_KEY="s3cret")
    assert world.ask().status_code == 200
    assert env(world)["ANTHROPIC_BASE_URL"].startswith("http://127.0.0.1:")
    assert "s3cret" not in str(env(world))
    session.terminate()
    session.wait()
