"""A model that does not fit: what is asked, what each answer does, and what happens where nobody can be asked."""

from __future__ import annotations

import json
from pathlib import Path

import pexpect
import pytest

from bench.published_shapes import HEADERS
from bench.sparse import write
from tests.talk import compacts_at
from tests.world import World, wait_for

#: What Metal grants on a Mac of 32 GB with macOS 15: 22,906.50 MB, as llama.cpp's logs have it.
METAL = "MTL0: Apple M1 Max (21845 MiB, 21845 MiB free)"


@pytest.fixture
def coder(world: World) -> Path:
    """Qwen3 Coder 30B-A3B, as large as the real one, but only its header is there."""
    path = world.root / "coder.gguf"
    write(HEADERS["qwen3-coder-30b-a3b"](), path)
    return path


@pytest.fixture
def mac(world: World) -> World:
    world.mac(32, "15.5")
    world.fake_server(devices=[METAL, "BLAS: Accelerate (0 MiB, 0 MiB free)"])
    world.fake_claude()
    return world


def served(world: World, flag: str) -> str | None:
    argv = json.loads((world.record / "pids.json").read_text())["argv"]
    return argv[argv.index(flag) + 1] if flag in argv else None


def answer(world: World, coder: Path, key: str, *args: str) -> str:
    """Start on a terminal, answer the menu, end the agent. What stood on the screen before the question."""
    with world.on_terminal("--model", str(coder), *args) as child:
        child.expect(r"Choose \[[^]]+\] \(Enter = 1\): ")
        screen = str(child.before)
        child.sendline(key)
        child.expect(r"AGENT \d+")
        child.sendline("quit 0")
        child.expect(pexpect.EOF)
    return screen


def test_enter_takes_the_largest_context_that_fits(mac: World, coder: Path) -> None:
    screen = answer(mac, coder, "")
    for words in ("Too big", "weights", "KV cache", "budget", "left over", "(recommended)", "quit", "risky"):
        assert words in screen
    context = int(served(mac, "--ctx-size") or 0)
    assert 20_000 < context < 65536
    assert f"{context:,}" in screen
    # one number, for the agent too
    window = int(mac.agent()["env"]["CLAUDE_CODE_MAX_CONTEXT_TOKENS"])
    assert window - 8192 - 13000 == compacts_at(context, 8192)


def test_another_remedy_has_a_key_after_the_three(mac: World, coder: Path) -> None:
    screen = answer(mac, coder, "5")
    assert "5) q8_0 KV cache" in screen
    assert served(mac, "--cache-type-k") == served(mac, "--cache-type-v") == "q8_0"
    assert served(mac, "--flash-attn") == "on"
    assert int(served(mac, "--ctx-size") or 0) > 50_000


def test_going_on_as_it_is(mac: World, coder: Path) -> None:
    answer(mac, coder, "c")
    assert served(mac, "--ctx-size") == "65536"


def test_a_wrong_key_is_asked_again_and_quitting_starts_nothing(mac: World, coder: Path) -> None:
    with mac.on_terminal("--model", str(coder)) as child:
        child.expect("Choose ")
        child.sendline("7")
        child.expect("7 is not one of the choices")
        child.expect("Choose ")
        child.sendline("q")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 130
    assert not (mac.record / "pids.json").exists()


def test_a_smaller_model_of_the_catalog_is_offered(world: World) -> None:
    world.mac(16, "26.1")
    world.fake_server(devices=["MTL0: Apple M2 (12124 MiB, 12124 MiB free)"])
    world.fake_claude()
    plan = json.loads(world.run("--coder", "--dry-run", "--json").stdout)
    assert plan["memory"]["verdict"] == "too_big"
    assert [remedy["name"] for remedy in plan["remedies"]] == ["smaller"]
    assert "--gemma-12b" in plan["remedies"][0]["words"]


def test_the_limit_is_raised_for_the_session_and_put_back(mac: World, coder: Path) -> None:
    with mac.on_terminal("--model", str(coder)) as child:
        child.expect(r"2\) raise the wired limit from 21,845 to ([\d,]+) MiB")
        limit = int(str(child.match[1]).replace(",", ""))  # type: ignore[index]
        # what the plan needs and a margin, not the most there could be
        assert 21845 < limit < 26624
        child.expect("Choose ")
        child.sendline("2")
        child.expect(r"AGENT \d+")
        assert mac.wired_limit() == limit
        assert served(mac, "--ctx-size") == "65536"
        child.sendline("quit 0")
        child.expect(pexpect.EOF)
    wait_for(lambda: mac.wired_limit() == 0, "the old limit")
    asked = (mac.record / "sudo").read_text()
    # one question; and nothing but numbers and literal paths reaches root
    assert len([line for line in asked.splitlines() if "/bin/sh" in line]) == 1


def test_a_denied_limit_means_less_context(world: World, coder: Path) -> None:
    world.mac(32, "15.5", denied=True)
    world.fake_server(devices=[METAL])
    world.fake_claude()
    with world.on_terminal("--model", str(coder)) as child:
        child.expect("Choose ")
        child.sendline("2")
        child.expect("was not raised")
        child.expect(r"AGENT \d+")
        child.sendline("quit 0")
        child.expect(pexpect.EOF)
    assert 20_000 < int(served(world, "--ctx-size") or 0) < 65536
    assert world.wired_limit() == 0


