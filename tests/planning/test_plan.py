"""Plans: one full golden plan per agent and backend, a line for every model on every machine, and what decides.

`pytest --snapshot-update` after a wanted change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode

from cclocal.agents import AGENTS
from cclocal.backends import BACKENDS
from cclocal.command import SHOWN
from cclocal.discovery.look import load_catalog
from cclocal.errors import AgentMissingError, BackendMissingError, BackendTooOldError, UsageError
from cclocal.memory.projector import unread_projector
from cclocal.memory.shape import Layer, Shape
from cclocal.models.catalog import Model
from cclocal.planning.choose import check_agent
from cclocal.planning.make import make_plan
from cclocal.planning.plan import Plan
from cclocal.settings import Settings
from cclocal.ui.tables import plan_lines
from cclocal.units import memory_size
from tests.planning.recorded import ENVIRON, MACHINES, facts
from tests.talk import compacts_at

CATALOG = load_catalog()


class AsText(SingleFileSnapshotExtension):
    _write_mode = WriteMode.TEXT
    file_extension = "txt"


@pytest.fixture
def golden(snapshot: SnapshotAssertion) -> SnapshotAssertion:
    return snapshot.use_extension(AsText)


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_whole_plan(golden: SnapshotAssertion, agent: str, backend: str) -> None:
    machine = "mac-64" if BACKENDS[backend].FORMS == ("mlx",) else "linux-4090"
    model = next(model for model in CATALOG.models.values() if model.variant(backend) and model.id != "tiny")
    plan = make_plan(model, Settings(model=model.id, agent=agent), facts(machine, model, backend))
    assert "\n".join(plan_lines(plan, ENVIRON)) + "\n" == golden


def flag(plan: Plan, name: str) -> str:
    """The value of a flag of the server's."""
    argv = plan.server_command(SHOWN)[0].argv
    return argv[argv.index(name) + 1]


def on(model: Model, machine: str, backend: str) -> Plan:
    return make_plan(model, Settings(model=model.id), facts(machine, model, backend))


def row(plan: Plan, machine: str) -> str:
    """What differs from machine to machine: what is served, with how much context, does it fit, what is said."""
    fit = plan.fit
    need = (
        f"{memory_size(fit.footprint.need_bytes)} of {memory_size(fit.budget.size_bytes)}"
        if fit and fit.budget
        else "?"
    )
    most = fit.max_context_tokens if fit else None
    notes = "; ".join(note for note in plan.notes if "GPU" not in note and "processor" not in note)
    cells = (plan.variant.quant, f"{plan.context_tokens:,}", f"{plan.out_tokens:,}", fit.verdict if fit else "unknown")
    return " | ".join((f"{machine:<21}", *cells, need, f"most {most:,}" if most else "", plan.fetch.in_words, notes))


def table() -> Iterator[str]:
    """A line for every model on every machine, with the backend that is installed there."""
    for backend, machines in (
        ("llama-server", tuple(MACHINES)),
        ("vllm-mlx", ("mac-24", "mac-64")),
        ("ollama", ("linux-4090",)),
    ):
        for model in CATALOG.models.values():
            if model.variant(backend):
                yield f"{backend}: --{model.id}"
                yield from (f"  {row(on(model, machine, backend), machine)}".rstrip() for machine in machines)


def test_every_model_on_every_machine(golden: SnapshotAssertion) -> None:
    assert "\n".join(table()) + "\n" == golden


def test_the_command_of_every_model_has_its_own_flags(golden: SnapshotAssertion) -> None:
    """What the catalog says of a model reaches the server: its sampling, its template's switches, its parsers."""
    lines = []
    for backend, machine in (("llama-server", "mac-128"), ("vllm-mlx", "mac-128"), ("ollama", "linux-4090")):
        for model in CATALOG.models.values():
            if model.variant(backend):
                command, _ = on(model, machine, backend).server_command(SHOWN)
                env = " ".join(f"{name}={value}" for name, value in command.env.items())
                lines.append(f"{env} {' '.join(command.argv[4:])}".strip())
    assert "\n".join(lines) + "\n" == golden


