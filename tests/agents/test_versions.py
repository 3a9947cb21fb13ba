"""Versions of Claude Code are told apart by what they send."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import CACHE, CLAUDES
from tests.world import World, wait_for
from tools.tiny_model.as_gguf import gguf
from tools.tiny_model.circuit import CHAT_TEMPLATE

#: One of those that send a second system message in their first request.
LATE_SYSTEM = CACHE / "claude-code-2.1.260/bin/claude"
#: As in Qwen's templates; the tiny model's own takes any.
STRICT = (
    "{%- if messages[0].role == 'none' %}{{ raise_exception('System message must be at the beginning.') }}{%- endif %}"
)


def claude_of_version(world: World, version: str, real: Path) -> None:
    """The real program under another version."""
    program = world.bin / "claude"
    program.unlink(missing_ok=True)
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{version} (Claude Code)" && exit\nexec {real} "$@"\n')
    program.chmod(0o755)


@pytest.mark.wide
def test_a_version_that_a_strict_template_refuses_is_refused_before_the_load(world: World) -> None:
    world.real("claude", LATE_SYSTEM)
    (world.project / "strict.gguf").write_bytes(gguf(template=STRICT + CHAT_TEMPLATE))
    done = world.run("--model", "./strict.gguf", "--", "-p", "How are you?")
    assert done.returncode == 35, done.stderr
    assert "Claude Code 2.1.260 sends a system message in mid-conversation" in done.stderr
    assert "npm install -g @anthropic-ai/claude-code@" in done.stderr
    assert "loading" not in (world.log.read_text() if world.log.exists() else "")
    # a template that takes it is another matter
    (world.project / "plain.gguf").write_bytes(gguf())
    done = world.run("--model", "./plain.gguf", "--", "-p", "How are you?")
    assert done.returncode == 0, done.stderr


def test_a_version_that_no_template_refuses_is_started_with_any(world: World) -> None:
    world.real("claude", CLAUDES[0].path)
    (world.project / "strict.gguf").write_bytes(gguf(template=STRICT + CHAT_TEMPLATE))
    done = world.run("--model", "./strict.gguf", "--", "-p", "How are you?")
    assert done.returncode == 0, done.stderr
    assert "was not verified" not in done.stderr


def test_a_version_that_was_never_verified_is_said_once_and_keeps_the_prompt(world: World) -> None:
    """It sends the same, so nothing is read again."""
    world.real("claude", CLAUDES[0].path)
    assert world.run("--tiny", "--", "-p", "How are you?").returncode == 0
    notes = world.home / ".cache/cclocal/warm"
    wait_for(lambda: list(notes.glob("*.json")), "the state")
    claude_of_version(world, "2.1.999", CLAUDES[0].path)
    done = world.run("--tiny", "--", "-p", "How are you?")
    assert done.returncode == 0, done.stderr
    assert "Claude Code 2.1.999 was not verified" in done.stderr
    assert "tokens of the prompt were restored" in done.stderr
    assert len(list(notes.glob("*.json"))) == 1
    about = json.loads(next(notes.glob("*.json")).read_text())["about"]
    assert "2.1.999" not in about
    assert "was not verified" not in world.run("--tiny", "--", "-p", "How are you?").stderr


def test_a_conversation_that_was_begun_with_the_long_prompt_keeps_it(world: World) -> None:
    world.fake_server()
    world.fake_claude(exits=0)
    said = "keeps its long prompt until it is compacted"
    assert said in world.run("--tiny", "--lean", "--", "--continue").stderr
    assert said not in world.run("--tiny", "--lean").stderr
    assert said not in world.run("--tiny", "--", "--continue").stderr
