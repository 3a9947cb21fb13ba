"""Need against budget: a verdict, and the largest context that fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from cclocal.memory.budget import GIB, Budget
from cclocal.memory.footprint import CELLS, Footprint, Serving, footprint
from cclocal.memory.shape import Shape

Verdict = Literal["roomy", "tight", "too_big", "unknown"]


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a model fits a machine as it would be served, and how much context would."""

    shape: Shape
    serving: Serving
    footprint: Footprint
    #: None: what the machine has was not found out
    budget: Budget | None
    max_context_tokens: int | None

    @property
    def left_bytes(self) -> int | None:
        return self.budget.size_bytes - self.footprint.need_bytes if self.budget else None

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
            f"needs {about}{_gb(parts.need_bytes)} (weights {_gb(parts.weights_bytes)}, "
            f"KV cache {_gb(parts.kv_bytes + parts.state_bytes)}, compute {_gb(parts.compute_bytes)})"
        )
        if not self.budget or self.max_context_tokens is None:
            return f"{need}; what this machine has for it was not found out"
        words = {"roomy": "roomy", "tight": "tight", "too_big": "TOO BIG", "unknown": ""}[self.verdict]
        most = (
            f"the largest context that fits is {self.max_context_tokens:,}" if self.max_context_tokens else "none fits"
        )
        return f"{need} of {_gb(self.budget.size_bytes)}: {words}; {most}"

    def as_json(self) -> dict[str, Any]:
        parts = self.footprint
        return {
            "architecture": self.shape.architecture,
            "context_tokens": self.serving.context_tokens,
            "kv_type": self.serving.kv_type,
            "slots": self.serving.slots,
            "ubatch_tokens": self.serving.ubatch_tokens,
            "weights_bytes": parts.weights_bytes,
            "kv_bytes": parts.kv_bytes,
            "state_bytes": parts.state_bytes,
            "compute_bytes": parts.compute_bytes,
            "other_bytes": parts.other_bytes,
            "need_bytes": parts.need_bytes,
            "budget_bytes": self.budget.size_bytes if self.budget else None,
            "budget_source": self.budget.source if self.budget else None,
            "max_context_tokens": self.max_context_tokens,
            "verdict": self.verdict,
            "bound": self.shape.bound,
        }


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GB" if size_bytes >= GIB / 10 else f"{size_bytes / 2**20:.0f} MB"


def fit(shape: Shape, serving: Serving, budget: Budget | None, *, on_gpu: bool, projector_bytes: int = 0) -> Fit:
    """Compare what serving a shape needs with what there is."""

    def need(context_tokens: int) -> int:
        wanted = replace(serving, context_tokens=context_tokens)
        return footprint(shape, wanted, on_gpu=on_gpu, projector_bytes=projector_bytes).need_bytes

    here = footprint(shape, serving, on_gpu=on_gpu, projector_bytes=projector_bytes)
    if budget is None:
        return Fit(shape, serving, here, None, None)
    # more context never needs less, so halving finds the last step that fits
    low, high = 0, (shape.native_context_tokens or serving.context_tokens) // CELLS
    while low < high:
        middle = (low + high + 1) // 2
        if need(middle * CELLS) <= budget.size_bytes:
            low = middle
        else:
            high = middle - 1
    return Fit(shape, serving, here, budget, low * CELLS)
