"""What is missing is offered and installed on yes; what is newer is told."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator

import pexpect
import pytest

from tests.world import World


@pytest.fixture
def without_agent(world: World) -> World:
    """A machine with npm, which has the agent, and without the agent."""
    world.fake_server()
    stash = world.root / "registry"
    stash.mkdir()
    world.fake_claude(exits=0).rename(stash / "claude")
    npm = world.bin / "npm"
    npm.write_text(
        f'#!/bin/sh\n[ "$1" = view ] && {{ echo 9.9.9; exit; }}\necho "npm $*"\ncp {stash}/claude {world.bin}/claude\n'
    )
    npm.chmod(0o755)
    return world


def test_an_agent_is_installed_on_yes(without_agent: World) -> None:
    with without_agent.on_terminal("--tiny") as child:
        child.expect("claude was not found on PATH")
        child.expect(r"Install it now\?  npm install -g @anthropic-ai/claude-code@[\d.]+ \[y/N\]")
        child.sendline("y")
        child.expect("npm install -g")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0
    assert (without_agent.record / "agent.json").exists()


@pytest.mark.parametrize("answer", ["n", ""])
def test_and_not_otherwise(without_agent: World, answer: str) -> None:
    with without_agent.on_terminal("--tiny") as child:
        child.expect("Install it now")
        child.sendline(answer)
        child.expect("npm install -g")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 35
    assert not (without_agent.bin / "claude").exists()
    # where nobody can be asked nothing is
    done = without_agent.run("--tiny", "-p", "x")
    assert done.returncode == 35
    assert "Install it now" not in done.stderr


def test_an_installer_that_fails_is_told(without_agent: World) -> None:
    (without_agent.bin / "npm").write_text("#!/bin/sh\necho no space left >&2\nexit 7\n")
    with without_agent.on_terminal("--tiny") as child:
        child.expect("Install it now")
        child.sendline("y")
        child.expect("no space left")
        child.expect(r"npm ended with 7\.")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 1


class Index(http.server.BaseHTTPRequestHandler):
    """An index of packages (PEP 691) that knows one of ours."""

    def do_GET(self) -> None:
        body = json.dumps({"versions": ["0.1", "9.9.9rc1", "2099.1.5", "2099.1.10"]}).encode()
        self.send_response(200 if "xllamacpp" in self.path else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def index() -> Iterator[dict[str, str]]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {"PIP_INDEX_URL": f"http://127.0.0.1:{server.server_address[1]}/simple"}
        server.shutdown()


def test_what_is_newer_is_told_and_not_installed(without_agent: World, index: dict[str, str]) -> None:
    without_agent.fake_claude()
    rows = {row["name"]: row for row in json.loads(without_agent.run("update", "--json", **index).stdout)}
    assert (rows["xllamacpp"]["newest"], rows["xllamacpp"]["is_newer"]) == ("2099.1.10", True)
    # it is not on that index: unknown, and not “nothing newer”
    assert (rows["cclocal"]["newest"], rows["cclocal"]["is_newer"]) == (None, False)
    assert (rows["Claude Code"]["newest"], rows["Claude Code"]["verified"]) == ("9.9.9", "2.1.331")
    shown = without_agent.run("update", **index)
    assert "pip install --upgrade xllamacpp" in shown.stderr
    assert "npm install -g @anthropic-ai/claude-code@9.9.9" in shown.stderr
    assert "not known" in shown.stdout
