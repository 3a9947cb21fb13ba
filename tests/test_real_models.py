"""Trained language models, where the copy circuit shows nothing: a real tokenizer, real logits, a sliding window.

SmolLM2-135M-Instruct (a template without tools), and with CI=true Gemma 3 270M (a base model, whose window slides).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.llama_fit_params import ask as ask_llama_cpp
from cclocal import tiny
from cclocal.backends.llama_server.runtime import LlamaServer
from cclocal.memory.fit import fit as fit_memory
from cclocal.memory.footprint import MemoryConfig
from cclocal.models.headers import of_gguf
from tests.conftest import CACHE, CLAUDES, ENGINES, Engine
from tests.engine import engine as running
from tests.mtp_model import write_model
from tests.world import World

SMOLLM = CACHE / "models/SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA = CACHE / "models/gemma-3-270m-q4_k_m.gguf"
#: What the first turn of a warm session reads: its folder, date and question, and the end of a reply.
NEW_TOKENS = 450


@pytest.mark.wide
@pytest.mark.parametrize("model", [SMOLLM, GEMMA], ids=lambda path: path.name[:6])
@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_the_plan_counts_what_llama_cpp_counts(world: World, model: Path, kv: str) -> None:
    found = of_gguf(model)
    assert found
    for context_tokens in (4096, 32768):
        fit = fit_memory(found.shape, MemoryConfig(context_tokens, kv_type=kv), None)
        opinion = ask_llama_cpp(CACHE / "llama-server-0.3.36/build/bin/llama-fit-params", fit, world.env, model)
        assert opinion
        assert abs(opinion.cache_bytes - fit.footprint.kv_bytes) < 1 << 20
        assert abs(opinion.weights_bytes - fit.footprint.weights_bytes) < 1 << 20


def template() -> str:
    """The tiny model's, which offers tools."""
    return str(json.loads(tiny.mlx_files()["tokenizer_config.json"])["chat_template"])


def add_model(world: World, model: Path) -> None:
    """Make it a model of the user's own, with a template that offers tools, which its file has not.

    SmolLM2's window is too small for an agent: the copy claims a larger one, beyond which its answers mean nothing.
    """
    if model == SMOLLM:
        data = bytearray(model.read_bytes())
        at = data.index(b"llama.context_length") + len(b"llama.context_length") + 4
        data[at : at + 4] = (32768).to_bytes(4, "little")
        path = world.root / "smollm.gguf"
        path.write_bytes(data)
    (world.root / "template.jinja").write_text(template())
    folder = world.home / ".config/cclocal"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(f"""
[models.real]
name = "A trained model"
note = "for tests"
context_tokens = 13312
native_context_tokens = 32768
out_tokens = 256
[[models.real.variants]]
backend = "llama-server"
quant = "Q4"
path = "{path if model == SMOLLM else model}"
chat_template_file = "{world.root}/template.jinja"
""")


def first_turn(world: World, *words: str) -> dict[str, int]:
    """The tokens of a session's first turn. Whatever the model babbles, the session ends in order."""
    done = world.run("real", "--lean", "--", "-p", *words)
    assert done.returncode in (0, 1), done.stderr
    world.wait_for_end()
    return dict(json.loads(world.run("stats", "--json").stdout)["turns"][0])


def asked(world: World, content: str, *words: str, out_tokens: int = 8, **fields: Any) -> tuple[str, dict[str, Any]]:
    """(the model's reply to a fake agent in a session of its own, what the turn cost).

    The agent's conversation is a file that changes in the session.
    """
    launcher = world.start("real", *words)
    world.agent()
    conversation = world.home / ".local/share/cclocal/claude/projects/p/01234567-89ab-cdef-0123-456789abcdef.jsonl"
    conversation.parent.mkdir(parents=True, exist_ok=True)
    conversation.write_text("{}\n")
    answer = world.ask(content, out_tokens=out_tokens, **fields)
    assert answer.status_code == 200
    os.kill(world.watched(), signal.SIGTERM)
    launcher.wait()
    world.wait_for_end()
    (world.record / "agent.json").unlink()
    told = json.loads(world.run("stats", "--json").stdout)["turns"][0]
    return answer.json()["content"][0]["text"], told


