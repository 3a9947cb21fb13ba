"""The memory plan's arithmetic: headers, shapes, footprints, budgets."""

from __future__ import annotations

import contextlib
import json
import struct
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.published_shapes import HEADERS, published
from cclocal import memory, tiny
from cclocal.discovery.look import load_catalog
from cclocal.facts import Gpu, Machine
from cclocal.memory.fit import Budget, fit
from cclocal.memory.footprint import KV_TYPES, MemoryConfig, footprint, read_buffers
from cclocal.memory.gguf import BadHeaderError, CutHeaderError, Header, UnknownHeaderError, read_header
from cclocal.memory.mlx import shape_of_config, weights_bytes
from cclocal.memory.remedies import remedies
from cclocal.memory.shape import Layer, Shape, published_shape, shape_of
from cclocal.models import headers as lookup
from cclocal.planning.memory import apple_budget, budget_of, card_budget, safe_limit_mib
from cclocal.units import GIB

MIB = 2**20
#: What llama.cpp's own allocator answered for headers with the real models' shapes (llama-fit-params on header-only
#: sparse files, source of llama-cpp-python 0.3.36): (context, KV type, slots, ubatch, flash attention) → whole MiB.
RECORDED = json.loads((Path(__file__).parent / "recorded_kv.json").read_text())


def mac(ram_gib: int, macos: str, limit_mib: int = 0, available_bytes: int = 0) -> Machine:
    here = Machine("macos", macos, "arm64", ram_gib * GIB, available_bytes=available_bytes)
    return replace(here, wired_limit_mib=limit_mib)


def kv_bytes(shape: Shape, serving: MemoryConfig) -> int:
    return footprint(shape, serving, memory="host").kv_bytes


def header(architecture: str, **values: Any) -> Header:
    own = {f"{architecture}.{key}": value for key, value in values.items()}
    return Header({"general.architecture": architecture, **own}, ())


def shape_named(name: str) -> Shape:
    recorded = RECORDED[name]
    return shape_of(header(recorded["architecture"], **recorded["metadata"]))


@pytest.mark.parametrize("name", RECORDED)
def test_the_cache_is_what_llama_cpp_allocates(name: str) -> None:
    shape = shape_named(name)
    assert not shape.bound
    for case in RECORDED[name]["cases"]:
        serving = MemoryConfig(case["ctx"], case["kv"], case["slots"], case["ubatch"], case["fa"])
        got = footprint(shape, serving, memory="host")
        mine = (got.kv_bytes + got.state_bytes) / MIB
        assert int(mine + 0.01) == case["mib"], case


def test_an_unknown_architecture_gets_an_upper_bound_that_says_so() -> None:
    known = shape_named("gpt-oss-20b")
    other = shape_of(header("newest", **RECORDED["gpt-oss-20b"]["metadata"]))
    assert other.bound
    assert kv_bytes(other, MemoryConfig(32768)) > kv_bytes(known, MemoryConfig(32768))


def test_the_tiny_models_header() -> None:
    data = tiny.gguf()
    read = read_header(data)
    assert read.architecture == "llama"
    assert "tokenizer.ggml.tokens" not in read.metadata
    shape = shape_of(read)
    assert shape.native_context_tokens == 131072
    # 6 layers of 256 + 256 elements of 2 bytes
    assert kv_bytes(shape, MemoryConfig(32768)) == 32768 * 6 * 512 * 2
    assert abs(shape.weights_bytes - len(data)) < 60_000


def test_a_vocabulary_of_262_000_words_takes_no_time() -> None:
    word = struct.pack("<Q", 7) + b"example"
    pair = struct.pack("<Q", 15) + b"example example"
    key = b"general.architecture"
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, 3)
    data += struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, 5) + b"llama"
    for name, item, count in ((b"tokens", word, 262_144), (b"merges", pair, 514_906)):
        data += struct.pack("<Q", len(name)) + name + struct.pack("<IIQ", 9, 8, count) + item * count
    started = time.process_time()
    assert read_header(data).metadata == {"general.architecture": "llama"}
    # the usual library takes 40 s; this guards the order of magnitude on a busy machine
    assert time.process_time() - started < 5


