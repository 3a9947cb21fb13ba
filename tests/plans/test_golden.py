"""Golden --dry-run: every model on every recorded machine. `pytest --snapshot-update` after a wanted change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.single_file import SingleFileSnapshotExtension, WriteMode

from cclocal.agents.claude.spec import conversation_tokens
from cclocal.errors import AgentMissingError, BackendMissingError, BackendTooOldError, UsageError
from cclocal.memory.shape import Layer, Shape
from cclocal.models import catalog
from cclocal.paths import packaged
from cclocal.planning.plan import make_plan
from cclocal.settings import Settings
from cclocal.ui.console import plan_lines
from tests.plans.facts import ENVIRON, MACHINES, facts

CATALOG = catalog.load(packaged("models.toml"))


class AsText(SingleFileSnapshotExtension):
    _write_mode = WriteMode.TEXT
    file_extension = "txt"


@pytest.fixture
def golden(snapshot: SnapshotAssertion) -> SnapshotAssertion:
    return snapshot.use_extension(AsText)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("model", CATALOG.models)
def test_dry_run(golden: SnapshotAssertion, model: str, machine: str) -> None:
    plan = make_plan(CATALOG.models[model], Settings(model=model), facts(machine, CATALOG.models[model]))
    assert "\n".join(plan_lines(plan, ENVIRON)) + "\n" == golden


ON = [
    (backend, model.id, machine)
    for backend, machines in (("vllm-mlx", ("mac-24", "mac-64")), ("ollama", ("linux-4090",)))
    for model in CATALOG.models.values()
    if model.variant(backend)
    for machine in machines
]


@pytest.mark.parametrize(("backend", "model", "machine"), ON)
def test_dry_run_on_another_backend(golden: SnapshotAssertion, backend: str, model: str, machine: str) -> None:
    # the one that is installed is the one that is used
    plan = make_plan(CATALOG.models[model], Settings(model=model), facts(machine, CATALOG.models[model], backend))
    assert "\n".join(plan_lines(plan, ENVIRON)) + "\n" == golden


def test_mlx_comes_first_on_apple_silicon_and_last_elsewhere() -> None:
    model = CATALOG.models["gemma"]
    mac, linux = (
        replace(facts(machine, model), engines={**facts(machine).engines, **facts(machine, backend="vllm-mlx").engines})
        for machine in ("mac-64", "linux-cpu")
    )
    assert make_plan(model, Settings(), mac).backend == "vllm-mlx"
    assert make_plan(model, Settings(), linux).backend == "llama-server"
    assert make_plan(model, Settings(backend="llama-server"), mac).backend == "llama-server"
    # a model without a variant for it is served by the next
    assert make_plan(CATALOG.models["nemotron"], Settings(), mac).backend == "llama-server"
    with pytest.raises(BackendMissingError) as caught:
        make_plan(model, Settings(), replace(mac, engines={}))
    assert "uv tool install" in (caught.value.hint or "")


def test_a_vllm_mlx_that_is_too_old_is_refused() -> None:
    here = facts("mac-64", backend="vllm-mlx")
    engine = here.engines["vllm-mlx"][0]
    model = CATALOG.models["gemma"]
    for version, why in (("0.5.9, mlx-lm 0.31.3", "too old"), ("0.6.0, mlx-lm 0.31.1", "runs code")):
        old = replace(here, engines={"vllm-mlx": (replace(engine, version=version),)})
        with pytest.raises(BackendTooOldError, match=why) as caught:
            make_plan(model, Settings(), old)
        assert "uv tool install" in (caught.value.hint or "")
    with pytest.raises(BackendTooOldError, match="16 bits"):
        make_plan(model, Settings(kv="q8_0"), here)
    newer = replace(here, engines={"vllm-mlx": (replace(engine, version="0.7.0, mlx-lm 0.32.0"),)})
    assert "newer than" in " ".join(make_plan(model, Settings(), newer).notes)


def test_one_context_number_drives_server_and_agent() -> None:
    for context, out in ((32768, 8192), (65536, 4096), (131072, 8192), (131072, 32000)):
        plan = make_plan(CATALOG.models["gemma"], Settings(ctx=context, out_tokens=out), facts("mac-24"))
        assert plan.server.argv[plan.server.argv.index("--ctx-size") + 1] == str(context)
        env = plan.session.env
        window = int(env["CLAUDE_CODE_MAX_CONTEXT_TOKENS"])
        assert env["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == str(out)
        # Claude Code compacts here; the reply, the compaction itself and a margin must still fit
        compacts_at = window - min(out, 20000) - 13000
        assert compacts_at == conversation_tokens(context, out)
        assert int(env["CLAUDE_CODE_AUTO_COMPACT_WINDOW"]) >= max(100000, window)


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
    assert shrunk.server.argv[shrunk.server.argv.index("--ctx-size") + 1] == str(shrunk.context_tokens)
    window = int(shrunk.session.env["CLAUDE_CODE_MAX_CONTEXT_TOKENS"])
    assert window - 8192 - 13000 == conversation_tokens(shrunk.context_tokens, 8192)
    # one that was asked for is not served either if it does not fit, but said; unless nobody is to look
    short = replace(here, machine=replace(machine, available_bytes=23 * gib))
    asked = make_plan(model, Settings(ctx=65536), short)
    assert asked.context_tokens == shrunk.context_tokens
    assert asked.wanted
    assert asked.wanted.serving.context_tokens == 65536
    blind = make_plan(model, Settings(ctx=65536, mem_check=False), short)
    assert blind.context_tokens == 65536
    assert "It will hardly fit" in blind.notes[0]
    hopeless = make_plan(model, Settings(), replace(here, machine=replace(machine, available_bytes=8 * gib)))
    assert hopeless.context_tokens == 65536
    assert "none fits" in hopeless.notes[0]


def test_a_model_at_hand_is_not_fetched_and_its_path_is_in_the_command() -> None:
    file = Path("/home/ada/.cache/huggingface/hub/x.gguf")
    variant = CATALOG.models["gemma"].variants[0]
    there = replace(facts("mac-24"), cached={(variant.repo or "", variant.files[0]): file})
    plan = make_plan(CATALOG.models["gemma"], Settings(), there)
    assert plan.fetch.repo is None
    assert str(file) in plan.server.argv


def test_what_is_missing_is_said_before_anything_happens() -> None:
    here = facts("mac-24")
    model = CATALOG.models["gemma"]
    with pytest.raises(AgentMissingError):
        make_plan(model, Settings(), replace(here, agent=None))
    make_plan(model, Settings(server_only=True), replace(here, agent=None))
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
    with pytest.raises(BackendTooOldError, match="wheel has no --override-kv"):
        make_plan(model, Settings(), here)
    wheel = here.engines["llama-server"][0]
    binary = replace(wheel, form="binary", command=("/usr/bin/llama-server",), flags=wheel.flags | {"--override-kv"})
    plan = make_plan(model, Settings(), replace(here, engines={"llama-server": (wheel, binary)}))
    assert plan.engine.form == "binary"
    assert plan.server.argv[plan.server.argv.index("--override-kv") + 1] == "deepseek2.expert_gating_func=int:2"


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
    off, on = (make_plan(model, Settings(think=think), facts("mac-64", model)).server.argv for think in (False, True))
    assert off[off.index("--temp") + 1] == "0.6"
    assert '{"enable_thinking":false}' in off
    assert off[off.index("--reasoning-budget") + 1] == "0"
    assert on[on.index("--temp") + 1] == "1.0"
    assert '{"enable_thinking":true}' in on
    assert "--reasoning-budget" not in on
    plain = make_plan(CATALOG.models["coder"], Settings(think=True), facts("mac-64"))
    assert "no switch for thinking" in " ".join(plain.notes)