def known(world: World) -> dict[str, bool]:
    """What was found out about restoring, by the kinds of memory and what was restored."""
    told = json.loads((world.home / ".local/state/cclocal/restores.json").read_text())
    return {" ".join(name.split()[2:]): works for name, works in told.items()}


def test_the_second_session_reads_only_what_is_its_own(world: World) -> None:
    world.real("claude", CLAUDES[0].path)
    add_model(world, SMOLLM)
    cold, warm = first_turn(world, "Hi"), first_turn(world, "Hello")
    assert cold["prompt_tokens"] == warm["prompt_tokens"]
    assert warm["read_tokens"] < NEW_TOKENS < warm["kept_tokens"] / 3, warm
    # a real tokenizer: 3.9 bytes a token, where the copy circuit has 2.3
    assert cold["prompt_tokens"] < 3000
    assert known(world) == {"full prompt": True}


@pytest.mark.wide
def test_a_conversation_goes_on_warm_although_the_window_slides(world: World) -> None:
    """The engine showed by itself that it can: the plan does not go by the architecture.

    The agent is a fake that wants short replies: the real one would let this model babble for minutes.
    """
    world.fake_claude()
    add_model(world, GEMMA)
    # beyond the 512 tokens of its window
    story = " ".join(f"The {number}. word of a long story." for number in range(250))
    _, cold = asked(world, story)
    _, warm = asked(world, f"{story} And now?", "--", "--continue")
    assert cold["read_tokens"] > 2000
    # back to the engine's last checkpoint, a batch of 512 tokens
    assert warm["read_tokens"] < 600 < warm["kept_tokens"] / 3, warm
    assert known(world) == {"full sliding conversation": True}


def test_a_template_that_knows_no_tools_is_told_before_the_load(world: World) -> None:
    """SmolLM2's own: llama.cpp would drop the tools in silence, and the model would chat."""
    world.fake_claude(exits=0)
    world.fake_server()
    add_model(world, SMOLLM)
    copy = world.root / "smollm.gguf"
    done = world.run("--model", str(copy), "--out-tokens", "256")
    assert done.returncode == 2, done.stderr
    assert "The chat template of smollm.gguf knows no tools" in done.stderr
    assert "--no-tools" in done.stderr
    assert not (world.record / "pids.json").exists()
    assert world.run("--model", str(copy), "--out-tokens", "256", "--no-tools").returncode == 0
    # nor does a session change to it
    done = world.run("--tiny", "--also", str(copy), "--ctx", "32768")
    assert done.returncode == 2, done.stderr
    assert "The chat template of smollm.gguf knows no tools" in done.stderr
    # a template of the user's own has them
    assert world.run("real").returncode == 0


@pytest.mark.wide
def test_its_check_ends_soon_where_it_calls_no_tool(world: World) -> None:
    """SmolLM2 talks about calling one: ten minutes, as long as every row was tried with it."""
    world.real("claude", CLAUDES[0].path)
    add_model(world, SMOLLM)
    done = world.run("check", "real", "--lean")
    assert done.returncode == 1, done.stderr
    assert "it calls no tool, so nothing more was tried" in done.stdout


@pytest.mark.wide
def test_guessed_tokens_change_nothing_but_the_steps(world: World) -> None:
    """A file that is in the prompt is written again, greedily: the same text, several tokens a step."""
    world.fake_claude()
    add_model(world, SMOLLM)
    config = world.home / ".config/cclocal/config.toml"
    config.write_text(config.read_text() + "[models.real.variants.sampling]\ntemp = 0.0\ntop_k = 1\n")
    numbers = [(number, number * 7 % 13) for number in range(25)]
    lines = "\n".join(f"def function_{one}(value):\n    return value * {one} + {two}\n" for one, two in numbers)
    replies = [
        asked(world, f"Repeat this file exactly:\n{lines}", "--speculate", kind, "--cold", out_tokens=128)
        for kind in ("off", "ngram-simple", "ngram-mod")
    ]
    texts, steps = [text for text, _ in replies], [turn["per_step"] for _, turn in replies]
    assert texts[0].startswith("def function_0(value):")
    assert len(set(texts)) == 1
    assert steps[0] is None
    assert min(steps[1:]) >= 5, steps
    assert "a step" in world.run("stats").stdout