def test_mlx_comes_first_on_apple_silicon_and_last_elsewhere() -> None:
    model = CATALOG.models["gemma"]
    mac, linux = (
        replace(facts(machine, model), engines={**facts(machine).engines, **facts(machine, backend="vllm-mlx").engines})
        for machine in ("mac-64", "linux-cpu")
    )
    assert make_plan(model, Settings(), mac).variant.backend == "vllm-mlx"
    assert make_plan(model, Settings(), linux).variant.backend == "llama-server"
    assert make_plan(model, Settings(backend="llama-server"), mac).variant.backend == "llama-server"
    # a model without a variant for it is served by the next
    assert make_plan(CATALOG.models["nemotron"], Settings(), mac).variant.backend == "llama-server"
    with pytest.raises(BackendMissingError) as caught:
        make_plan(model, Settings(), replace(mac, engines={}))
    assert "uv tool install" in (caught.value.hint or "")


def test_a_vllm_mlx_that_is_too_old_is_refused() -> None:
    here = facts("mac-64", backend="vllm-mlx")
    engine = here.engines["vllm-mlx"][0]
    model = CATALOG.models["gemma"]
    for version, why in (("0.5.9, mlx-lm 0.31.3", "too old"), ("0.6.0, mlx-lm 0.31.1", "executes code")):
        old = replace(here, engines={"vllm-mlx": (replace(engine, version=version),)})
        with pytest.raises(BackendTooOldError, match=why) as caught:
            make_plan(model, Settings(), old)
        assert "uv tool install" in (caught.value.hint or "")
    with pytest.raises(BackendTooOldError, match="16 bits"):
        make_plan(model, Settings(kv="q8_0"), here)
    newer = replace(here, engines={"vllm-mlx": (replace(engine, version="0.7.0, mlx-lm 0.32.0"),)})
    assert "newer than" in " ".join(make_plan(model, Settings(), newer).notes)


@pytest.mark.parametrize(
    ("version", "is_refused"),
    [
        ("7342 (4f6e2a1)", True),
        ("7788 (aaaaaaa)", False),
        ("0.3.0-dev (build 7342, commit aaaaaaa)", True),
        ("0.3.0-dev (build 10621, commit aaaaaaa)", False),
        # built from source, where the number of the build is not known
        ("0.5.0-dev (build 1, commit 0c1e570)", False),
        ("0 (unknown)", False),
        ("unknown", False),
    ],
)
def test_a_llama_server_that_is_too_old_for_a_model_is_refused_before_the_download(
    version: str, *, is_refused: bool
) -> None:
    model = CATALOG.models["review"]
    here = facts("mac-64", model)
    engine = replace(here.engines["llama-server"][0], form="binary", version=version)
    here = replace(here, engines={"llama-server": (engine,)})
    if not is_refused:
        assert make_plan(model, Settings(), here).variant.quant == "Q4_K_M"
        return
    with pytest.raises(BackendTooOldError, match="it needs llama-server 7788 or newer"):
        make_plan(model, Settings(), here)


