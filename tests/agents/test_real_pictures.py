"""A picture is seen: real Claude Code, real llama.cpp, and a model with computed weights that tells colours apart."""

from __future__ import annotations

import base64
import json
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from cclocal import tiny
from cclocal.backends.llama_server.spec import SPECULATION
from cclocal.checks.picture import image, png
from cclocal.settings import Speculation
from tests.conftest import CLAUDES, ENGINES, OTHERS, Engine, wide
from tests.engine import engine as bare_engine
from tests.talk import Event, results, talk
from tests.world import World, wait_for

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
#: Red: a JPEG of 32 × 32 pixels, and a GIF of 2 × 2.
JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19i"
    "Z2hnPk1xeXBkeFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2Nj"
    "Y2NjY2NjY2P/wAARCAAgACADASIAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAAAAX/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/8QA"
    "FgEBAQEAAAAAAAAAAAAAAAAAAAUG/8QAFBEBAAAAAAAAAAAAAAAAAAAAAP/aAAwDAQACEQMRAD8AigJbeAAAAAAP/9k="
)
GIF = base64.b64decode("R0lGODlhAgACAIAAAP8AAP8AACwAAAAAAgACAAACAwSAAgA7")


@pytest.fixture
def seeing(world: World, engine: Engine) -> World:
    """The circuit with eyes, as the product builds it, and pictures in the folder."""
    world.real("claude", CLAUDES[0].path)
    world.real("llama-server", engine.binary)
    for name, colour in (("red", RED), ("green", GREEN), ("blue", BLUE)):
        (world.project / f"{name}.png").write_bytes(png(colour, 64, 64))
    return world