def test_the_fastest_kind_of_speculation_is_found_and_used(world: World) -> None:
    """With an engine that cannot be started with one of the kinds."""
    world.fake_claude(exits=0)
    add_model(world, SMOLLM)
    wheel = f"{sys.executable} -P -m cclocal.backends.llama_server.xllamacpp_server"
    (world.bin / "llama-server").write_text(
        f"""#!/bin/sh
case "$*" in
*--version*) echo "version: 4242 (wrapped)" ;;
*--spec-type?ngram-mod*) echo "error: unknown kind of speculation"; exit 1 ;;
*) exec {wheel} "$@" ;;
esac
"""
    )
    (world.bin / "llama-server").chmod(0o755)
    done = world.run("check", "real", "--tune", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("No GPU was found") == 1
    told = json.loads(done.stdout)["speculation"]
    assert [row["kind"] for row in told["trials"]] == ["off", "ngram-simple", "ngram-mod"]
    assert told["trials"][2]["why"] == "the server did not start: error: unknown kind of speculation"
    # how much is guessed depends on how long the replies are, and so on the machine's speed
    assert told["trials"][1]["rewrite"]["per_s"] > 1
    assert told["trials"][1]["prose"]["per_s"] > 1
    assert told["kind"] in ("off", "ngram-simple")
    # the choice is kept, and what is typed goes before it
    (kept,) = json.loads((world.home / ".local/state/cclocal/tuned.json").read_text()).values()
    assert kept["kind"] == told["kind"]
    plan = json.loads(world.run("real", "--dry-run", "--json").stdout)
    assert plan["sources"]["speculate"] == "measured here"
    assert ("--spec-type" in plan["server"]["argv"]) == (told["kind"] != "off")
    assert (
        "ngram-mod"
        in json.loads(world.run("real", "--speculate", "ngram-mod", "--dry-run", "--json").stdout)["server"]["argv"]
    )


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_a_head_that_guesses_ahead_is_used_and_planned(world: World, engine: Engine) -> None:
    """MTP: one more layer's KV cache, a recurrent state for each guess, and buffers of its own."""
    world.real("llama-server", engine.binary)
    world.fake_claude()
    model = world.root / "little.gguf"
    write_model(model)
    launcher = world.start("--model", str(model), "--ctx", "16384", "--out-tokens", "512", "--speculate", "mtp")
    world.agent()
    assert world.ask("Hello", out_tokens=24).status_code == 200
    os.kill(world.watched(), signal.SIGTERM)
    launcher.wait()
    world.wait_for_end()
    told = json.loads(world.run("plan", "--last", "--json").stdout)
    planned, allocated = told["plan"], told["allocated"]
    for part in ("kv_bytes", "state_bytes"):
        assert abs(planned[part] - allocated[part]) < 20_000, (part, told)
    assert planned["compute_bytes"] >= allocated["compute_bytes"] // 2
    (turn,) = json.loads(world.run("stats", "--json").stdout)["turns"]
    assert turn["accepted_tokens"] is not None


def test_what_has_no_such_head_is_refused(world: World) -> None:
    world.fake_claude()
    done = world.run("--tiny", "--speculate", "mtp")
    assert done.returncode == 2
    assert "Tiny copy circuit has no head for multi-token prediction (MTP)." in done.stderr


@pytest.mark.wide
def test_a_trained_model_calls_a_tool(world: World) -> None:
    """Greedily, after four examples: SmolLM2 was not trained for tools, but it goes on with a pattern."""
    world.fake_claude()
    add_model(world, SMOLLM)
    launcher = world.start("real")
    world.agent()
    messages: list[dict[str, Any]] = []
    for letter, word in (("a", "apple"), ("b", "banana"), ("c", "cherry"), ("d", "date")):
        written = {"file_path": f"{letter}.txt", "content": word}
        messages += [
            {"role": "user", "content": f"Write {word} to {letter}.txt"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": letter, "name": "Write", "input": written}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": letter, "content": "ok"}]},
            {"role": "assistant", "content": "Done."},
        ]
    text = {"type": "string"}
    schema = {
        "type": "object",
        "properties": {"file_path": text, "content": text},
        "required": ["file_path", "content"],
    }
    answer = world.ask(
        out_tokens=128,
        temperature=0,
        system="You write files with the Write tool.",
        tools=[{"name": "Write", "description": "Write a file", "input_schema": schema}],
        messages=[*messages, {"role": "user", "content": "Write grape to g.txt"}],
    ).json()
    assert answer["stop_reason"] == "tool_use", answer
    (call,) = answer["content"]
    assert (call["type"], call["name"]) == ("tool_use", "Write")
    assert call["input"] == {"file_path": "g.txt", "content": "grape"}
    os.kill(world.watched(), signal.SIGTERM)
    launcher.wait()