def test_every_cut_of_a_header_is_said_to_be_one() -> None:
    data = tiny.gguf()
    end = 60_000
    for size in range(0, end, 977):
        try:
            read_header(data[:size])
        except CutHeaderError:
            continue
        except BadHeaderError:
            assert size < 4
            continue
        assert size > 20_000


@given(st.integers(0, 55_000), st.binary(min_size=1, max_size=16))
def test_a_damaged_header_is_an_error_in_words_or_harmless(at: int, junk: bytes) -> None:
    data = bytearray(tiny.gguf()[:60_000])
    data[at : at + len(junk)] = junk
    # anything but a BadHeaderError fails the test
    with contextlib.suppress(BadHeaderError):
        shape_of(read_header(bytes(data)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        b"PK\x03\x04" * 9,
        b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**60),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 8, 2**60),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 4, 2**60),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 9, 5),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IQ", 8, 2**60),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 77),
        b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"t" + struct.pack("<I", 2**31),
    ],
)
def test_a_hostile_header_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(BadHeaderError):
        read_header(data)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"block_count": 2**31},
        {"block_count": "many"},
        {"block_count": 4, "embedding_length": 64},
        {"block_count": 4, "embedding_length": 64, "attention.head_count": [1, 2]},
    ],
)
def test_numbers_that_make_no_model(values: dict[str, object]) -> None:
    with pytest.raises(BadHeaderError):
        shape_of(header("llama", **values))


# -- what must hold for every model

LAYERS = st.lists(
    st.sampled_from(
        [Layer("full", 1024, 1024), Layer("sliding", 512, 512), Layer("recurrent", state_bytes=4096), Layer("none")]
    ),
    min_size=1,
    max_size=60,
)
SHAPES = st.builds(
    Shape,
    architecture=st.just("llama"),
    native_context_tokens=st.integers(4096, 1_000_000),
    layers=LAYERS.map(tuple),
    sliding_tokens=st.integers(1, 8192),
    query_heads=st.integers(1, 128),
    weights_bytes=st.integers(10**6, 10**11),
    device_weights_bytes=st.just(10**6),
)
SERVINGS = st.builds(
    MemoryConfig,
    context_tokens=st.integers(1, 2000).map(lambda n: n * 256),
    kv_type=st.sampled_from(sorted(KV_TYPES)),
    slots=st.integers(1, 8),
    ubatch_tokens=st.sampled_from([128, 512, 1024, 2048]),
    flash_attention=st.booleans(),
)


@given(SHAPES, SERVINGS, st.integers(1, 500))
def test_more_context_never_needs_less(shape: Shape, serving: MemoryConfig, steps: int) -> None:
    more = replace(serving, context_tokens=serving.context_tokens + 256 * steps)
    now, then = (footprint(shape, s, memory="host").need_bytes for s in (serving, more))
    assert then >= now


