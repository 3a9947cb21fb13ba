"""A model on a pool of machines, by the plan alone: what they have together, and what is left when some are lost."""

from __future__ import annotations

from dataclasses import replace

from cclocal.facts import Engine
from cclocal.memory.shape import Shape, published_shape
from cclocal.models.catalog import Variant
from cclocal.planning.memory import budget_of, fit_on
from cclocal.planning.pool import notes, windows
from cclocal.units import GIB
from tests.planning.recorded import engine, facts

SERVER = engine("linux-cpu")
HERE = facts("linux-cpu")
VARIANT = Variant(backend="llama-server", quant="Q4_K_M")


def pool(*free_mib: int) -> Engine:
    workers = tuple(f"10.0.0.{number}:50052" for number in range(2, 2 + len(free_mib)))
    devices = (f"RPC{at}: {worker} (24576 MiB, {free_mib[at]} MiB free)" for at, worker in enumerate(workers))
    return replace(SERVER, devices=tuple(devices), workers=workers)


def coder() -> Shape:
    shape = published_shape("qwen3-coder-30b-a3b", "gguf")
    assert shape
    return shape


def size_bytes(engine: Engine) -> int:
    budget = budget_of(engine, HERE.machine, coder())
    assert budget
    return budget.size_bytes


def test_two_workers_of_one_machine_count_once() -> None:
    assert size_bytes(pool(20000, 19000)) > 1.9 * size_bytes(pool(19500))
    assert size_bytes(pool(20000, 19990)) == size_bytes(pool(20000))


def test_each_device_has_compute_buffers() -> None:
    one, two = (fit_on(coder(), VARIANT, 32768, pool(*free), HERE) for free in ((20000,), (20000, 19000)))
    assert two.footprint.compute_bytes == 2 * one.footprint.compute_bytes


def test_what_is_left_has_less_context_or_does_not_do() -> None:
    there = pool(20000, 19000)
    first, second = there.workers
    found = windows(coder(), VARIANT, 65536, 16384, there, HERE)
    # on one of them most of the 17 GiB of weights fit, and little more
    assert set(found) == {(), (first,), (second,)}
    assert 0 <= found[(second,)] <= found[(first,)] < 65536
    assert windows(coder(), VARIANT, 16384, 16384, pool(24000, 23000), HERE)[(first,)] == 16384


def test_the_division_is_told() -> None:
    division, warning = notes(pool(18000, 6000))
    assert "75% on 10.0.0.2:50052, 25% on 10.0.0.3:50052" in division
    assert "neither a key nor encryption" in warning
    assert not list(notes(SERVER))


def test_sizes_are_those_that_workers_report() -> None:
    assert abs(size_bytes(pool(20000)) - 20000 * 2**20) < GIB
