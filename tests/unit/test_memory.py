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

from cclocal import lookup, tiny
from cclocal.memory.budget import GIB, Budget, apple_budget, host_budget
from cclocal.memory.fit import fit
from cclocal.memory.footprint import KV_TYPES, Serving, footprint, kv_bytes
from cclocal.memory.gguf import BadHeaderError, CutHeaderError, Header, UnknownHeaderError, read_header
from cclocal.memory.shape import Layer, Shape, shape_of

MIB = 2**20
#: What llama.cpp's own allocator answered for headers with the real models' shapes (llama-fit-params on header-only
#: sparse files, source of llama-cpp-python 0.3.36): (context, KV type, slots, ubatch, flash attention) → whole MiB.
RECORDED = json.loads((Path(__file__).parent / "recorded_kv.json").read_text())


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
        serving = Serving(case["ctx"], case["kv"], case["slots"], case["ubatch"], case["fa"])
        got = footprint(shape, serving, memory="host")
        mine = (got.kv_bytes + got.state_bytes) / MIB
        assert int(mine + 0.01) == case["mib"], case


def test_an_unknown_architecture_gets_an_upper_bound_that_says_so() -> None:
    known = shape_named("gpt-oss-20b")
    other = shape_of(header("newest", **RECORDED["gpt-oss-20b"]["metadata"]))
    assert other.bound
    assert kv_bytes(other, Serving(32768)) > kv_bytes(known, Serving(32768))


def test_the_tiny_models_header() -> None:
    data = tiny.gguf()
    read = read_header(data)
    assert read.architecture == "llama"
    assert read.counts["tokenizer.ggml.tokens"] == 1504
    shape = shape_of(read)
    assert shape.native_context_tokens == 131072
    # 5 layers of 256 + 256 elements of 2 bytes
    assert kv_bytes(shape, Serving(32768)) == 32768 * 5 * 512 * 2
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
    assert read_header(data).counts == {"tokens": 262_144, "merges": 514_906}
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
    window_tokens=st.integers(1, 8192),
    query_heads=st.integers(1, 128),
    weights_bytes=st.integers(10**6, 10**11),
    device_weights_bytes=st.just(10**6),
)
SERVINGS = st.builds(
    Serving,
    context_tokens=st.integers(1, 2000).map(lambda n: n * 256),
    kv_type=st.sampled_from(sorted(KV_TYPES)),
    slots=st.integers(1, 8),
    ubatch_tokens=st.sampled_from([128, 512, 1024, 2048]),
    flash_attention=st.booleans(),
)


@given(SHAPES, SERVINGS, st.integers(1, 500))
def test_more_context_never_needs_less(shape: Shape, serving: Serving, steps: int) -> None:
    more = replace(serving, context_tokens=serving.context_tokens + 256 * steps)
    now, then = (footprint(shape, s, memory="host").need_bytes for s in (serving, more))
    assert then >= now


@given(SHAPES, SERVINGS)
def test_a_remedy_never_raises_the_need(shape: Shape, serving: Serving) -> None:
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
def test_the_largest_context_fits_and_the_next_one_does_not(shape: Shape, serving: Serving, size: int) -> None:
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
    assert apple_budget(ram * GIB, macos).size_bytes == pytest.approx((gib - 1) * GIB, rel=1e-6)


def test_a_limit_that_was_set_counts() -> None:
    assert apple_budget(24 * GIB, "26.0", 20480).size_bytes == 19 * GIB
    assert host_budget(GIB // 2).size_bytes == 0


def test_an_unknown_budget_is_said() -> None:
    unknown = fit(shape_named("gemma-4-e4b"), Serving(32768), None, memory="discrete")
    assert (unknown.verdict, unknown.max_context_tokens) == ("unknown", None)
    assert "was not found out" in unknown.in_words


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
    serving = Serving(65536)
    need = footprint(shape, serving, memory="host").need_bytes
    for left, verdict in ((2 * GIB, "roomy"), (GIB // 2, "tight"), (-1, "too_big")):
        assert fit(shape, serving, Budget(need + left, "test"), memory="host").verdict == verdict
