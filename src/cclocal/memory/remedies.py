"""What can be done about a model that does not fit, or hardly: cheapest first, each with the context it would give."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cclocal.memory.fit import Budget, Fit, fit
from cclocal.memory.footprint import CELLS, DEFAULT_UBATCH_TOKENS, MemoryConfig, footprint
from cclocal.units import MIB

#: The smaller micro-batch (and MLX's prefill step) that is offered: reading a prompt gets somewhat slower.
SMALL_UBATCH_TOKENS = 256
#: macOS counts the limit in MiB; one that is a round number is easier to recognise later.
_LIMIT_STEP_MIB = 256

#: A way to need less: its name, its words, further words where it stands alone, the settings and the fields of a
#: MemoryConfig that it changes.
_Saving = tuple[str, str, str, dict[str, Any], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Remedy:
    """One thing to do. `changes` are the settings it changes; the plan is made again with them.

    name: shrink, raise, both, slots, vision, ubatch, kv, offload or smaller. `fit` is the result with the context that
    would then be served.
    """

    name: str
    words: str
    changes: Mapping[str, Any]
    fit: Fit

    def as_json(self) -> dict[str, Any]:
        context = {
            "context_tokens": self.fit.config.context_tokens,
            "max_context_tokens": self.fit.max_context_tokens or 0,
        }
        return {"name": self.name, "words": self.words, **context}


def remedies(
    requested: Fit,
    *,
    least_context_tokens: int,
    can_quantise_kv: bool = True,
    can_offload: bool = True,
    can_offload_experts: bool = True,
    safe_limit_mib: int = 0,
    smaller: Sequence[Remedy] = (),
) -> tuple[Remedy, ...]:
    """Every remedy that helps `requested`, the recommended shrink first; empty if the machine's memory is not known.

    `least_context_tokens` is what one conversation must have at least. `smaller` are other models to take instead.

    Where the model fits well the only remedy is to keep the context it has.
    """
    if requested.budget is None:
        return ()
    # never one that needs more: the same context in one slot has larger buffers than in several
    most = requested.footprint.need_bytes

    def helps(remedy: Remedy) -> bool:
        return remedy.fit.fits and remedy.fit.footprint.need_bytes <= most

    savings = list(_savings(requested, can_quantise_kv=can_quantise_kv))
    found = list(filter(helps, _shrinks(requested, least_context_tokens, savings)))
    if requested.verdict == "roomy":
        return tuple(found)
    shrunk = found[0].fit.config.context_tokens if found else 0
    found += _raises(requested, least_context_tokens, safe_limit_mib, shrunk)
    savings += _offloads(requested, layers_too=can_offload, experts_too=can_offload_experts)
    for name, words, more, changes, fields in savings:
        config = replace(requested.config, **fields)
        result = _served(requested, config, requested.budget)
        served = result.config.context_tokens
        if served >= _least(least_context_tokens, config) and _gains(requested, result):
            kept = {"ctx": served} if served != requested.config.context_tokens else {}
            found.append(Remedy(name, words + more, {**changes, **kept}, result))
    found += [one for one in smaller if _gains(requested, one.fit)]
    return tuple(filter(helps, found))


def _least(least_tokens: int, config: MemoryConfig) -> int:
    """What a server must have at least: each of its slots rounds down to whole cells."""
    return -(-least_tokens // CELLS) * CELLS * config.slots


def _gains(requested: Fit, result: Fit) -> bool:
    """Whether a remedy allows a larger context than the request; any other remedy is left out."""
    return (result.max_context_tokens or 0) > (requested.max_context_tokens or 0)


def _served(requested: Fit, config: MemoryConfig, budget: Budget | None) -> Fit:
    """The fit with the requested context, or the largest there is."""
    tried = fit(requested.shape, config, budget)
    most = min(tried.max_context_tokens or 0, config.context_tokens)
    return replace_context(tried, most) if most != config.context_tokens else tried


def replace_context(result: Fit, context_tokens: int) -> Fit:
    """The same with another context."""
    return fit(result.shape, replace(result.config, context_tokens=context_tokens), result.budget)


def _savings(requested: Fit, *, can_quantise_kv: bool) -> Iterator[_Saving]:
    """What can be spared beside context, without moving anything to host memory."""
    config, is_mlx = requested.config, requested.shape.form == "mlx"
    if config.slots > 1 or config.cache_ram_bytes:
        changes, less = {"slots": 1, "cache_ram_mib": 0}, {"slots": 1, "cache_ram_bytes": 0}
        yield "slots", "one slot", ", and no prompt cache in host memory", changes, less
    if projector := config.projector:
        fields: dict[str, Any] = {"projector": None}
        if projector.at_once and config.ubatch_tokens == projector.most_tokens:
            # it was as large as a picture
            fields |= {"ubatch_tokens": DEFAULT_UBATCH_TOKENS}
        yield "vision", "no pictures", ": without the projector", {"vision": False}, fields
    batch, words = ("prefill_step_tokens", "prefill step") if is_mlx else ("ubatch_tokens", "micro-batch")
    small = SMALL_UBATCH_TOKENS
    if getattr(config, batch) > small:
        yield "ubatch", f"{words} {small}", ": reads prompts a little slower", {"ubatch": small}, {batch: small}
    if can_quantise_kv and not is_mlx and config.kv_type in ("f16", "bf16") and config.flash_attention:
        yield "kv", "q8_0 KV cache", ": half the size, nearly as exact", {"kv": "q8_0"}, {"kv_type": "q8_0"}


def _shrinks(requested: Fit, least_tokens: int, savings: Sequence[_Saving]) -> Iterator[Remedy]:
    """The recommended remedy: less context; further changes only if the agent's smallest window does not fit."""
    config = requested.config
    words: list[str] = []
    changes: dict[str, Any] = {}
    for _, label, _, settings, fields in (("", "", "", {}, {}), *savings):
        config = replace(config, **fields)
        changes |= settings
        words += [label] if label else []
        result = _served(requested, config, requested.budget)
        tokens = result.config.context_tokens
        is_same = tokens == requested.config.context_tokens
        if tokens >= _least(least_tokens, config) or (is_same and not words):
            context = f"keep the context of {tokens:,}" if is_same else f"context {tokens:,}"
            yield Remedy("shrink", ", ".join((context, *words)), {**changes, "ctx": tokens}, result)
            return


