"""The main job on real parts: real Claude Code, real llama.cpp, a real file on disk. Judged by the artefact."""

from __future__ import annotations

import re

from tests.world import World


def test_a_file_is_written(real: World) -> None:
    done = real.run("--tiny", "--", "-p", "Create the file hello.txt with content: hello from my own machine")
    assert (real.project / "hello.txt").read_text() == "hello from my own machine", done.stderr
    assert done.returncode == 0
    assert done.stdout == "Done.\n"


def test_a_command_is_run(real: World) -> None:
    done = real.run("--tiny", "--", "-p", "Run the command: echo made by bash > made.txt")
    assert (real.project / "made.txt").read_text() == "made by bash\n", done.stderr
    assert done.returncode == 0


def test_it_only_talks_when_nothing_is_to_be_done(real: World) -> None:
    done = real.run("--tiny", "--", "-p", "How are you?")
    assert done.stdout == "I am a tiny test model.\n"
    assert done.returncode == 0
    assert not list(real.project.iterdir())


def test_a_conversation_goes_on_in_a_later_session(real: World) -> None:
    first = real.run("--tiny", "--", "-p", "--output-format", "json", "How are you?")
    session = re.search(r'"session_id":"([0-9a-f-]+)"', first.stdout)
    assert session, first.stdout + first.stderr
    again = real.run("--tiny", "--", "-c", "-p", "Run the command: echo one > one.txt")
    assert (real.project / "one.txt").exists(), again.stderr
    resumed = real.run("--tiny", "--", "--resume", session[1], "-p", "Run the command: echo two > two.txt")
    assert (real.project / "two.txt").exists(), resumed.stderr
    # what was said in the first session is part of the last one's record
    records = list((real.home / ".local/share/cclocal/claude/projects").rglob("*.jsonl"))
    last = max(records, key=lambda path: path.stat().st_mtime).read_text()
    assert "How are you?" in last
    assert "two.txt" in last


def test_a_file_of_the_users_own(real: World) -> None:
    """--model PATH.gguf: the same circuit, as a file the catalog does not know."""
    assert real.run("--tiny", "--", "-p", "hi").returncode == 0
    built = next((real.home / ".cache/cclocal").glob("*.gguf"))
    mine = real.project / "my model.gguf"
    mine.write_bytes(built.read_bytes())
    done = real.run("--model", "./my model.gguf", "--", "-p", "Create the file own.txt with content: mine")
    assert "untested" in done.stderr
    assert (real.project / "own.txt").read_text() == "mine", done.stderr
