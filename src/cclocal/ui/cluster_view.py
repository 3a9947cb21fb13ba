"""A plan for a cluster on the screen: the ways to divide a model, the best one GPU by GPU, and its commands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from cclocal.planning.cluster import RESERVE_BYTES, UTILISATION, Split, commands
from cclocal.ui.console import output, print_json
from cclocal.ui.tables import plain_table
from cclocal.units import memory_size

#: What stands for a repository that vLLM can load, where the model's file is none.
_REPOSITORY = "REPOSITORY"


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """A model on GPUs that are not here. quant: of the weights that were counted. repository: empty if vLLM cannot load
    it. parser: of its tool calls. splits: the best first.
    """

    name: str
    source: str
    quant: str
    repository: str
    parser: str
    window_tokens: int
    splits: Sequence[Split]


def show(plan: ClusterPlan, *, as_json: bool) -> None:
    """Print it."""
    fitting = [split for split in plan.splits if split.at_once]
    # the one on few machines is the fastest for one agent; more of them hold more agents
    shown = list(dict.fromkeys((fitting[0], max(fitting, key=_width)))) if fitting else []
    if as_json:
        about = {"model": plan.name, "window_tokens": plan.window_tokens, "repository": plan.repository or None}
        found = [{**asdict(split), "commands": _commands(plan, split)} for split in plan.splits]
        print_json({**about, "splits": found})
        return
    screen = output()
    screen.print(f"{plan.name}, {plan.quant}, with a window of {plan.window_tokens:,} tokens, by vLLM", markup=False)
    screen.print(f"weights and caches from {plan.source}", style="dim", markup=False)
    screen.print(_ways(plan.splits))
    if not shown:
        screen.print("It does not fit with this window: a smaller --ctx, more GPUs, or a smaller quantisation.")
        return
    taken = (
        f"Of each GPU vLLM takes {UTILISATION:.0%}; {memory_size(RESERVE_BYTES)} of that are left to activations and"
    )
    screen.print(f"{taken} its own buffers: an estimate, as no cluster was run.", style="dim", soft_wrap=True)
    for split in shown:
        screen.print(f"\n{_gpus_of(split)}, {split.tensor} × {len(split.stages)}", style="bold", markup=False)
        screen.print(_stages(split))
        for row in _commands(plan, split):
            screen.print(f"{row['where']}:")
            for line in row["lines"]:
                screen.print(f"  {line}", soft_wrap=True, markup=False)
        screen.print("everyone, with the same key in VLLM_API_KEY:")
        to = split.machines[0].address
        screen.print(f"  cclocal --ssh {to} --url http://127.0.0.1:8000 --key-env VLLM_API_KEY", markup=False)
    if not plan.repository:
        words = "one with safetensors; of about this size it is quantised as this one is (AWQ, GPTQ, FP8)."
        screen.print(f"\n{_REPOSITORY}: {words}", soft_wrap=True)


def _width(split: Split) -> tuple[int, int]:
    """More machines are wider, then fewer stages."""
    return len(split.machines), -len(split.stages)


def _commands(plan: ClusterPlan, split: Split) -> list[dict[str, Any]]:
    """Each place and its lines; none for a division that does not fit."""
    # what requests call the model
    served = plan.name.rpartition("/")[2].replace(" ", "-").lower()
    rows = commands(split, plan.repository or _REPOSITORY, served, plan.parser, plan.window_tokens)
    return [{"where": where, "lines": lines} for where, lines in rows] if split.at_once else []


def _gpus_of(split: Split) -> str:
    counts = Counter(stage.machine.address for stage in split.stages)
    return " + ".join(f"{split.tensor * count} of {address}" for address, count in counts.items())


def _ways(splits: Sequence[Split]) -> Table:
    columns = ("GPUs", "tensor × pipeline", "largest window", "conversations at once")
    table = plain_table(*columns, right=columns[2:])
    for split in splits:
        window = f"{split.window_tokens:,}" if split.window_tokens else "none"
        at_once = f"{split.at_once:,}" if split.at_once else "does not fit"
        table.add_row(_gpus_of(split), f"{split.tensor} × {len(split.stages)}", window, at_once)
    return table


def _stages(split: Split) -> Table:
    """What each GPU of a stage holds."""
    columns = ("on each GPU of", "layers", "weights", "a conversation", "free for them", "of")
    table = plain_table(*columns, right=columns[1:])
    for stage in split.stages:
        sizes = (stage.weights_bytes, stage.kv_bytes, stage.free_bytes, stage.machine.size_bytes)
        table.add_row(stage.machine.address, str(stage.layers), *map(memory_size, sizes))
    return table
