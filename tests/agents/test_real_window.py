"""The window is true: real sessions that outgrow it, and replies that outgrow their limit, on the three engines."""

from __future__ import annotations

import re
from typing import Any

import pytest

from cclocal.agents.claude.command import window
from tests.conftest import CACHE, CI, CLAUDES, ENGINES, Claude
from tests.talk import calls, compactions, compacts_at, prompt, results, talk
from tests.world import World

# one of the engines needs minutes for a prompt, on a machine that has other things to do too
pytestmark = pytest.mark.timeout(1800)

PROGRAMS = {"ollama": CACHE / "ollama-0.17.4/bin/ollama", "vllm-mlx": CACHE / "vllm-mlx-0.6.0/bin/vllm-mlx"}
#: A small window: Claude Code's prompt, a long question, and the conversation is full.
CTX, OUT = 13312, 256
#: What --lean saves of it: for the engines that need minutes for a prompt, so that they need fewer.
LEAN_TOKENS = 3584
#: Long enough that the next question is one too many, with any version's prompt.
LONG = "Keep in mind: " + " ".join(f"note number {i}" for i in range(450)) + " . How are you?"


def pairs() -> list[Any]:
    """llama-server with every Claude Code; with CI=true Ollama and vllm-mlx with the newest.

    What a prompt counts and what a cut reply is called comes from the engine; both versions read it in the same way.
    """
    found = [pytest.param("llama-server", claude, id=f"llama-server-{claude.version}") for claude in CLAUDES]
    for name, program in PROGRAMS.items():
        out = pytest.mark.skipif(not (CI and program.exists()), reason="CI=true runs it")
        found.append(pytest.param(name, CLAUDES[0], id=name, marks=out))
    return found


def install(world: World, backend: str, claude: Claude, ctx: int) -> tuple[tuple[str, ...], int]:
    """(the options of a session in so small a window, the window)."""
    # one of the engines needs minutes
    world.patience_s = 900.0
    world.real("claude", claude.path)
    world.real(backend, PROGRAMS.get(backend, ENGINES[-1].binary))
    is_lean = backend in PROGRAMS
    ctx -= LEAN_TOKENS if is_lean else 0
    words = ("--tiny", "--backend", backend, "--ctx", str(ctx), "--out-tokens", str(OUT), "--cold")
    return (*words, *(("--lean",) if is_lean else ())), ctx


@pytest.mark.parametrize(("backend", "claude"), pairs())
def test_a_session_that_outgrows_its_window_is_compacted_and_goes_on(
    world: World, backend: str, claude: Claude
) -> None:
    words, ctx = install(world, backend, claude, CTX)
    with talk(world, *words) as session:
        assert not compactions(session.say(LONG))
        full: list[int] = []
        # the circuit answers some requests for a summary with a call, and is asked again at its next turn
        while not full and len(session.events) < 40:
            full = compactions(session.say("How are you?"))
        # full, not over-full
        assert compacts_at(ctx, OUT) < full[0] < ctx - OUT
        session.say("Create the file end.txt with content: still here")
        assert (world.project / "end.txt").read_text() == "still here"
    # no engine was asked for more than it was started with
    log = world.log.read_text()
    asked = [int(n) for n in re.findall(r"task\.n_tokens = (\d+)|\"prompt_tokens\": (\d+)", log) for n in n if n]
    assert max(asked, default=0) <= ctx
    assert "truncating input prompt" not in log


@pytest.mark.parametrize(("backend", "claude"), pairs())
def test_a_file_longer_than_a_reply_may_be_is_lost_loudly(world: World, backend: str, claude: Claude) -> None:
    words, _ = install(world, backend, claude, CTX + 1024)
    long = " ".join(f"word{i}" for i in range(80))
    with talk(world, *words) as session:
        said = session.say(f"Create the file long.txt with content: {long}")
        # a half is not taken for the whole
        assert not (world.project / "long.txt").exists()
        # what the model is told: that its call was cut, or its reply
        told = results(said)
        assert "truncated output. Retry" in told or "Output token limit hit. Resume" in told, said
        assert all(call["input"] for call in calls(said))
        # and the session goes on
        session.say("Create the file short.txt with content: short")
        assert (world.project / "short.txt").read_text() == "short"


def test_one_result_does_not_take_the_window_by_surprise(world: World, claude: Claude) -> None:
    world.real("llama-server", ENGINES[-1].binary)
    world.real("claude", claude.path)
    (world.project / "big.txt").write_text("\n".join(f"line {i} of a long file" for i in range(20_000)))
    with talk(world, "--tiny", "--ctx", "16384", "--out-tokens", "2048", "--cold") as session:
        before = prompt(session.say("How are you?"))
        said = session.say("Run the command: cat big.txt")
        assert "Output too large" in results(said)
        assert prompt(said) - before < 2 * window(16384, 2048).result_tokens
