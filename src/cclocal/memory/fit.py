"""Need against budget: a verdict, and the largest context that fits."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from cclocal.memory.footprint import CELLS, Footprint, Memory, MemoryConfig, footprint
from cclocal.memory.projector import SCREENSHOT_PX
from cclocal.memory.shape import Shape
from cclocal.units import GIB, MIB, memory_size

Verdict = Literal["roomy", "tight", "too_big", "unknown"]


#: llama.cpp's own default margin (--fit-target), and the larger one that MLX wants: it allocates as it goes.
MARGIN_BYTES = GIB
MLX_MARGIN_BYTES = 3 * GIB // 2


@dataclass(frozen=True, slots=True)
class Budget:
    """How many bytes a model may use, after the margin, and where that number comes from.

    host_bytes: what host memory has for the rest, where the device has a memory of its own; None = the same memory.
    limit_mib: on a Mac, the limit of its GPU's memory. available_bytes: what is free now; 0 = unknown.
    """

    size_bytes: int
    source: str
    memory: Memory = "host"
    host_bytes: int | None = None
    limit_mib: int | None = None
    margin_bytes: int = MARGIN_BYTES
    available_bytes: int = 0

    def limited(self, limit_bytes: int, source: str) -> Budget:
        """The same Mac with another limit of its GPU's memory: less the margin, and no more than is free now."""
        size = max(0, limit_bytes - self.margin_bytes)
        if 0 < self.available_bytes < size:
            size, source = self.available_bytes, f"{memory_size(self.available_bytes)} are free now; {source}"
        return replace(self, size_bytes=size, source=source, limit_mib=limit_bytes // MIB)

    def raised(self, limit_mib: int) -> Budget:
        """The same Mac with another wired limit."""
        return self.limited(limit_mib * MIB, f"iogpu.wired_limit_mb = {limit_mib}")


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a model fits a machine as it would be served, and how much context would."""

    shape: Shape
    config: MemoryConfig
    footprint: Footprint
    #: None: the machine's memory is not known
    budget: Budget | None
    max_context_tokens: int | None

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
        pictures = f", pictures {memory_size(parts.vision_bytes)}" if parts.vision_bytes else ""
        need = (
            f"needs {about}{memory_size(parts.need_bytes)} (weights {memory_size(parts.weights_bytes)}, "
            f"KV cache {memory_size(parts.kv_bytes + parts.state_bytes)}, compute {memory_size(parts.compute_bytes)}"
            f"{pictures})"
        )
        if not self.budget or self.max_context_tokens is None:
            return f"{need}; what this machine has for it is unknown"
        words = {"roomy": "roomy", "tight": "tight", "too_big": "TOO BIG", "unknown": ""}[self.verdict]
        most = (
            f"the largest context that fits is {self.max_context_tokens:,}" if self.max_context_tokens else "none fits"
        )
        return f"{need} of {memory_size(self.budget.size_bytes)}: {words}; {most}"

    def as_json(self) -> dict[str, Any]:
        mlx, projector = self.shape.form == "mlx", self.config.projector
        batch = "prefill_step_tokens" if mlx else "ubatch_tokens"
        return {
            "architecture": self.shape.architecture,
            "context_tokens": self.config.context_tokens,
            "native_context_tokens": self.shape.native_context_tokens or None,
            "kv_type": "bf16" if mlx else self.config.kv_type,
            "slots": self.config.slots,
            batch: getattr(self.config, batch),
            **asdict(self.footprint),
            "need_bytes": self.footprint.need_bytes,
            "most_picture_tokens": projector.most_tokens if projector else None,
            "screenshot_tokens": projector.tokens(*SCREENSHOT_PX) if projector and projector.most_tokens else None,
            "correction_bytes": self.config.correction_bytes,
            "budget_bytes": self.budget.size_bytes if self.budget else None,
            "budget_source": self.budget.source if self.budget else None,
            "max_context_tokens": self.max_context_tokens,
            "verdict": self.verdict,
            "bound": self.shape.bound,
        }


def fit(shape: Shape, config: MemoryConfig, budget: Budget | None, *, memory: Memory = "discrete") -> Fit:
    """Compare what serving a shape needs with what there is. `memory` is its kind where the budget is unknown."""
    kind = budget.memory if budget else memory
    here = footprint(shape, config, memory=kind)
    if budget is None:
        return Fit(shape, config, here, None, None)

    def is_too_much(cells: int) -> bool:
        tried = replace(config, context_tokens=cells * CELLS)
        return not Fit(shape, tried, footprint(shape, tried, memory=kind), budget, None).fits

    # more context never needs less, so halving finds the last step that fits
    native = shape.native_context_tokens or config.context_tokens
    most = bisect_left(range(1, max(1, native // CELLS) + 1), True, key=is_too_much) * CELLS
    return Fit(shape, config, here, budget, min(most, native))
