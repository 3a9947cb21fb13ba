"""What the user gives an agent beside its own tools: MCP servers by name, and the web."""

from __future__ import annotations

import json

import pytest

from tests.conftest import OTHERS, SANDBOXED, elsewhere
from tests.fakes.elsewhere import ADDRESS
from tests.world import World

#: An MCP server with one tool.
SERVER = """
import json, sys
ANSWERS = {
    "initialize": {"protocolVersion": "2024-11-05", "capabilities": {"tools": {}},
                   "serverInfo": {"name": "mine", "version": "1"}},
    "tools/list": {"tools": [{"name": "hello", "description": "Says hello.",
                              "inputSchema": {"type": "object", "properties": {}}}]},
    "tools/call": {"content": [{"type": "text", "text": "hello from the server of mine"}]},
}
for line in sys.stdin:
    asked = json.loads(line)
    if "id" in asked:
        answer = {"jsonrpc": "2.0", "id": asked["id"], "result": ANSWERS.get(asked["method"], {})}
        print(json.dumps(answer), flush=True)
"""


def mcp(world: World) -> str:
    (world.project / "server.py").write_text(SERVER)
    servers = {"mine": {"command": "python3", "args": [str(world.project / "server.py")]}}
    (world.project / "given.json").write_text(json.dumps({"mcpServers": servers}))
    return "given.json"


def tools_of(world: World) -> list[str]:
    [first, *_] = [request["body"] for request in world.requests() if (request["body"] or {}).get("tools")]
    return [tool["name"] for tool in first["tools"]]


def test_an_mcp_server_that_the_user_names_is_there_and_said(scripted: World) -> None:
    scripted.fake_server(replies=[{"tool": ["mcp__mine__hello", {}]}, {"text": "Done."}])
    done = scripted.run("--tiny", "--cold", "--mcp", mcp(scripted), "--", "-p", "Say hello.")
    assert done.returncode == 0, done.stderr
    assert "MCP server mine: python3" in done.stderr
    assert "mcp__mine__hello" in tools_of(scripted)
    assert "hello from the server of mine" in json.dumps(scripted.requests()[-1]["body"])


def test_a_file_without_servers_is_refused(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    (world.project / "none.json").write_text("[]")
    for words, said in (
        (("--mcp", "gone.json"), "No such file"),
        (("--mcp-config", "none.json"), "no servers under"),
        (("--mcp", mcp(world), "--agent", "pi"), "pi has no --mcp; Claude Code or Codex has"),
    ):
        done = world.run("--tiny", *words)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr


@pytest.mark.wide
def test_codex_gets_it_too(world: World) -> None:
    if "codex" not in OTHERS:
        pytest.skip("Codex is not here")
    program, once, _ = OTHERS["codex"]
    world.real("codex", program)
    done = world.run("--tiny", "--agent", "codex", "--mcp", mcp(world), "--dry-run", "--json")
    argv = json.loads(done.stdout)["agent"]["argv"]
    assert any(word.startswith('mcp_servers."mine"={"command"="python3"') for word in argv), argv
    done = world.run("--tiny", "--agent", "codex", "--mcp", mcp(world), "--", *once, "Run the command: echo one > one")
    assert done.returncode == 0, done.stderr
    assert (world.project / "one").exists()


@SANDBOXED
def test_the_web_is_asked_and_nobody_else(scripted: World) -> None:
    """Claude Code asks api.anthropic.com about each page, unless it is told not to."""
    under = elsewhere(scripted, f"{ADDRESS} shop.example.org api.anthropic.com\n")
    fetch = {"url": "https://shop.example.org/", "prompt": "What is there?"}
    scripted.fake_server(replies=[{"tool": ["WebFetch", fetch]}, {"text": "Done."}])
    done = scripted.run("--tiny", "--cold", "--web", "--receipt", "--", "-p", "Look.", under=under)
    assert done.returncode == 0, done.stderr
    assert "network: the model, every https server" in done.stderr
    assert "WebFetch" in tools_of(scripted)
    assert "beyond the model: shop.example.org:443" in done.stderr
    assert "anthropic" not in done.stderr


def test_without_it_there_is_no_web(scripted: World) -> None:
    scripted.fake_server(replies=[{"text": "Done."}])
    scripted.run("--tiny", "--cold", "--", "-p", "Look.")
    assert not {"WebFetch", "WebSearch"} & set(tools_of(scripted))
