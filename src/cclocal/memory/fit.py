"""Compare need and budget: a verdict, and the largest context that fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from cclocal.memory.budget import Budget
from cclocal.memory.footprint import CELLS, NO_EXTRAS, Extras, Footprint, Memory, MemoryConfig, footprint
from cclocal.memory.shape import Shape
from cclocal.units import GIB, memory_size

Verdict = Literal["roomy", "tight", "too_big", "unknown"]


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a model fits a machine as it would be served, and how much context would."""

    shape: Shape
    config: MemoryConfig
    footprint: Footprint
    #: None: the machine's memory is not known
    budget: Budget | None
    max_context_tokens: int | None
    extras: Extras = NO_EXTRAS

    @property
    def left_bytes(self) -> int | None:
        """What would be left of the scarcer memory; below 0 = it does not fit."""
        if self.budget is None:
            return None
        parts, budget = self.footprint, self.budget
        left = budget.size_bytes - parts.need_bytes
        if self.config.gpu_layers is None and not self.config.cpu_moe_layers:
            return left
        if budget.host_bytes is not None:
            return min(left, budget.host_bytes - parts.host_bytes)
        # shared memory: what is not on the GPU takes space in the same memory
        return min(left, (budget.available_bytes or budget.size_bytes) - parts.need_bytes - parts.host_bytes)

    @property
    def fits(self) -> bool:
        """False also if the machine's memory was not found out."""
        return self.left_bytes is not None and self.left_bytes >= 0

    @property
    def verdict(self) -> Verdict:
        """Tight means that less than 1 GiB would be left."""
        if self.left_bytes is None:
            return "unknown"
        if self.left_bytes < 0:
            return "too_big"
        return "tight" if self.left_bytes < GIB else "roomy"

    @property
    def in_words(self) -> str:
        """One line: need, budget, verdict, and the largest context."""
        parts = self.footprint
        about = "at most " if self.shape.bound else ""
        need = (
            f"needs {about}{memory_size(parts.need_bytes)} (weights {memory_size(parts.weights_bytes)}, "
            f"KV cache {memory_size(parts.kv_bytes + parts.state_bytes)}, compute {memory_size(parts.compute_bytes)})"
        )
        if not self.budget or self.max_context_tokens is None:
            return f"{need}; what this machine has for it is unknown"
        words = {"roomy": "roomy", "tight": "tight", "too_big": "TOO BIG", "unknown": ""}[self.verdict]
        most = (
            f"the largest context that fits is {self.max_context_tokens:,}" if self.max_context_tokens else "none fits"
        )
        return f"{need} of {memory_size(self.budget.size_bytes)}: {words}; {most}"

    def as_json(self) -> dict[str, Any]:
        parts = self.footprint
        mlx = self.shape.form == "mlx"
        batch = {"prefill_step_tokens": self.config.prefill_step_tokens} if mlx else {}
        return {
            "architecture": self.shape.architecture,
            "context_tokens": self.config.context_tokens,
            "native_context_tokens": self.shape.native_context_tokens or None,
            "kv_type": "bf16" if mlx else self.config.kv_type,
            "slots": self.config.slots,
            **(batch or {"ubatch_tokens": self.config.ubatch_tokens}),
            "weights_bytes": parts.weights_bytes,
            "kv_bytes": parts.kv_bytes,
            "state_bytes": parts.state_bytes,
            "compute_bytes": parts.compute_bytes,
            "other_bytes": parts.other_bytes,
            "host_bytes": parts.host_bytes,
            "need_bytes": parts.need_bytes,
            "correction_bytes": self.extras.correction_bytes,
            "budget_bytes": self.budget.size_bytes if self.budget else None,
            "budget_source": self.budget.source if self.budget else None,
            "max_context_tokens": self.max_context_tokens,
            "verdict": self.verdict,
            "bound": self.shape.bound,
        }


def fit(
    shape: Shape,
    config: MemoryConfig,
    budget: Budget | None,
    *,
    memory: Memory | None = None,
    extras: Extras = NO_EXTRAS,
) -> Fit:
    """Compare what serving a shape needs with what there is. `memory` is the budget's kind unless that is unknown."""
    kind = budget.memory if budget else memory or "discrete"
    here = footprint(shape, config, memory=kind, extras=extras)
    if budget is None:
        return Fit(shape, config, here, None, None, extras)

    def fits(context_tokens: int) -> bool:
        tried_config = replace(config, context_tokens=context_tokens)
        tried = Fit(shape, tried_config, footprint(shape, tried_config, memory=kind, extras=extras), budget, None)
        return tried.fits

    # more context never needs less, so halving finds the last step that fits
    native = shape.native_context_tokens or config.context_tokens
    low, high = 0, max(1, native // CELLS)
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle * CELLS):
            low = middle
        else:
            high = middle - 1
    return Fit(shape, config, here, budget, min(low * CELLS, native), extras)
