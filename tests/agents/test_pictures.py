"""A picture that the model cannot see is answered in words, and the session goes on: the real Claude Code."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from cclocal.agents.claude.pictures import answer
from tests.talk import results, talk
from tests.world import World

#: One red pixel.
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/iZk9HQAAAABJRU5ErkJggg=="
)


def read(path: str, folder: Path, *, sees: str) -> str:
    asked = {
        "hook_event_name": "PreToolUse",
        "tool_name": "Read",
        "tool_input": {"file_path": path},
        "cwd": str(folder),
    }
    told: dict[str, Any] = answer(asked, sees=sees).get("hookSpecificOutput", {})
    return str(told.get("permissionDecisionReason", ""))


def said(prompt: str, folder: Path, *, sees: str) -> str:
    asked = {"hook_event_name": "UserPromptSubmit", "prompt": prompt, "cwd": str(folder)}
    return str(answer(asked, sees=sees).get("reason", ""))


@pytest.mark.parametrize(
    ("name", "sees", "words"),
    [
        ("a.png", "none", "This model cannot see pictures, so a.png was not read."),
        ("A.JPG", "none", "This model cannot see pictures"),
        ("a.png", "all", ""),
        ("a.png", "messages", "The user may name it: @a.png"),
        ("a.webp", "messages", "magick a.webp a.webp.png"),
        ("a.webp", "all", "magick a.webp a.webp.png"),
        ("named.png", "all", "the engine reads no webp"),
        ("a.pdf", "all", "pdftotext a.pdf -"),
        ("a.pdf", "none", "pdftotext a.pdf -"),
        ("main.py", "none", ""),
        ("", "none", ""),
    ],
)
def test_a_file_that_cannot_be_seen(name: str, sees: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "named.png").write_bytes(b"RIFF\x24\x00\x00\x00WEBPVP8 ")
    assert read(name, tmp_path, sees=sees).count(words or "was not read") == bool(words)


def test_a_message_that_names_one(tmp_path: Path) -> None:
    for name in ("red.png", "my shot.png", "notes.txt"):
        (tmp_path / name).write_bytes(PNG)
    assert "red.png was not read" in said("look at @red.png please", tmp_path, sees="none")
    assert said("look at @red.png please", tmp_path, sees="none").endswith("and the file is only named.")
    assert "my shot.png was not read" in said('@"my shot.png" what is it?', tmp_path, sees="none")
    # a file that is not there is no file, and neither is an address
    for prompt in ("look at @gone.png", "write to me@red.png", "read @notes.txt", "@~nobody/red.png", ""):
        assert not said(prompt, tmp_path, sees="none")
    for sees in ("messages", "all"):
        assert not said("look at @red.png", tmp_path, sees=sees)


def test_the_model_is_told_and_the_session_goes_on(scripted: World) -> None:
    picture = scripted.project / "red.png"
    picture.write_bytes(PNG)
    call = {"tool": ["Read", {"file_path": str(picture)}]}
    scripted.fake_server(replies=[call, {"text": "I cannot see it."}, {"text": "Fine."}])
    with talk(scripted, "--tiny", "--cold") as session:
        assert "This model cannot see pictures, so red.png was not read." in results(session.say("Look at red.png"))
        session.say("How are you?")
    sent = [json.dumps(request["body"]) for request in scripted.requests() if request["body"]]
    assert len(sent) == 3
    assert not any('"image"' in body for body in sent)


def test_a_message_with_a_picture_is_not_sent(scripted: World) -> None:
    (scripted.project / "red.png").write_bytes(PNG)
    scripted.fake_server(replies=[])
    done = scripted.run("--tiny", "--cold", "--", "-p", "Describe @red.png")
    assert "This model cannot see pictures, so red.png was not read." in done.stdout + done.stderr
    assert not [request for request in scripted.requests() if request["body"]]
