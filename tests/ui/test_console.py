"""What is printed steers no terminal, wherever its text came from."""

from __future__ import annotations

import re

import pexpect
import pytest
from rich.text import Text

from cclocal.errors import UsageError
from cclocal.turns import plain_lines, without_keys
from cclocal.ui import console as ui
from cclocal.ui.tables import plain_table
from tests.world import World

EVIL = "a\x1b]0;title\x07\x1b[2J\x9b31mb\r\x08c"


def test_no_control_character_reaches_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    ui.say(f"the model {EVIL}", "yellow")
    ui.show_error(UsageError(EVIL, cause=[EVIL], hint=EVIL, log=EVIL))
    table = plain_table("name")
    table.add_row(Text(EVIL))
    ui.output().print(table)
    ui.print_json({"model": EVIL})
    text = "".join(capsys.readouterr())
    # the colours are rich's own
    for own in ("\x1b[1;31m", "\x1b[33m", "\x1b[0m", "\x1b[2m", "\x1b[1m"):
        text = text.replace(own, "")
    assert text.count("title") == 7
    assert not [c for c in text if not c.isprintable() and c != "\n"], ascii(text)


def test_no_key_reaches_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    keys = (
        "hf_" + "A1b2" * 8,
        "sk-ant-api03-" + "x" * 20,
        "sk-proj_" + "y" * 20,
        "ghp_" + "z" * 30,
        "Bearer " + "k" * 20,
    )
    said = " and ".join(keys)
    ui.say(said)
    ui.show_error(UsageError(f"refused: {said}", cause=plain_lines(f"Authorization: {said}\n"), hint=said))
    text = "".join(capsys.readouterr())
    for kind in ("hf_…", "sk-…", "ghp_…", "Bearer …"):
        assert text.count(kind) >= 4
    assert not [key for key in keys if key[-8:] in text]
    # words that only look like one
    assert without_keys("task-123456789012345 disk-0123456789012") == "task-123456789012345 disk-0123456789012"


def test_the_line_while_a_server_loads_is_one_and_without_the_logs_own_time(world: World) -> None:
    world.terminal = (24, 60)
    world.fake_server(load_s=2, buffers=["0.00.522.199 I llama_kv_cache: " + "buffer " * 30])
    world.fake_claude(exits=0)
    with world.on_terminal("tiny", "--cold") as child:
        child.expect("llama_kv_cache: buffer")
        child.expect(pexpect.EOF)
        lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", str(child.before)).replace("\r", "\n").splitlines()
    assert not any("522.199" in line for line in lines)
    assert all(len(line) <= 60 for line in lines if "Tiny copy circuit: " in line and "…" in line)


def test_off_a_terminal_a_phase_is_one_line(world: World) -> None:
    world.fake_server(load_s=14)
    world.fake_claude(exits=0)
    said = world.run("tiny", "--cold").stderr
    assert said.count("Tiny copy circuit: ") == 1
