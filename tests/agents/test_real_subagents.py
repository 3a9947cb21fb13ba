"""Subagents of the real Claude Code, on a scripted server that is asked by both."""

from __future__ import annotations

import json

from tests.conftest import Claude
from tests.world import World

TASK = {"description": "write a note", "prompt": "Write note.txt.", "subagent_type": "general-purpose"}


def test_a_subagent_writes_a_file_on_the_same_model(scripted: World, claude: Claude) -> None:
    note = scripted.project / "note.txt"
    scripted.fake_server(
        replies=[
            {"tool": ["Agent", TASK]},
            {"tool": ["Write", {"file_path": str(note), "content": "by a subagent"}]},
            {"text": "The note is written."},
            {"text": "All is done."},
        ]
    )
    done = scripted.run("--tiny", "--cold", "--subagents", "--", "-p", "Have a note written.")
    assert done.returncode == 0, done.stderr
    assert note.read_text() == "by a subagent"
    assert "All is done." in done.stdout
    asked = [request["body"] for request in scripted.requests() if request["path"].startswith("/v1/messages")]
    asked = [body for body in asked if body.get("tools")]
    assert {body["model"] for body in asked} == {"tiny"}
    assert any(tool["name"] == "Agent" for tool in asked[0]["tools"])
    # the result of the subagent came back into the conversation
    assert "The note is written." in json.dumps(asked[-1]["messages"])


def test_without_the_option_there_is_no_such_tool(scripted: World, claude: Claude) -> None:
    scripted.fake_server(replies=[{"text": "Done."}])
    assert scripted.run("--tiny", "--cold", "--", "-p", "Hello").returncode == 0
    bodies = [request["body"] for request in scripted.requests() if (request.get("body") or {}).get("tools")]
    assert bodies
    assert not any(tool["name"] in ("Agent", "Task") for tool in bodies[-1]["tools"])
