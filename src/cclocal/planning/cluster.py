"""How vLLM would divide a model among GPUs of one machine or of several: memory per GPU, window, commands. Pure.

Formulas and flags are those of vLLM 0.32: get_pp_indices in its distributed/utils.py, and the options of its `serve`.
No GPU of a cluster was run here, so what is taken off for activations is an estimate.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from cclocal.errors import UsageError
from cclocal.memory.footprint import CELLS
from cclocal.memory.shape import Shape
from cclocal.units import GIB

#: What vLLM takes of a GPU: its --gpu-memory-utilization.
UTILISATION = 0.92
#: Of that, for activations, CUDA graphs and the libraries' own buffers: an estimate.
RESERVE_BYTES = 2 * GIB
#: vLLM keeps K and V in 16 bits unless told otherwise.
KV_BYTES = 2
#: On which the machines of its own executor meet, and Ray's.
_MASTER_PORT, _RAY_PORT = 29501, 6379
#: More GPUs or machines than this are a mistake.
_MOST = 1024
#: The names of its tool parsers that are others than in our catalog.
_PARSERS = {"harmony": "openai"}
_GROUP = re.compile(r"(\d{1,4})x(\d{1,4})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Machine:
    """GPUs of one size in one machine, and its address, or what stands for it."""

    gpus: int
    size_bytes: int
    address: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a pipeline: the GPUs of one machine that hold the same layers. Bytes are of one GPU.

    kv_bytes: of one conversation with the whole window. free_bytes: what conversations may take in all.
    """

    machine: Machine
    layers: int
    weights_bytes: int
    kv_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Split:
    """One way to divide a model: `tensor` GPUs a stage, one stage after another.

    window_tokens: the largest of one conversation; 0 = the weights alone do not fit. at_once: conversations with the
    window that is asked for.
    """

    tensor: int
    stages: tuple[Stage, ...]
    window_tokens: int
    at_once: int

    @property
    def machines(self) -> tuple[Machine, ...]:
        """Those that take part, in the order of their stages."""
        return tuple(dict.fromkeys(stage.machine for stage in self.stages))

    @property
    def is_even(self) -> bool:
        """Whether every machine has the same number of GPUs in it, which vLLM's own executor demands."""
        counts = [sum(stage.machine is machine for stage in self.stages) for machine in self.machines]
        return len(set(counts)) == 1


def machines_of(gpus: str, nodes: str | None) -> tuple[Machine, ...]:
    """The machines that `2x24,1x80` means: two GPUs of 24 GB in one, one of 80 GB in another. `nodes`: their addresses.

    Raises UsageError.
    """
    found = [_GROUP.fullmatch(word.strip()) for word in gpus.split(",")]
    sizes = [(int(group[1]), int(group[2])) for group in found if group]
    if len(sizes) != len(found) or not all(0 < count <= _MOST and size for count, size in sizes) or len(sizes) > _MOST:
        raise UsageError(
            f"“{gpus}” does not name GPUs.", hint="--gpus 2x24,1x80: two of 24 GB in one machine, one of 80 in another"
        )
    names = [word.strip() for word in nodes.split(",")] if nodes else [f"NODE{number}" for number in range(len(sizes))]
    if len(names) != len(sizes) or not all(re.fullmatch(r"[\w.:-]+", name, re.ASCII) for name in names):
        raise UsageError(f"--nodes {nodes}: {len(sizes)} addresses are needed, one for each machine of --gpus.")
    return tuple(Machine(count, size * GIB, name) for (count, size), name in zip(sizes, names, strict=True))


