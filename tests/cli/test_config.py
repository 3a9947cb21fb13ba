"""`cclocal config`: showing and changing the user's lasting defaults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.world import World

FILE = """# mine
[defaults]
lean = true   # short
"""


@pytest.fixture
def path(world: World) -> Path:
    return world.home / ".config/cclocal/config.toml"


def test_a_key_is_set_and_removed_and_comments_stay(world: World, path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(FILE)
    assert world.run("config", "set", "ctx", "64k").returncode == 0
    assert path.read_text() == f"{FILE}ctx = 65536\n"
    assert world.run("config", "set", "pass-env", "A", "B").returncode == 0
    assert 'pass_env = ["A", "B"]' in path.read_text()
    world.run("config", "unset", "ctx")
    world.run("config", "unset", "pass_env")
    assert path.read_text() == FILE


def test_what_is_set_is_shown_with_where(world: World, path: Path) -> None:
    assert "not there yet" in world.run("config").stderr
    assert world.run("config", "path").stdout == f"{path}\n"
    world.run("config", "set", "lean", "on")
    shown = json.loads(world.run("config", "--json", CCLOCAL_AGENT="pi").stdout)["settings"]
    assert shown["lean"]["value"] is True
    assert shown["lean"]["source"] == f"user file {path}:3"
    assert shown["agent"] == {"value": "pi", "source": "environment"}
    table = world.run("config", CCLOCAL_AGENT="pi").stdout
    assert "line 3" in table


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["set", "ctz", "1"], "Did you mean ctx?"),
        (["set", "ctx", "many"], "ctx must be a whole number"),
        (["set", "lean", "perhaps"], "lean must be true or false"),
        (["set", "ctx"], "set takes a KEY and a VALUE"),
        (["unset", "ctx", "1"], "unset takes a KEY"),
        (["sett", "ctx", "1"], "has no “sett”"),
        (["edit"], "no terminal for an editor"),
    ],
    ids=" ".join,
)
def test_a_mistake_changes_nothing(world: World, path: Path, words: list[str], said: str) -> None:
    done = world.run("config", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert not path.exists()


def test_a_file_with_a_mistake_is_not_written_over(world: World, path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("ctx = 3\n")
    done = world.run("config", "set", "lean", "true")
    assert done.returncode == 2
    assert "config.toml:1" in done.stderr
    assert path.read_text() == "ctx = 3\n"


def test_the_editor_of_the_user_is_started(world: World, path: Path) -> None:
    editor = world.bin / "my-editor"
    editor.write_text('#!/bin/sh\necho "lean = true" >> "$1"\n')
    editor.chmod(0o755)
    world.env["EDITOR"] = str(editor)
    with world.on_terminal("config", "edit") as child:
        child.expect("is in order")
    assert path.read_text().endswith("[defaults]\nlean = true\n")