@given(SHAPES, SERVINGS)
def test_a_remedy_never_raises_the_need(shape: Shape, serving: MemoryConfig) -> None:
    now = footprint(shape, serving, memory="host").need_bytes
    for better in (
        replace(serving, slots=1, context_tokens=serving.context_tokens // serving.slots),
        replace(serving, ubatch_tokens=128),
        replace(serving, kv_type="q4_0"),
        replace(serving, flash_attention=True),
        replace(serving, context_tokens=256),
    ):
        if serving.kv_type == "q4_0" or better.kv_type != "q4_0" or serving.flash_attention:
            assert footprint(shape, better, memory="host").need_bytes <= now


@given(SHAPES, SERVINGS, st.integers(10**8, 2 * 10**11))
def test_the_largest_context_fits_and_the_next_one_does_not(shape: Shape, serving: MemoryConfig, size: int) -> None:
    found = fit(shape, serving, Budget(size, "test"), memory="host").max_context_tokens
    assert found is not None
    assert found <= shape.native_context_tokens

    def need(context: int) -> int:
        return footprint(shape, replace(serving, context_tokens=context), memory="host").need_bytes

    if found:
        assert need(found) <= size
    if found + 256 <= shape.native_context_tokens:
        assert need(found + 256) > size


# -- budgets


@pytest.mark.parametrize(
    ("ram", "macos", "gib"),
    [
        (16, "15.5", 16 * 2 / 3),
        (16, "26.1", 16 * 0.74),
        (24, "15.0", 24 * 2 / 3),
        (36, "14.2", 36 * 0.75),
        (36, "26.0", 36 * 0.78),
        (64, "26.0", 64 * 0.81),
        (128, "26.0", 128 * 0.84),
        # not reported: the more careful neighbour
        (8, "26.0", 8 * 2 / 3),
        (48, "15.0", 48 * 0.75),
        (96, "26.0", 96 * 0.81),
        (512, "26.0", 512 * 0.84),
    ],
)
def test_what_a_mac_gives_its_gpu(ram: int, macos: str, gib: float) -> None:
    assert apple_budget(mac(ram, macos)).size_bytes == pytest.approx((gib - 1) * GIB, rel=1e-6)


def test_a_limit_that_was_set_counts() -> None:
    assert apple_budget(mac(24, "26.0", 20480)).size_bytes == 19 * GIB
    little = Machine("linux", "", "x86_64", 8 * GIB, available_bytes=GIB // 2)
    budget = budget_of(None, little, shape_named("gemma-4-e4b"))
    assert budget
    assert budget.size_bytes == 0


def test_an_unknown_budget_is_said() -> None:
    unknown = fit(shape_named("gemma-4-e4b"), MemoryConfig(32768), None, memory="discrete")
    assert (unknown.verdict, unknown.max_context_tokens) == ("unknown", None)
    assert "is unknown" in unknown.in_words


def test_a_newer_file_is_not_computed_rather_than_refused(tmp_path: Path) -> None:
    data = bytearray(tiny.gguf())
    at = data.index(b"output_norm.weight") + len(b"output_norm.weight") + 4 + 8
    data[at : at + 4] = struct.pack("<I", 999)
    with pytest.raises(UnknownHeaderError, match="type 999"):
        read_header(bytes(data))
    newer = tmp_path / "newer.gguf"
    newer.write_bytes(data)
    assert lookup.of_gguf(newer) is None


def test_the_verdicts() -> None:
    shape = shape_named("qwen3-coder-30b-a3b")
    serving = MemoryConfig(65536)
    need = footprint(shape, serving, memory="host").need_bytes
    for left, verdict in ((2 * GIB, "roomy"), (GIB // 2, "tight"), (-1, "too_big")):
        assert fit(shape, serving, Budget(need + left, "test"), memory="host").verdict == verdict


# -- the whole plan of a card: what stays in host memory


def test_layers_and_experts_on_the_processor_count_in_host_memory() -> None:
    shape = published_shape("qwen3-coder-30b-a3b", "gguf")
    assert shape
    whole = footprint(shape, MemoryConfig(65536), memory="discrete")
    half = footprint(shape, MemoryConfig(65536, gpu_layers=24), memory="discrete")
    moe = footprint(shape, MemoryConfig(65536, cpu_moe_layers=48), memory="discrete")
    # whatever leaves the card arrives in host memory
    for parts in (half, moe):
        card = parts.weights_bytes + parts.kv_bytes
        assert card + parts.host_bytes == whole.weights_bytes + whole.kv_bytes + whole.host_bytes
    # 24 of 49, the output among them: 25 of 48 layers and their caches are with the processor
    assert half.kv_bytes == whole.kv_bytes * 23 // 48
    assert moe.kv_bytes == whole.kv_bytes
    assert moe.weights_bytes < whole.weights_bytes // 10
    nothing = footprint(shape, MemoryConfig(65536, gpu_layers=0), memory="discrete")
    assert (nothing.weights_bytes, nothing.kv_bytes) == (0, 0)


@pytest.mark.parametrize("name", HEADERS)
def test_published_dimensions_are_shapes_that_are_known(name: str) -> None:
    shape = published_shape(name, "gguf", 10**10)
    assert shape
    assert not shape.bound
    assert shape.weights_bytes == 10**10
    assert sum(shape.layer_weights_bytes) <= shape.device_weights_bytes + 10**6 <= 10**10 + 10**6
    if name in RECORDED:
        recorded = shape_named(name)
        for serving in (MemoryConfig(32768), MemoryConfig(65536, "q8_0", 4, 2048)):
            assert kv_bytes(shape, serving) == kv_bytes(recorded, serving)


def test_every_model_of_the_catalog_that_has_dimensions_has_known_ones() -> None:
    for model in load_catalog().models.values():
        assert model.shape is None or model.shape in HEADERS


# -- MLX

MLX = json.loads((Path(__file__).parent / "recorded_mlx.json").read_text())


@pytest.mark.parametrize("name", MLX)
def test_the_caches_are_what_mlx_lm_makes(name: str) -> None:
    shape = shape_of_config(MLX[name]["config"], 10**9)
    assert not shape.bound
    for context, step, full, sliding, state in MLX[name]["cases"]:
        ours = footprint(shape, MemoryConfig(context, prefill_step_tokens=step), memory="unified")
        assert ours.kv_bytes == full + sliding
        assert ours.state_bytes == state


@pytest.mark.parametrize(
    ("name", "step", "gib"),
    [
        # 16 heads of 512: materialised, two bytes a score
        ("gemma-4-26b-a4b", 2048, 2.0),
        ("gemma-4-26b-a4b", 256, 0.25),
        ("gemma-4-e4b", 2048, 1.0),
        # heads of 128 are fused
        ("qwen3-coder-30b-a3b", 2048, 0.0),
        ("gpt-oss-20b", 2048, 0.0),
    ],
)
def test_prefill_scores_are_counted_where_mlx_materialises_them(name: str, step: int, gib: float) -> None:
    shape = shape_of_config(MLX[name]["config"], 10**9)
    assert footprint(shape, MemoryConfig(32768, prefill_step_tokens=step), memory="unified").compute_bytes == gib * GIB


def test_latent_attention_needs_more_than_its_scores() -> None:
    shape = shape_of_config(MLX["glm-4.7-flash"]["config"], 10**9)
    need = footprint(shape, MemoryConfig(32768), memory="unified").compute_bytes
    assert need == 2 * 20 * 2048 * 32768 * 2 + 20 * (192 + 256) * 32768 * 2


def test_stored_prefixes_may_be_held_twice() -> None:
    shape = shape_of_config(MLX["qwen3-8b"]["config"], 10**9)
    assert footprint(shape, MemoryConfig(4096, prefix_cache_bytes=GIB), memory="unified").other_bytes == 2 * GIB


def test_an_unknown_kind_of_configuration_is_an_upper_bound() -> None:
    known = shape_of_config(MLX["gpt-oss-20b"]["config"], 1)
    unknown = shape_of_config({**MLX["gpt-oss-20b"]["config"], "model_type": "gpt_oss_next"}, 1)
    assert unknown.bound
    for context in (4096, 32768):
        upper, exact = (footprint(s, MemoryConfig(context), memory="unified").kv_bytes for s in (unknown, known))
        assert upper >= exact


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 2**31},
        {"num_hidden_layers": 2**60},
        {"num_hidden_layers": "many"},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 0},
        {"num_key_value_heads": 1.5},
        {"head_dim": True},
        {"num_hidden_layers": None},
    ],
)
def test_absurd_configurations_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadHeaderError):
        shape_of_config({**MLX["qwen3-8b"]["config"], **change}, 1)