def splits(shape: Shape, machines: Sequence[Machine], window_tokens: int) -> list[Split]:
    """The ways to divide a model, the best first: one that has the window, on few machines, in few stages."""
    whole = tuple(machines)
    # one machine of a kind is enough to show
    alone = [(machine,) for machine in {(one.gpus, one.size_bytes): one for one in reversed(whole)}.values()]
    found: list[Split] = []
    for used in [*alone, *([whole] if len(whole) > 1 else [])]:
        tensor = 1
        while tensor <= max(machine.gpus for machine in used):
            stages = [machine for machine in used for _ in range(machine.gpus // tensor)]
            is_whole = {machine.address for machine in stages} == {machine.address for machine in used}
            if shape.query_heads % tensor == 0 and is_whole and len(stages) <= len(shape.layers):
                found.append(_split(shape, tensor, stages, window_tokens))
            tensor *= 2

    def rank(split: Split) -> tuple[bool, int, int, int]:
        return (split.at_once == 0, len(split.machines), len(split.stages), -split.window_tokens)

    return sorted(found, key=rank)


def _split(shape: Shape, tensor: int, machines: Sequence[Machine], window_tokens: int) -> Split:
    """Divide the layers by what each stage's GPUs have room for."""
    # where the header does not tell the layers apart, the weights count as divided evenly among them
    weights = shape.layer_weights_bytes or (shape.weights_bytes // len(shape.layers),) * len(shape.layers)
    ends, last = (shape.weights_bytes - sum(weights)) // tensor, len(machines) - 1
    # embeddings at the first stage, the output at the last; where both are one tensor both have it
    outside = [ends if at in (0, last) else 0 for at in range(len(machines))]
    usable = [int(machine.size_bytes * UTILISATION) - RESERVE_BYTES for machine in machines]
    rooms = [size - out for size, out in zip(usable, outside, strict=True)]
    counts = _layers_of(len(weights), rooms, max(weights) // tensor)
    spans = [range(end - count, end) for count, end in zip(counts, accumulate(counts), strict=True)]
    held = [sum(weights[at] for at in span) // tensor for span in spans]
    free = [room - own for room, own in zip(rooms, held, strict=True)]

    def kept_bytes(tokens: int) -> list[int]:
        return [sum(_layer_bytes(shape, at, tensor, tokens) for at in span) for span in spans]

    def is_too_much(cells: int) -> bool:
        return any(kept > room for kept, room in zip(kept_bytes(cells * CELLS), free, strict=True))

    native = shape.native_context_tokens or window_tokens
    most = bisect_left(range(1, native // CELLS + 1), True, key=is_too_much) * CELLS
    window = min(window_tokens, most or window_tokens)
    kept = kept_bytes(window)
    at_once = min((room // one for room, one in zip(free, kept, strict=True) if one), default=0)
    rows = zip(machines, counts, outside, held, kept, free, strict=True)
    stages = tuple(Stage(one, count, out + own, kv, room) for one, count, out, own, kv, room in rows)
    return Split(tensor, stages, most, at_once if most >= window_tokens else 0)


def _layers_of(count: int, rooms: Sequence[int], layer_bytes: int) -> list[int]:
    """How many layers each stage has: vLLM's own division where all have the same room, else in proportion to it."""
    stages = len(rooms)
    if max(rooms) - min(rooms) <= layer_bytes:
        # Source: vLLM 0.32, get_pp_indices
        counts = [count // stages] * stages
        for at in range(2, count % stages + 2):
            counts[-at] += 1
        return counts
    counts = [1] * stages
    for _ in range(count - stages):
        counts[max(range(stages), key=lambda at: rooms[at] / (counts[at] + 1))] += 1
    return counts


def _layer_bytes(shape: Shape, at: int, tensor: int, tokens: int) -> int:
    """What one layer keeps of one conversation on each of `tensor` GPUs."""
    layer = shape.layers[at]
    cells = min(tokens, shape.sliding_tokens) if layer.kind == "sliding" else tokens
    elements = layer.key_elements + layer.value_elements
    # each GPU keeps a latent vector whole; with fewer heads than GPUs several keep the same head
    share = min(tensor, shape.kv_heads or tensor) if layer.value_elements else 1
    return elements * cells * KV_BYTES // share + layer.state_bytes // tensor


def commands(split: Split, source: str, name: str, parser: str, window_tokens: int) -> Iterator[tuple[str, list[str]]]:
    """(what they are for, the lines) of each way to start it. `source`: a repository with safetensors, or a folder."""
    head, *others = split.machines
    words = [
        *("vllm serve", source, "--served-model-name", name),
        *(["--tensor-parallel-size", str(split.tensor)] if split.tensor > 1 else []),
        *(["--pipeline-parallel-size", str(len(split.stages))] if len(split.stages) > 1 else []),
        *("--max-model-len", str(window_tokens), "--max-num-seqs", str(max(1, split.at_once))),
        *("--enable-prefix-caching", "--enable-prompt-tokens-details"),
        *(["--enable-auto-tool-choice", "--tool-call-parser", _PARSERS.get(parser, parser)] if parser else []),
    ]
    counts = ",".join(str(stage.layers) for stage in split.stages)
    own = [] if len(split.stages) == 1 else [f"export VLLM_PP_LAYER_PARTITION={counts}"]
    key = "export VLLM_API_KEY=$(openssl rand -hex 24)"
    if not others:
        yield "On this machine" if head.address == "NODE0" else f"On {head.address}", [key, *own, " ".join(words)]
        return
    if split.is_even:
        for rank, machine in enumerate(split.machines):
            place = f"--nnodes {len(split.machines)} --node-rank {rank} --master-addr {head.address}"
            serve = [*words, "--distributed-executor-backend mp", place, f"--master-port {_MASTER_PORT}"]
            serve += ["--headless"] if rank else []
            lines = [*([] if rank else [key]), *own, f"export VLLM_HOST_IP={machine.address}", " ".join(serve)]
            yield f"vLLM's own executor, on {machine.address}", lines
    start = f"ray start --head --node-ip-address={head.address} --port={_RAY_PORT}"
    yield f"or Ray, on {head.address}" if split.is_even else f"Ray, on {head.address}", [start]
    for machine in others:
        join = f"ray start --address={head.address}:{_RAY_PORT} --node-ip-address={machine.address}"
        yield f"on {machine.address}", [join]
    serve = [*words, "--distributed-executor-backend ray"]
    yield f"then on {head.address}", [key, *own, f"export VLLM_HOST_IP={head.address}", " ".join(serve)]