def test_one_context_number_drives_server_and_agent() -> None:
    for context, out in ((32768, 8192), (65536, 4096), (131072, 8192), (131072, 32000)):
        plan = make_plan(CATALOG.models["gemma"], Settings(ctx=context, out_tokens=out), facts("mac-24"))
        assert flag(plan, "--ctx-size") == str(context)
        env = plan.agent_command(SHOWN)[0].env
        window = int(env["CLAUDE_CODE_MAX_CONTEXT_TOKENS"])
        assert env["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == str(out)
        # Claude Code compacts here; the reply, the compaction itself and a margin must still fit
        limit = window - min(out, 20000) - 13000
        assert limit == compacts_at(context, out)
        assert int(env["CLAUDE_CODE_AUTO_COMPACT_WINDOW"]) >= max(100000, window)


def test_a_window_that_is_too_small_is_refused_with_what_helps_in_it() -> None:
    """By the tokens of a real tokenizer: the whole prompt has 4,178 of SmolLM2's, that of --lean 2,117."""
    model, here = CATALOG.models["tiny"], facts("linux-cpu")
    for context, out, hint in (
        (12288, 8192, "a larger --ctx or a smaller --out-tokens"),
        (8192, 512, "a larger --ctx or --lean or --no-tools"),
        (7168, 512, "a larger --ctx or --no-tools"),
        (4096, 512, "a larger --ctx"),
    ):
        with pytest.raises(UsageError, match=f"A context of {context:,} tokens is too small") as refused:
            make_plan(model, Settings(ctx=context, out_tokens=out), here)
        assert refused.value.hint == hint
    for chosen in (Settings(ctx=8192, out_tokens=512, lean=True), Settings(ctx=7168, out_tokens=512, no_tools=True)):
        assert make_plan(model, chosen, here).context_tokens == chosen.ctx


def test_the_kind_of_speculation_is_the_one_asked_for_else_the_fastest_here() -> None:
    model, here = CATALOG.models["coder"], facts("linux-cpu")
    plain = make_plan(model, Settings(), here)
    assert plain.speculations == ("ngram-simple", "ngram-mod")
    assert "--spec-type" not in plain.server_command(SHOWN)[0].argv
    tuned = replace(here, tuned={plain.tuning_key: "ngram-mod"})
    fastest = make_plan(model, Settings(), tuned)
    assert flag(fastest, "--spec-type") == "ngram-mod"
    assert fastest.sources["speculate"] == "measured here"
    assert "--spec-type" not in make_plan(model, Settings(speculate="off"), tuned).server_command(SHOWN)[0].argv
    # beside a projector too
    seeing = replace(model, variants=tuple(replace(one, mmproj="mmproj.gguf") for one in model.variants))
    assert make_plan(seeing, Settings(), here).speculations == ("ngram-simple", "ngram-mod")


def test_a_model_is_served_without_its_projector_if_that_is_asked_for() -> None:
    model, here = CATALOG.models["qwen3-vl"], facts("linux-4090")
    here = replace(here, projectors={str(model.variants[0].mmproj): unread_projector(1_087_000_000)})
    seeing, blind = (make_plan(model, Settings(vision=vision), here) for vision in (True, False))
    assert seeing.session.sees == "all"
    assert "--mmproj" in seeing.server_command(SHOWN)[0].argv
    assert blind.session.sees == "none"
    assert "--mmproj" not in blind.server_command(SHOWN)[0].argv
    assert any("sees no pictures without its projector, which saves 1.0 GiB" in note for note in blind.notes)


def test_a_picture_is_no_larger_than_what_a_processor_reads_in_a_minute() -> None:
    model = CATALOG.models["qwen3-vl"]
    card, here = facts("linux-4090", model), facts("linux-cpu", model)
    assert "--image-max-tokens" not in make_plan(model, Settings(), card).server_command(SHOWN)[0].argv
    slow = make_plan(model, Settings(), here)
    assert flag(slow, "--image-max-tokens") == "1024"
    assert "On a processor a picture is scaled down to 1,024 tokens (--picture-tokens 4096)." in slow.notes
    # in steps of two, so that a conversation that goes on finds its pictures as they were
    for read_per_s, tokens in ((5, "256"), (20, "512"), (33, "512"), (40, "1024"), (100, "2048")):
        measured = make_plan(model, Settings(), replace(here, read_per_s={model.id: read_per_s}))
        assert flag(measured, "--image-max-tokens") == tokens
    asked = make_plan(model, Settings(picture_tokens=2048), here)
    assert flag(asked, "--image-max-tokens") == "2048"
    assert asked.fit
    assert slow.fit
    assert asked.fit.footprint.vision_bytes > slow.fit.footprint.vision_bytes
    # none of it without the projector
    assert "--image-max-tokens" not in make_plan(model, Settings(vision=False), here).server_command(SHOWN)[0].argv


def test_a_picture_that_is_read_at_once_is_no_larger_than_the_micro_batch() -> None:
    model = CATALOG.models["gemma"]
    here = facts("linux-4090", model)
    whole = make_plan(model, Settings(), here)
    assert flag(whole, "--ubatch-size") == "1120"
    assert "--image-max-tokens" not in whole.server_command(SHOWN)[0].argv
    assert flag(make_plan(model, Settings(ubatch=512), here), "--image-max-tokens") == "512"
    # a server whose memory ran out starts again with a small micro-batch
    assert flag(whole.with_less_memory(), "--image-max-tokens") == "128"


def test_a_model_that_fits_without_its_projector_is_served_without_it() -> None:
    model = CATALOG.models["qwen36"]
    plan = make_plan(model, Settings(), facts("linux-4090", model))
    assert plan.session.sees == "none"
    assert "To fit, no pictures." in plan.notes
    assert not [note for note in plan.notes if "which saves" in note]


def test_one_core_is_left_to_other_programs_while_tokens_are_written() -> None:
    model, here = CATALOG.models["tiny"], facts("linux-cpu")
    for cores, threads in ((1, "1"), (2, "1"), (8, "7")):
        plan = make_plan(model, Settings(), replace(here, machine=replace(here.machine, cores=cores)))
        assert (flag(plan, "--threads"), flag(plan, "--threads-batch")) == (threads, str(cores))
    # a graphics card computes by itself
    card = facts("linux-4090")
    words = make_plan(model, Settings(), replace(card, machine=replace(card.machine, cores=8))).server_command(SHOWN)[0]
    assert "--threads" not in words.argv


def test_the_context_is_the_largest_that_fits_unless_one_was_asked_for() -> None:
    model, gib = CATALOG.models["coder"], 2**30
    # 48 layers of 4 heads of 128, as Qwen3 Coder has: 96 KiB a token
    shape = Shape("qwen3moe", 262144, (Layer("full", 512, 512),) * 48, 0, 32, 17 * gib, 17 * gib)
    variant = model.variants[0]
    file = Path("/models/coder.gguf")
    machine = replace(MACHINES["linux-cpu"], available_bytes=24 * gib)
    here = replace(facts("linux-cpu"), cached={(variant.repo or "", variant.files[0]): file}, shapes={str(file): shape})
    roomy = make_plan(model, Settings(), replace(here, machine=replace(machine, available_bytes=40 * gib)))
    assert (roomy.context_tokens, roomy.sources["ctx"]) == (65536, "catalog")
    assert roomy.fit
    assert roomy.fit.verdict == "roomy"
    shrunk = make_plan(model, Settings(), replace(here, machine=replace(machine, available_bytes=23 * gib)))
    assert shrunk.sources["ctx"] == "memory plan"
    assert 40_000 < shrunk.context_tokens < 65536
    assert shrunk.fit
    assert shrunk.fit.verdict == "tight"
    assert f"{shrunk.context_tokens:,} tokens instead of 65,536" in shrunk.notes[0]
    # one number, everywhere
    assert flag(shrunk, "--ctx-size") == str(shrunk.context_tokens)
    window = int(shrunk.agent_command(SHOWN)[0].env["CLAUDE_CODE_MAX_CONTEXT_TOKENS"])
    assert window - 8192 - 13000 == compacts_at(shrunk.context_tokens, 8192)
    # one that was asked for is not served either if it does not fit, but said; unless nobody is to look
    short = replace(here, machine=replace(machine, available_bytes=23 * gib))
    asked = make_plan(model, Settings(ctx=65536), short)
    assert asked.context_tokens == shrunk.context_tokens
    assert asked.requested
    assert asked.requested.config.context_tokens == 65536
    blind = make_plan(model, Settings(ctx=65536, mem_check=False), short)
    assert blind.context_tokens == 65536
    assert "does not fit in memory" in blind.notes[0]
    hopeless = make_plan(model, Settings(), replace(here, machine=replace(machine, available_bytes=8 * gib)))
    assert hopeless.context_tokens == 65536
    assert "none fits" in hopeless.notes[0]


def test_a_model_at_hand_is_not_fetched_and_its_path_is_in_the_command() -> None:
    file = Path("/home/ada/.cache/huggingface/hub/x.gguf")
    variant = CATALOG.models["gemma"].variants[0]
    there = replace(facts("mac-24"), cached={(variant.repo or "", variant.files[0]): file})
    assert make_plan(CATALOG.models["gemma"], Settings(), there).fetch.files == (variant.mmproj,)
    plan = make_plan(CATALOG.models["gemma"], Settings(vision=False), there)
    assert plan.fetch.repo is None
    assert str(file) in plan.server_command(SHOWN)[0].argv


def test_what_is_missing_is_said_before_anything_happens() -> None:
    here = facts("mac-24")
    model = CATALOG.models["gemma"]
    with pytest.raises(AgentMissingError, match="not found"):
        check_agent(AGENTS["claude"], replace(here, agent=None), Settings())
    # a plan can be shown all the same
    assert "npm install" in make_plan(model, Settings(), replace(here, agent=None)).notes[0]
    assert "npm install" not in " ".join(make_plan(model, Settings(server=True), replace(here, agent=None)).notes)
    with pytest.raises(BackendMissingError):
        make_plan(model, Settings(), replace(here, engines={}))
    old = replace(here.engines["llama-server"][0], flags=frozenset({"--model"}))
    with pytest.raises(BackendTooOldError, match="--jinja"):
        make_plan(model, Settings(), replace(here, engines={"llama-server": (old,)}))
    with pytest.raises(UsageError):
        make_plan(model, Settings(backend="ollama"), here)


def test_a_variant_the_wheel_cannot_serve_is_served_by_a_binary_that_can() -> None:
    variant = replace(CATALOG.models["review"].variants[0], override_kv=("deepseek2.expert_gating_func=int:2",))
    model = replace(CATALOG.models["review"], variants=(variant,))
    here = facts("linux-cpu")
    with pytest.raises(BackendTooOldError, match="wheel lacks --override-kv"):
        make_plan(model, Settings(), here)
    wheel = here.engines["llama-server"][0]
    binary = replace(wheel, form="binary", version="9000 (aaaaaaa)", command=("/usr/bin/llama-server",))
    binary = replace(binary, flags=wheel.flags | {"--override-kv"})
    plan = make_plan(model, Settings(), replace(here, engines={"llama-server": (wheel, binary)}))
    assert plan.engine.form == "binary"
    assert flag(plan, "--override-kv") == "deepseek2.expert_gating_func=int:2"


def test_a_cpu_engine_beside_a_gpu_is_one_line_with_the_cure() -> None:
    notes = make_plan(CATALOG.models["gemma"], Settings(), facts("linux-4090-cpu-engine")).notes
    assert notes == (
        "This engine uses only the CPU and leaves NVIDIA GeForce RTX 4090 idle. To change that: "
        "pip install xllamacpp --force-reinstall --index-url https://xorbitsai.github.io/xllamacpp/whl/cu128",
    )


def test_the_plan_is_frozen_and_the_same_twice() -> None:
    one, two = (make_plan(CATALOG.models["gemma"], Settings(), facts("mac-16")) for _ in range(2))
    assert one == two


def test_thinking_switches_template_and_sampling() -> None:
    model = CATALOG.models["nemotron"]
    off, on = (
        make_plan(model, Settings(think=think), facts("mac-64", model)).server_command(SHOWN)[0].argv
        for think in (False, True)
    )
    assert off[off.index("--temp") + 1] == "0.6"
    assert '{"enable_thinking":false}' in off
    assert off[off.index("--reasoning-budget") + 1] == "0"
    assert on[on.index("--temp") + 1] == "1.0"
    assert '{"enable_thinking":true}' in on
    assert "--reasoning-budget" not in on
    plain = make_plan(CATALOG.models["coder"], Settings(think=True), facts("mac-64"))
    assert "Thinking cannot be switched on" in " ".join(plain.notes)