@given(st.dictionaries(st.sampled_from(sorted(MLX["gemma-4-e4b"]["config"]["text_config"])), st.none() | st.integers()))
def test_any_configuration_is_a_shape_or_an_error_in_words(change: dict[str, Any]) -> None:
    config = MLX["gemma-4-e4b"]["config"]
    with contextlib.suppress(BadHeaderError):
        shape_of_config({**config, "text_config": {**config["text_config"], **change}}, 1)


def safetensors(header: object, *, size: int | None = None) -> bytes:
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(data) if size is None else size) + data


def test_the_weights_of_a_safetensors_file() -> None:
    tensors = {f"t{i}": {"dtype": "BF16", "shape": [2, 4], "data_offsets": [16 * i, 16 * i + 16]} for i in range(3)}
    assert weights_bytes(safetensors({"__metadata__": {"format": "mlx"}, **tensors})) == 48


@pytest.mark.parametrize(
    "data",
    [
        safetensors({}, size=2**60),
        safetensors({}, size=1),
        safetensors(b"not json"),
        safetensors([1, 2]),
        safetensors({"t": {"data_offsets": [0]}}),
        safetensors({"t": {"data_offsets": [0, "9"]}}),
        safetensors({"t": {"data_offsets": [0, 2**70]}}),
        safetensors(b"[" * 100_000),
    ],
)
def test_a_hostile_safetensors_header_is_refused(data: bytes) -> None:
    with pytest.raises(BadHeaderError):
        weights_bytes(data)


