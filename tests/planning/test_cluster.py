"""A model among GPUs that are not here: how vLLM divides it, and the commands, by vLLM 0.32's own names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cclocal.errors import UsageError
from cclocal.memory.shape import Layer, Shape, published_shape
from cclocal.planning.cluster import Split, commands, machines_of, splits
from cclocal.units import GIB
from tests.world import World

#: Flags, tool parsers and variables as they stand in vLLM 0.32's wheel: its arg_utils, cli_args, envs, tool_parsers.
VLLM = json.loads((Path(__file__).parent / "vllm_0_32.json").read_text())


def circuit(layers: int = 5, kv_heads: int = 1) -> Shape:
    """A model of some GB: each layer 1 GiB of weights and 1 KiB of K and V a token."""
    kept = Layer("full", 256, 256)
    weights = (GIB,) * layers
    return Shape(
        "llama",
        131072,
        (kept,) * layers,
        0,
        8,
        layers * GIB,
        layers * GIB,
        layer_weights_bytes=weights,
        kv_heads=kv_heads,
    )


def best(shape: Shape, gpus: str, tensor: int, stages: int) -> Split:
    found = splits(shape, machines_of(gpus, None), 65536)
    return next(split for split in found if (split.tensor, len(split.stages)) == (tensor, stages))


def test_layers_are_divided_as_vllm_does_where_gpus_are_equal() -> None:
    # [3, 2] was seen with 0.32 on two nodes
    assert [stage.layers for stage in best(circuit(), "1x24,1x24", 1, 2).stages] == [3, 2]
    assert [stage.layers for stage in best(circuit(10), "4x24", 1, 4).stages] == [2, 3, 3, 2]


def test_a_larger_gpu_has_more_of_them() -> None:
    found = best(circuit(40), "1x24,1x80", 1, 2)
    small, large = found.stages
    assert small.layers + large.layers == 40
    assert large.layers > 2.5 * small.layers
    assert found.at_once > 0


def test_tensor_parallelism_divides_weights_and_as_many_heads_as_there_are() -> None:
    one, two = best(circuit(kv_heads=2), "4x24", 1, 4), best(circuit(kv_heads=2), "4x24", 2, 2)
    assert two.stages[0].weights_bytes == 3 * GIB // 2
    assert one.stages[0].weights_bytes == 1 * GIB
    four = best(circuit(kv_heads=2), "4x24", 4, 1)
    # two heads on four GPUs: each pair keeps the same
    assert four.stages[0].kv_bytes == 5 * 1024 * 65536 // 2
    assert four.stages[0].weights_bytes == 5 * GIB // 4


def test_the_window_fits_and_a_larger_one_does_not() -> None:
    shape = published_shape("qwen3-coder-30b-a3b", "gguf")
    assert shape
    (found,) = splits(shape, machines_of("1x24", None), 65536)
    assert found.window_tokens < 131072
    stage = found.stages[0]
    per_token = 48 * 2 * 4 * 128 * 2
    assert stage.kv_bytes == per_token * min(found.window_tokens, 65536)
    assert 0 <= stage.free_bytes - per_token * found.window_tokens < per_token * 256


@pytest.mark.parametrize("gpus", ["", "24", "0x24", "2x24;1x80", "2x24,", "2x24,99999x1"])
def test_what_names_no_gpus_is_refused(gpus: str) -> None:
    with pytest.raises(UsageError):
        machines_of(gpus, None)


def test_each_machine_needs_an_address() -> None:
    with pytest.raises(UsageError, match="2 addresses"):
        machines_of("2x24,1x80", "10.0.0.1")
    with pytest.raises(UsageError):
        machines_of("1x24", "a;reboot")


@pytest.mark.parametrize("gpus", ["1x80", "2x80", "2x24,2x24", "2x24,1x80", "1x24,1x24,1x24"])
@pytest.mark.parametrize("parser", ["qwen3_coder", "hermes", "gemma4", "harmony", "glm47", ""])
def test_every_flag_and_parser_is_one_of_vllm_0_32(gpus: str, parser: str) -> None:
    for split in splits(circuit(20, 2), machines_of(gpus, None), 65536):
        lines = [line for _, rows in commands(split, "owner/name", "name", parser, 65536) for line in rows]
        served = [line for line in lines if line.startswith("vllm serve")]
        assert served
        for line in served:
            assert set(re.findall(r"--[a-z-]+", line)) <= set(VLLM["flags"])
            named = re.findall(r"--tool-call-parser (\S+)", line)
            assert set(named) <= set(VLLM["tool_parsers"])
            assert bool(named) == bool(parser)
        exported = re.findall(r"export (\w+)=", "\n".join(lines))
        assert set(exported) <= set(VLLM["variables"])
        # its own executor has as many GPUs on each machine
        assert split.is_even == any("--nnodes" in line or len(split.machines) == 1 for line in served)


def test_the_command_shows_and_refuses(world: World) -> None:
    done = world.run("plan", "coder", "--gpus", "2x24,1x80", "--nodes", "10.0.0.1,10.0.0.2")
    assert done.returncode == 0, done.stderr
    assert "2 of 10.0.0.1 + 1 of 10.0.0.2" in done.stdout
    assert "cclocal --ssh 10.0.0.1" in done.stdout
    plan = json.loads(world.run("plan", "coder", "--gpus", "8x80", "--json").stdout)
    assert plan["splits"][0]["at_once"] > 0
    assert plan["splits"][0]["commands"]
    small = world.run("plan", "coder", "--gpus", "1x16")
    assert "does not fit" in small.stdout
    assert world.run("plan", "--gpus", "1x80").returncode == 2