def answer(events: list[Event]) -> str:
    """The last text of the model's."""
    return str(events[-1]["result"])


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_pictures_are_seen_and_the_conversation_goes_on_warm(seeing: World) -> None:
    project = seeing.project
    (project / "shot.webp").write_bytes(b"RIFF\x24\x00\x00\x00WEBPVP8 ")
    (project / "photo.png").write_bytes(png(GREEN, 4000, 3000))
    (project / "red.jpg").write_bytes(JPEG)
    (project / "red.gif").write_bytes(GIF)
    with talk(seeing, "--tiny-eyes") as session:
        session.say("Run the command: seq 1 400")
        # by a call of Read
        assert answer(session.say(f"Look at the picture: {project}/red.png")) == "I see red."
        assert "magick shot.webp shot.webp.png" in results(session.say(f"Look at the picture: {project}/shot.webp"))
        assert answer(session.say(f"Look at the picture: {project}/red.jpg")) == "I see red."
        # 12 megapixels, which Claude Code scales
        assert answer(session.say(f"Look at the picture: {project}/photo.png")) == "I see green."
        assert answer(session.say(f"Look at the picture: {project}/red.gif")) == "I see red."
        # named in the message
        assert answer(session.say("What is @blue.png ?")) == "I see blue."
    seeing.wait_for_end()
    done = seeing.run(
        "--tiny-eyes", "--", "-p", "--continue", f"Look at the picture: {project}/blue.png", "--output-format", "json"
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["result"] == "I see blue."
    assert "of the conversation were restored" in done.stderr
    seeing.wait_for_end()
    rows = json.loads(seeing.run("stats", "--json").stdout)["turns"]
    assert rows[0]["read_tokens"] < 400 < rows[0]["kept_tokens"] / 8, rows


@pytest.mark.parametrize("engine", ENGINES[:1], indirect=True)
def test_a_picture_that_cannot_be_read_is_taken_out_and_the_session_goes_on(seeing: World) -> None:
    damaged = seeing.project / "damaged.png"
    damaged.write_bytes(png(RED, 64, 64)[:60] + b"\0" * 40)
    with talk(seeing, "--tiny-eyes", "--cold") as session:
        assert "I see red" not in answer(session.say(f"Look at the picture: {damaged}"))
        assert answer(session.say(f"Look at the picture: {seeing.project}/blue.png")) == "I see blue."


@pytest.mark.parametrize("engine", ENGINES[:1], indirect=True)
@pytest.mark.parametrize(
    ("name", "words"),
    [wide("codex", ("What do you see?", "-i", "red.png")), wide("pi", ("@red.png", "What do you see?"))],
)
def test_the_other_agents_show_one(seeing: World, name: str, words: tuple[str, ...]) -> None:
    program, once, _ = OTHERS[name]
    seeing.real(name, program)
    done = seeing.run("--tiny-eyes", "--agent", name, "--", *once, *words)
    assert done.returncode == 0, done.stderr
    assert "I see red." in done.stdout


@pytest.mark.parametrize("engine", ENGINES[:1], indirect=True)
@pytest.mark.parametrize("name", ["claude", wide("codex"), wide("pi")])
def test_a_check_shows_one(seeing: World, name: str) -> None:
    """In each agent's own API."""
    if name in OTHERS:
        seeing.real(name, OTHERS[name][0])
    told = json.loads(seeing.run("check", "tiny-eyes", "--agent", name, "--no-tune", "--json").stdout)
    (row,) = (row for row in told["rows"] if row["name"] == "A picture that a tool returns is seen")
    assert row["status"] == "pass", row


@pytest.mark.parametrize("engine", ENGINES[:1], indirect=True)
def test_a_conversation_with_pictures_goes_on_with_a_model_that_sees_none(seeing: World) -> None:
    """The engine refuses what stands in the conversation; Claude Code takes it out by the words that it is told."""
    asked = ("-p", "--output-format", "json", f"Look at the picture: {seeing.project}/red.png")
    first = json.loads(seeing.run("--tiny-eyes", "--cold", "--", *asked).stdout.splitlines()[-1])
    assert first["result"] == "I see red."
    for model in ("tiny", "tiny-eyes"):
        name = f"{model}.txt"
        words = ("-p", "--resume", first["session_id"], f"Create the file {name} with content: on with {model}")
        done = seeing.run(model, "--cold", "--", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert (seeing.project / name).read_text() == f"on with {model}"


@pytest.mark.parametrize("engine", ENGINES[:1], indirect=True)
def test_an_agent_that_attaches_knows_what_the_model_sees(seeing: World, tmp_path: Path) -> None:
    """By what a server of ours recorded, and by what any llama.cpp reports of itself."""
    server = seeing.start("--tiny-eyes", "--server")
    words = ("-p", "--output-format", "json", f"Look at the picture: {seeing.project}/red.png")
    wait_for(lambda: "cclocal attach" in (seeing.record / "out").read_text(), "the server")
    done = seeing.run("attach", str(seeing.state()["port"]), "--", *words)
    assert json.loads(done.stdout.splitlines()[-1])["result"] == "I see red.", done.stderr
    server.send_signal(signal.SIGINT)
    server.wait(30)
    model = tmp_path / "blind.gguf"
    model.write_bytes(tiny.gguf())
    with bare_engine(None, model, tmp_path, "--ctx-size", "32768") as client:
        at = ("--url", str(client.base_url).rstrip("/"), "--key-env", "K")
        done = seeing.run(*at, "--pass-env", "K", "--", "-p", "Describe @red.png", K="key")
    assert "This model cannot see pictures, so red.png was not read." in done.stdout + done.stderr


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
@pytest.mark.parametrize("kind", ["ngram-simple", "ngram-mod"])
def test_guesses_beside_pictures_change_no_text(engine: Engine, kind: Speculation, tmp_path: Path) -> None:
    model, projector = tmp_path / "eyes.gguf", tmp_path / "mmproj.gguf"
    model.write_bytes(tiny.gguf("tiny-eyes"))
    projector.write_bytes(tiny.projector())
    content = "a line that is there again and again\n" * 20
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [image(png(BLUE, 64, 64)), {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "I see blue."},
        {"role": "user", "content": f"Create the file a.txt with content: {content}"},
    ]
    schema = {"type": "object", "properties": {"file_path": {"type": "string"}, "content": {"type": "string"}}}
    tools = [{"name": "Write", "description": "Writes.", "input_schema": schema}]
    body = {"model": "m", "max_tokens": 2000, "messages": messages, "tools": tools, "temperature": 0}
    written = {}
    for name in ("off", kind):
        words = ("--mmproj", str(projector), *SPECULATION.get(name, ()))
        with bare_engine(engine.binary, model, tmp_path, *words) as client:
            reply = client.post("/v1/messages", json=body).raise_for_status().json()
            written[name] = next(block for block in reply["content"] if block["type"] == "tool_use")["input"]
    assert written["off"] == written[kind]
    assert written["off"]["content"].startswith(content[:200])


@pytest.mark.parametrize("engine", ENGINES[:1], indirect=True)
def test_a_pasted_picture_that_the_model_cannot_see_is_taken_out(seeing: World) -> None:
    """No hook of Claude Code's is asked about it; the engine's refusal is told in the words that it knows."""
    content = [image(png(RED, 64, 64))]
    content.append({"type": "text", "text": "Run the command: echo first"})
    with talk(seeing, "--tiny", "--cold") as session:
        assert session.say(content)[-1]["is_error"] is False
        session.say("Create the file after.txt with content: the session goes on")
    assert (seeing.project / "after.txt").read_text() == "the session goes on"


@pytest.mark.parametrize("engine", ENGINES[:1], indirect=True)
def test_a_picture_by_its_address_is_not_fetched(seeing: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as somewhere:
        somewhere.settimeout(0.1)
        url = f"http://127.0.0.1:{somewhere.getsockname()[1]}/red.png"
        picture: dict[str, Any] = {"type": "image", "source": {"type": "url", "url": url}}
        with talk(seeing, "--tiny-eyes", "--cold") as session:
            session.say([picture, {"type": "text", "text": "What is it?"}])
            session.say("Create the file after.txt with content: the session goes on")
        with pytest.raises(TimeoutError):
            somewhere.accept()
    assert (seeing.project / "after.txt").read_text() == "the session goes on"