@pytest.mark.wide
@pytest.mark.parametrize("engine", ENGINES, indirect=True)
@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_what_was_restored_answers_as_what_was_kept_in_memory(engine: Engine, kv: str, tmp_path: Path) -> None:
    """Bit for bit: the same text and the same five most likely tokens at each step, in another process.

    A prompt that is read in one go is another matter: its batches are cut elsewhere, which moves the numbers a little
    without any file, and at times the text.
    """
    llama = LlamaServer()
    words = ("--cache-type-k", kv, "--cache-type-v", kv, "--flash-attn", "on")
    story = " ".join(f"Line {number}: the answer to {number * 7 % 13} is not known." for number in range(60))

    def answer(client: httpx.Client, tokens: list[int]) -> tuple[str, Any, int]:
        body = {"prompt": tokens, "n_predict": 48, "temperature": 0, "n_probs": 5, "cache_prompt": True, "id_slot": 0}
        told = client.post("/completion", json=body).raise_for_status().json()
        return told["content"], told["completion_probabilities"], told["timings"]["prompt_n"]

    with running(engine.binary, SMOLLM, tmp_path, *words) as client:
        begins = llama.prompt_tokens(client, {"messages": [{"role": "user", "content": story}]})[:-8]
        whole = [*begins, *llama.prompt_tokens(client, {"messages": [{"role": "user", "content": "And now?"}]})]
        llama.read_prompt(client, begins)
        assert llama.save_prompt(client, "state.bin") == len(begins)
        kept = answer(client, whole)
    with running(engine.binary, SMOLLM, tmp_path, *words) as client:
        assert llama.restore_prompt(client, "state.bin")
        restored = answer(client, whole)
        assert restored == kept
        assert restored[2] == len(whole) - len(begins)
        # the same state once more
        assert llama.restore_prompt(client, "state.bin")
        assert answer(client, whole) == kept
    with running(engine.binary, SMOLLM, tmp_path, *words) as client:
        cold = answer(client, whole)
        assert cold[2] == len(whole)
        first, other = (float(probs[0]["logprob"]) for _, probs, _ in (cold, kept))
        assert abs(first - other) < 0.5


def test_a_template_that_drops_earlier_thinking_makes_a_state_of_use_up_to_there(world: World) -> None:
    world.fake_claude()
    add_model(world, SMOLLM)
    path = world.root / "template.jinja"
    before, assistant, after = path.read_text().partition("{% elif m.role == 'assistant' -%}")
    assert assistant
    path.write_text(before + assistant + after.replace("text(m.content)", "text(m.content).split('</think>')[-1]", 1))
    story = " ".join(f"The {number}. word of a long story." for number in range(120))
    _, cold = asked(world, story)
    thought = {"role": "assistant", "content": "<think>Hm.</think>Well."}
    history = [{"role": "user", "content": story}, thought, {"role": "user", "content": "And now?"}]
    _, warm = asked(world, "", "--", "--continue", messages=history)
    assert warm["kept_tokens"] > 0.9 * cold["prompt_tokens"], (cold, warm)