@pytest.mark.parametrize("data", [b"", b"12345", safetensors({"a": 1})[:-2]])
def test_a_cut_safetensors_header_asks_for_more(data: bytes) -> None:
    with pytest.raises(CutHeaderError):
        weights_bytes(data)


# -- remedies

BUDGETS = st.builds(
    Budget,
    size_bytes=st.integers(10**9, 10**11),
    source=st.just("test"),
    memory=st.sampled_from(["host", "unified", "discrete"]),
    host_bytes=st.none() | st.integers(10**9, 10**11),
    limit_mib=st.none() | st.integers(8_000, 60_000),
)


@given(SHAPES, SERVINGS, BUDGETS, st.integers(1, 80).map(lambda n: n * 256), st.integers(0, 120_000))
def test_what_is_offered_helps_and_never_needs_more(
    shape: Shape, serving: MemoryConfig, budget: Budget, least: int, safe_mib: int
) -> None:
    wanted = fit(shape, serving, budget)
    for remedy in remedies(wanted, least_context_tokens=least, safe_limit_mib=safe_mib):
        assert remedy.fit.fits
        assert remedy.fit.config.context_tokens <= max(serving.context_tokens, least)
        assert remedy.fit.footprint.need_bytes <= wanted.footprint.need_bytes
        assert remedy.fit.config.context_tokens >= min(least, serving.context_tokens)
        if "wired_limit" in remedy.changes:
            assert (budget.limit_mib or 0) < remedy.changes["wired_limit"] <= safe_mib
        # the context that a remedy says it would serve is a fixed point
        again = fit(shape, remedy.fit.config, remedy.fit.budget)
        assert again.max_context_tokens == (remedy.fit.max_context_tokens or 0)


def test_the_cheapest_comes_first() -> None:
    shape = published_shape("qwen3-coder-30b-a3b", "gguf")
    assert shape
    serving = MemoryConfig(65536, slots=2, ubatch_tokens=1024, cache_ram_bytes=GIB)
    budget = apple_budget(mac(32, "15.5"))
    found = remedies(
        fit(shape, serving, budget), least_context_tokens=8192, safe_limit_mib=safe_limit_mib(mac(32, "15.5"))
    )
    assert [remedy.name for remedy in found] == ["shrink", "raise", "both", "slots", "ubatch", "kv"]
    assert "context" in found[0].words


def test_a_card_too_small_is_offered_the_processors_help() -> None:
    moe, dense = published_shape("qwen3-coder-30b-a3b", "gguf"), published_shape("qwen2.5-coder-7b", "gguf")
    assert moe
    assert dense
    card = card_budget([Gpu("nvidia", "RTX 3060", 12 * GIB, 12 * GIB)], 40 * GIB)
    (experts,) = remedies(fit(moe, MemoryConfig(65536), card), least_context_tokens=20480)
    assert experts.name == "offload"
    assert "slower" in experts.words
    assert experts.changes["cpu_moe"] > 10
    one_less = fit(moe, MemoryConfig(65536, cpu_moe_layers=experts.changes["cpu_moe"] - 1), card)
    assert not one_less.fits
    little = card_budget([Gpu("nvidia", "GTX 1650", 4 * GIB, 4 * GIB)], 40 * GIB)
    found = {r.name: r for r in remedies(fit(dense, MemoryConfig(32768), little), least_context_tokens=20480)}
    assert 0 < found["offload"].changes["gpu_layers"] < 28
    # not without the memory for what leaves the card
    poor = card_budget([Gpu("nvidia", "GTX 1650", 4 * GIB, 4 * GIB)], 2 * GIB)
    assert "offload" not in {
        r.name for r in remedies(fit(dense, MemoryConfig(32768), poor), least_context_tokens=20480)
    }