def _raises(requested: Fit, least_tokens: int, safe_limit_mib: int, shrunk_tokens: int) -> Iterator[Remedy]:
    """A higher wired limit for the session: only as far as the plan needs, never above the safe maximum."""
    budget = requested.budget
    if budget is None or budget.limit_mib is None or not safe_limit_mib:
        return
    needed = -(-(requested.footprint.need_bytes + budget.margin_bytes) // MIB)
    limit = min(-(-needed // _LIMIT_STEP_MIB) * _LIMIT_STEP_MIB, safe_limit_mib)
    if limit <= budget.limit_mib:
        return
    result = _served(requested, requested.config, budget.raised(limit))
    least_tokens = _least(least_tokens, requested.config)
    reached = result.config.context_tokens
    if reached < least_tokens or not _gains(requested, result):
        return
    words = f"raise the wired limit from {budget.limit_mib:,} to {limit:,} MiB for this session (sudo)"
    if reached == requested.config.context_tokens:
        yield Remedy("raise", words, {"wired_limit": limit}, result)
        # both: more room than either alone
        reached = min(reached, shrunk_tokens) if shrunk_tokens >= least_tokens else reached
        result = replace_context(result, reached)
    yield Remedy("both", f"{words}, and context {reached:,}", {"wired_limit": limit, "ctx": reached}, result)


def _offloads(requested: Fit, *, layers_too: bool, experts_too: bool) -> Iterator[_Saving]:
    """Part of the model in host memory: the experts of as few layers as it takes, else whole layers."""
    shape, budget = requested.shape, requested.budget
    if budget is None or budget.memory != "discrete" or not shape.layer_weights_bytes or requested.verdict != "too_big":
        return
    count = len(shape.layers)

    def card_holds(**fields: Any) -> bool:
        """Whether the card holds its part."""
        need = footprint(shape, replace(requested.config, **fields), memory=budget.memory).need_bytes
        return need <= budget.size_bytes

    # the more layers stay in host memory, the less the card holds: bisection finds the fewest that suffice
    steps = range(1, count + 1)
    if experts_too and any(shape.expert_weights_bytes):
        layers = 1 + bisect_left(steps, True, key=lambda n: card_holds(cpu_moe_layers=n))
        if layers <= count:
            words = f"experts of {layers} of {count} layers on the processor"
            yield "offload", words, ": slower", {"cpu_moe": layers}, {"cpu_moe_layers": layers}
            return
    if layers_too:
        layers = 1 + bisect_left(steps, True, key=lambda n: card_holds(gpu_layers=count + 1 - n))
        if layers <= count:
            rest = {"gpu_layers": count + 1 - layers}
            yield "offload", f"{layers} of {count} layers on the processor", ": much slower", rest, rest
