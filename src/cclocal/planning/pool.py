"""A model on several small machines: how its layers divide, and what is left when one of them is lost. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

from cclocal.facts import Engine, Facts
from cclocal.memory.footprint import CELLS
from cclocal.memory.shape import Shape
from cclocal.models.catalog import Variant
from cclocal.planning.memory import device_memory, fit_on

#: With more workers only the loss of one of them, and of all, is planned.
_MOST_FOR_EVERY_LOSS = 4


def windows(
    shape: Shape, variant: Variant, context_tokens: int, least_tokens: int, engine: Engine, facts: Facts
) -> Mapping[tuple[str, ...], int]:
    """The context for each set of workers that may be left of those there are; 0 = the model does not fit on them.

    least_tokens: of one conversation, with which the agent can work.
    """
    count, found = len(engine.workers), {}
    for size in range(count) if count <= _MOST_FOR_EVERY_LOSS else (count - 1, 0):
        for left in combinations(engine.workers, size):
            fit = fit_on(shape, variant, context_tokens, engine.left_with(left), facts)
            whole = context_tokens if fit.fits else fit.max_context_tokens or 0
            window = whole // variant.slots // CELLS * CELLS
            found[left] = window * variant.slots if window >= least_tokens else 0
    return found


def notes(engine: Engine) -> Iterator[str]:
    """What the user should know of the workers."""
    if not engine.workers:
        return
    free = {device.split(" (")[0].partition(": ")[2]: device_memory(device)[1] for device in engine.devices}
    whole = sum(free.values()) or 1
    parts = ", ".join(f"{size / whole:.0%} on {name}" for name, size in free.items())
    yield f"The layers are divided by free memory: {parts}."
    yield "RPC has neither a key nor encryption: whoever reaches a worker can read what is computed there, or use it."