def test_quantised_caches_are_not_offered_twice_nor_where_they_cannot_be() -> None:
    shape = published_shape("qwen3-coder-30b-a3b", "gguf")
    assert shape
    budget = Budget(22 * GIB, "test")
    for serving in (MemoryConfig(65536, "q8_0"), MemoryConfig(65536, flash_attention=False)):
        names = [r.name for r in remedies(fit(shape, serving, budget), least_context_tokens=4096)]
        assert "kv" not in names
    assert remedies(fit(shape, MemoryConfig(65536), None), least_context_tokens=4096) == ()


# -- what an engine says of its buffers


def test_the_buffers_of_a_real_log() -> None:
    # the words of builds from 2024 to 2026; sizes as an M5 of 24 GB and gpt-oss-20b have them
    metal = """
        load_tensors:   CPU_Mapped model buffer size =   586.82 MiB
        load_tensors:  MTL0_Mapped model buffer size = 11536.18 MiB
        llama_context:        CPU  output buffer size =     0.77 MiB
        llama_kv_cache:       MTL0 KV buffer size =  3072.00 MiB
        llama_kv_cache: size = 3072.00 MiB (131072 cells,  12 layers,  1/1 seqs), K (f16): 1536.00 MiB
        llama_kv_cache:       MTL0 KV buffer size =    18.00 MiB
        sched_reserve:       MTL0 compute buffer size =   200.00 MiB
        sched_reserve:       MTL0 compute buffer size =   398.38 MiB
        sched_reserve:        CPU compute buffer size =   264.52 MiB
    """
    found = read_buffers(metal)
    assert found
    assert found.weights_bytes == round(11536.18 * MIB)
    assert (
        found.kv_bytes
        == 3090 * MIB
        == kv_bytes(published_shape("gpt-oss-20b", "gguf") or shape_named("x"), MemoryConfig(131072))
    )
    assert found.compute_bytes == round(398.38 * MIB)
    assert found.host_bytes == sum(round(size * MIB) for size in (586.82, 0.77, 264.52))
    processor = read_buffers(
        "x: CPU KV buffer size = 8.00 MiB\nx: CPU RS buffer size = 50.25 MiB\nx: CPU compute buffer size = 9 MiB"
    )
    assert processor
    assert (processor.state_bytes, processor.compute_bytes, processor.host_bytes) == (52_690_944, 9 * MIB, 0)
    assert read_buffers("nothing of the kind") is None


# -- upper bounds


@pytest.mark.parametrize(
    ("architecture", "values", "state_bytes"),
    [
        # what llama.cpp's n_embd_r() and n_embd_s() make of these, in f32
        (
            "mamba2",
            {"ssm.conv_kernel": 4, "ssm.inner_size": 5120, "ssm.state_size": 128, "ssm.group_count": 1},
            ((3 * (5120 + 2 * 128)) + 128 * 5120) * 4,
        ),
        (
            "falcon-h1",
            {"ssm.conv_kernel": 4, "ssm.inner_size": 3072, "ssm.state_size": 256, "ssm.group_count": 1},
            ((3 * (3072 + 2 * 256)) + 256 * 3072) * 4,
        ),
        ("rwkv7", {"token_shift_count": 2, "wkv.head_size": 64}, 1024 * (2 + 64) * 4),
        ("lfm2", {"shortconv.l_cache": 3}, 1024 * 2 * 4),
    ],
)
def test_an_unknown_architecture_counts_every_state_there_may_be(
    architecture: str, values: dict[str, Any], state_bytes: int
) -> None:
    shape = shape_of(
        header(architecture, block_count=4, embedding_length=1024, **{"attention.head_count": 8}, **values)
    )
    assert shape.bound
    assert footprint(shape, MemoryConfig(4096, slots=2), memory="host").state_bytes >= 4 * 2 * state_bytes