def test_a_denied_limit_leaves_the_rest_of_the_answer(world: World, coder: Path) -> None:
    world.mac(32, "15.5", denied=True)
    world.fake_server(devices=[METAL])
    world.fake_claude()
    answer_default = r"Choose \[[^]]+\] "
    for key, flag, value in (("c", "--ctx-size", "65536"), ("5", "--cache-type-k", "q8_0")):
        with world.on_terminal("--model", str(coder), "--wired-limit", "22528") as child:
            child.expect(answer_default)
            child.sendline(key)
            child.expect(r"AGENT \d+")
            child.sendline("quit 0")
            child.expect(pexpect.EOF)
        assert served(world, flag) == value


def test_safe_asks_even_where_memory_is_not_to_be_looked_at(mac: World, coder: Path) -> None:
    with mac.on_terminal("--model", str(coder), "--safe", CCLOCAL_NO_MEMCHECK="1") as child:
        child.expect("Choose ")
        child.sendline("q")
        child.expect(pexpect.EOF)
    with mac.on_terminal("--model", str(coder), "--safe", "--no-mem-check") as child:
        child.expect(r"Start it\? \[Y/n\] ")
        child.sendline("n")
        child.expect(pexpect.EOF)
    assert not (mac.record / "pids.json").exists()


def test_why_the_limit_is_not_among_the_remedies(world: World) -> None:
    world.mac(16, "26.1")
    world.fake_server(devices=["MTL0: Apple M2 (12124 MiB, 12124 MiB free)"])
    world.fake_claude()
    write(HEADERS["gpt-oss-20b"](), world.root / "oss.gguf")
    with world.on_terminal("--model", str(world.root / "oss.gguf"), "--kv", "q8_0") as child:
        child.expect("  the wired limit is not raised on this Mac")
        child.sendline("q")
        child.expect(pexpect.EOF)


def test_where_nobody_can_be_asked_the_recommended_is_taken_and_said(mac: World, coder: Path) -> None:
    mac.fake_claude(exits=0)
    done = mac.run("--model", str(coder), "--", "-p", "x")
    assert done.returncode == 0, done.stderr
    context = int(served(mac, "--ctx-size") or 0)
    assert f"To fit, the context is {context:,} tokens instead of 65,536." in done.stderr
    asked = mac.run("--model", str(coder), "--ctx", "50000", "--", "-p", "x")
    assert f"To fit, the context is {context:,} tokens instead of 49,920" in asked.stderr
    blind = mac.run("--model", str(coder), "--no-mem-check", "--", "-p", "x")
    assert "does not fit in memory" in blind.stderr
    assert served(mac, "--ctx-size") == "65536"


def test_how_it_is_held_in_memory_can_be_said(mac: World, coder: Path) -> None:
    mac.fake_claude(exits=0)
    done = mac.run(
        *("--model", str(coder), "--ctx", "49152", "--kv", "q8_0", "--slots", "2", "--ubatch", "256"),
        *("--gpu-layers", "10", "--cpu-moe", "4", "--no-mem-check", "--", "-p", "x"),
    )
    assert done.returncode == 0, done.stderr
    flags = {"--ctx-size": "49152", "--cache-type-v": "q8_0", "--parallel": "2", "--ubatch-size": "256"}
    flags |= {"--n-gpu-layers": "10", "--n-cpu-moe": "4"}
    assert {flag: served(mac, flag) for flag in flags} == flags
    # two conversations share the context, and the agent has one of them
    assert int(mac.agent()["env"]["CLAUDE_CODE_MAX_CONTEXT_TOKENS"]) - 8192 - 13000 == compacts_at(49152 // 2, 8192)
    assert mac.run("--tiny", "--kv", "q3", "--dry-run").returncode == 2


@pytest.mark.parametrize(
    ("ram", "limit", "words"),
    [(24, "22000", "too much: 21504 MiB at most"), (16, "12000", "With 16 GB or less")],
)
def test_limits_that_are_not_raised(world: World, ram: int, limit: str, words: str) -> None:
    world.mac(ram, "15.5")
    world.fake_server(devices=["MTL0: Apple M2"])
    world.fake_claude()
    done = world.run("--tiny", "--wired-limit", limit, "--dry-run")
    assert done.returncode == 2
    assert words in done.stderr


def test_the_limit_is_a_macs(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    done = world.run("--tiny", "--wired-limit", "20000", "--dry-run")
    assert done.returncode == 2
    assert "only applies to Macs" in done.stderr


def test_what_was_allocated_corrects_the_next_plan(mac: World) -> None:
    mac.fake_claude(exits=0)
    mac.fake_server(
        devices=[METAL],
        buffers=[
            "load_tensors:   CPU_Mapped model buffer size =     0.90 MiB",
            "load_tensors:  MTL0_Mapped model buffer size =     4.41 MiB",
            "llama_kv_cache:       MTL0 KV buffer size =   160.00 MiB",
            "llama_context:        CPU  output buffer size =     0.01 MiB",
            "sched_reserve:       MTL0 compute buffer size =   300.00 MiB",
            "sched_reserve:        CPU compute buffer size =    10.00 MiB",
        ],
    )
    before = json.loads(mac.run("plan", "tiny", "--json").stdout)
    mac.run("--tiny", "--", "-p", "x")
    last = json.loads(mac.run("plan", "--last", "--json").stdout)
    assert last["allocated"]["compute_bytes"] == 300 << 20
    assert last["plan"]["context_tokens"] == 32768
    shown = mac.run("plan", "--last").stdout
    assert "difference" in shown
    assert "compute" in shown
    after = json.loads(mac.run("plan", "tiny", "--json").stdout)
    assert after["compute_bytes"] == 300 << 20
    assert after["correction_bytes"] == (300 << 20) - before["compute_bytes"]
    assert (after["kv_bytes"], after["weights_bytes"]) == (before["kv_bytes"], before["weights_bytes"])