def test_an_index_of_latent_attention_counts() -> None:
    values = {"attention.head_count": 64, "attention.key_length": 576, "attention.key_length_mla": 192}
    plain = shape_of(header("deepseek32", block_count=61, embedding_length=7168, **values))
    indexed = shape_of(
        header("deepseek32", block_count=61, embedding_length=7168, **values, **{"attention.indexer.key_length": 128})
    )
    assert plain.bound
    assert kv_bytes(indexed, MemoryConfig(65536)) - kv_bytes(plain, MemoryConfig(65536)) == 61 * 128 * 2 * 65536
    assert kv_bytes(indexed, MemoryConfig(65536)) >= 61 * (576 + 128) * 2 * 65536


@pytest.mark.parametrize(
    "values",
    [
        {"block_count": 1001},
        {"block_count": True},
        {"block_count": 4, "attention.shared_kv_layers": 99},
    ],
)
def test_numbers_that_no_model_has(values: dict[str, Any]) -> None:
    with pytest.raises(BadHeaderError):
        shape_of(header("gemma4", **{"embedding_length": 64, "attention.head_count": 4, **values}))


@pytest.mark.parametrize("name", ["[/foo]", "a\x1b[2Jb", "", "x" * 99])
def test_names_that_would_draw_on_the_screen_are_refused(name: str) -> None:
    with pytest.raises(BadHeaderError):
        shape_of(Header({"general.architecture": name, f"{name}.block_count": 1}, ()))
    with pytest.raises(BadHeaderError):
        shape_of_config({**MLX["qwen3-8b"]["config"], "model_type": name}, 1)


def test_slots_divide_what_was_rounded_first() -> None:
    # as llama-fit-params says: 1,025 becomes 1,280, a slot's 320 become 512
    shape = shape_named("gemma-4-e4b")
    assert kv_bytes(shape, MemoryConfig(1025, slots=4)) == kv_bytes(shape, MemoryConfig(2048, slots=4))


def test_a_micro_batch_is_no_larger_than_the_context() -> None:
    shape = shape_named("qwen3-coder-30b-a3b")
    few, many = (footprint(shape, MemoryConfig(4096, ubatch_tokens=n), memory="host") for n in (4096, 10**8))
    assert few == many


def test_what_is_not_with_the_gpu_still_needs_memory_where_there_is_one() -> None:
    shape = published_shape("gemma-4-26b-a4b", "gguf")
    assert shape
    budget = apple_budget(mac(16, "26.0", available_bytes=8 * GIB))
    for serving in (
        MemoryConfig(65536, gpu_layers=0),
        MemoryConfig(65536, gpu_layers=10),
        MemoryConfig(65536, cpu_moe_layers=30),
    ):
        assert fit(shape, serving, budget).verdict == "too_big"


def test_a_projectors_buffer_is_not_the_models() -> None:
    text = "x: CUDA0 KV buffer size = 1.00 MiB\nsched_reserve: CUDA0 compute buffer size = 523.00 MiB\n"
    found = read_buffers(text + "reserve_compute_meta: CUDA0 compute buffer size = 72.50 MiB\n")
    assert found
    assert found.compute_bytes == 523 * MIB


def test_a_remedy_of_one_slot_needs_the_context_of_one() -> None:
    shape = published_shape("qwen3-coder-30b-a3b", "gguf")
    assert shape
    wanted = fit(shape, MemoryConfig(131072, slots=4), apple_budget(mac(32, "15.5")))
    first = remedies(wanted, least_context_tokens=20480)[0]
    assert first.name == "shrink"
    assert first.changes["slots"] == 1
    assert first.changes["ctx"] >= 20480


def test_many_layers_are_divided_quickly() -> None:
    layers = (Layer("full", 1024, 1024),) * 1000
    sizes = (100 * MIB,) * 1000
    shape = Shape("llama", 131072, layers, 0, 8, 1000 * 100 * MIB, 1000 * 100 * MIB, False, sizes, sizes)
    began = time.process_time()
    card = card_budget([Gpu("nvidia", "x", 24 * GIB, 24 * GIB)], 200 * GIB)
    assert remedies(fit(shape, MemoryConfig(32768), card), least_context_tokens=4096)
    assert time.process_time() - began < 10


def test_the_published_shapes_are_those_of_their_generator() -> None:
    stored = Path(memory.__file__).with_name("published.json").read_text("utf-8")
    assert stored == published(), "run: python bench/published_shapes.py"
