"""What can be done about a model that does not fit, or hardly: cheapest first, each with the context it would give."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cclocal.memory.budget import Budget
from cclocal.memory.fit import Fit, fit
from cclocal.memory.footprint import CELLS, MemoryConfig, footprint
from cclocal.units import MIB

#: The smaller micro-batch (and MLX's prefill step) that is offered: reading a prompt gets somewhat slower.
SMALL_UBATCH_TOKENS = 256
#: macOS counts the limit in MiB; one that is a round number is easier to recognise later.
_LIMIT_STEP_MIB = 256


@dataclass(frozen=True, slots=True)
class Smaller:
    """Another model or variant that could be taken instead: what is needed to say so."""

    words: str
    changes: Mapping[str, Any]
    fit: Fit


@dataclass(frozen=True, slots=True)
class Remedy:
    """One thing to do. `changes` are the settings it changes; the plan is made again with them.

    name: shrink, raise, both, slots, ubatch, kv, offload or smaller. `fit` is the result with the context that
    would then be served.
    """

    name: str
    words: str
    changes: Mapping[str, Any]
    fit: Fit

    @property
    def max_context_tokens(self) -> int:
        return self.fit.max_context_tokens or 0

    @property
    def helps(self) -> bool:
        return self.fit.fits


def remedies(
    requested: Fit,
    *,
    least_context_tokens: int,
    can_quantise_kv: bool = True,
    can_offload: bool = True,
    can_offload_experts: bool = True,
    safe_limit_mib: int = 0,
    smaller: Sequence[Smaller] = (),
) -> tuple[Remedy, ...]:
    """Every remedy that helps `requested`, the recommended shrink first; empty if the machine's memory is not known.

    `least_context_tokens` is what one conversation must have at least.

    Where the model fits well the only remedy is to keep the context it has.
    """
    if requested.budget is None:
        return ()
    # never one that needs more: the same context in one slot has larger buffers than in several
    most = requested.footprint.need_bytes

    def worth_it(remedy: Remedy) -> bool:
        return remedy.helps and remedy.fit.footprint.need_bytes <= most

    found = [one for one in _shrinks(requested, least_context_tokens, can_quantise_kv=can_quantise_kv) if worth_it(one)]
    if requested.verdict == "roomy":
        return tuple(found)
    shrunk = found[0].fit.config.context_tokens if found else 0
    found += _raises(requested, least_context_tokens, safe_limit_mib, shrunk)
    others = list(_others(requested, can_quantise_kv=can_quantise_kv))
    others += _offloads(requested, layers_too=can_offload, experts_too=can_offload_experts)
    for name, words, changes, config in others:
        result = _served(requested, config, requested.budget)
        if result.config.context_tokens >= _least(least_context_tokens, config) and _gains(requested, result):
            kept = {"ctx": result.config.context_tokens} if result.config.context_tokens != _tokens(requested) else {}
            found.append(Remedy(name, words, {**changes, **kept}, result))
    found += [
        Remedy("smaller", one.words, one.changes, one.fit)
        for one in smaller
        if (one.fit.max_context_tokens or 0) > (requested.max_context_tokens or 0)
    ]
    return tuple(remedy for remedy in found if worth_it(remedy))


def _least(least_tokens: int, config: MemoryConfig) -> int:
    """What a server must have at least: each of its slots rounds down to whole cells."""
    return -(-least_tokens // CELLS) * CELLS * config.slots


def _tokens(requested: Fit) -> int:
    return requested.config.context_tokens


def _gains(requested: Fit, result: Fit) -> bool:
    """Whether a remedy allows a larger context than the request; any other remedy is left out."""
    return (result.max_context_tokens or 0) > (requested.max_context_tokens or 0)


def _served(requested: Fit, config: MemoryConfig, budget: Budget) -> Fit:
    """The fit with the requested context, or the largest there is."""
    tried = fit(requested.shape, config, budget, extras=requested.extras)
    most = min(tried.max_context_tokens or 0, config.context_tokens)
    return replace_context(tried, most) if most != config.context_tokens else tried


def replace_context(result: Fit, context_tokens: int) -> Fit:
    """The same with another context."""
    return fit(result.shape, replace(result.config, context_tokens=context_tokens), result.budget, extras=result.extras)


def _shrinks(requested: Fit, least_tokens: int, *, can_quantise_kv: bool) -> Iterator[Remedy]:
    """The recommended remedy: less context; further changes only if the agent's smallest window does not fit."""
    config, words = requested.config, []
    changes: dict[str, Any] = {}
    steps: list[tuple[str, dict[str, Any], MemoryConfig]] = [("", {}, config)]
    if config.slots > 1 or config.cache_ram_bytes:
        config = replace(config, slots=1, cache_ram_bytes=0)
        steps.append(("one slot", {"slots": 1, "cache_ram_mib": 0}, config))
    if requested.shape.form == "gguf" and config.ubatch_tokens > SMALL_UBATCH_TOKENS:
        config = replace(config, ubatch_tokens=SMALL_UBATCH_TOKENS)
        steps.append((f"micro-batch {SMALL_UBATCH_TOKENS}", {"ubatch": SMALL_UBATCH_TOKENS}, config))
    if requested.shape.form == "mlx" and config.prefill_step_tokens > SMALL_UBATCH_TOKENS:
        config = replace(config, prefill_step_tokens=SMALL_UBATCH_TOKENS)
        steps.append((f"prefill step {SMALL_UBATCH_TOKENS}", {"ubatch": SMALL_UBATCH_TOKENS}, config))
    if _may_quantise(requested, can_quantise_kv=can_quantise_kv):
        config = replace(config, kv_type="q8_0")
        steps.append(("q8_0 KV cache", {"kv": "q8_0"}, config))
    assert requested.budget is not None
    for label, change, tried in steps:
        changes |= change
        words += [label] if label else []
        result = _served(requested, tried, requested.budget)
        tokens = result.config.context_tokens
        if tokens >= _least(least_tokens, tried) or (tokens == _tokens(requested) and tried == requested.config):
            same = tokens == _tokens(requested)
            context = f"context {tokens:,}" if not same else f"keep the context of {tokens:,}"
            yield Remedy("shrink", ", ".join((context, *words)), {**changes, "ctx": tokens}, result)
            return


def _may_quantise(requested: Fit, *, can_quantise_kv: bool) -> bool:
    return (
        can_quantise_kv
        and requested.shape.form == "gguf"
        and requested.config.kv_type in ("f16", "bf16")
        and requested.config.flash_attention
    )


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
    if result.config.context_tokens < least_tokens or not _gains(requested, result):
        return
    words = f"raise the wired limit from {budget.limit_mib:,} to {limit:,} MiB for this session (sudo)"
    changes: dict[str, Any] = {"wired_limit": limit}
    reached = result.config.context_tokens
    if reached == _tokens(requested):
        yield Remedy("raise", words, changes, result)
        # both: more room than either alone
        reached = min(reached, shrunk_tokens) if shrunk_tokens >= least_tokens else reached
        result = replace_context(result, reached)
    yield Remedy("both", f"{words}, and context {reached:,}", {**changes, "ctx": reached}, result)


def _others(requested: Fit, *, can_quantise_kv: bool) -> Iterator[tuple[str, str, dict[str, Any], MemoryConfig]]:
    config = requested.config
    if config.slots > 1 or config.cache_ram_bytes:
        yield (
            "slots",
            "one slot, and no prompt cache in host memory",
            {"slots": 1, "cache_ram_mib": 0},
            replace(config, slots=1, cache_ram_bytes=0),
        )
    if requested.shape.form == "mlx" and config.prefill_step_tokens > SMALL_UBATCH_TOKENS:
        words = f"prefill step {SMALL_UBATCH_TOKENS}: reads prompts a little slower"
        small = {"ubatch": SMALL_UBATCH_TOKENS}
        yield "ubatch", words, small, replace(config, prefill_step_tokens=SMALL_UBATCH_TOKENS)
    elif config.ubatch_tokens > SMALL_UBATCH_TOKENS:
        words = f"micro-batch {SMALL_UBATCH_TOKENS}: reads prompts a little slower"
        small = {"ubatch": SMALL_UBATCH_TOKENS}
        yield "ubatch", words, small, replace(config, ubatch_tokens=SMALL_UBATCH_TOKENS)
    if _may_quantise(requested, can_quantise_kv=can_quantise_kv):
        yield "kv", "q8_0 KV cache: half the size, nearly as exact", {"kv": "q8_0"}, replace(config, kv_type="q8_0")


def _offloads(
    requested: Fit, *, layers_too: bool, experts_too: bool
) -> Iterator[tuple[str, str, dict[str, Any], MemoryConfig]]:
    """Part of the model in host memory: the experts of as few layers as it takes, else whole layers."""
    shape, budget = requested.shape, requested.budget
    if budget is None or budget.memory != "discrete" or not shape.layer_weights_bytes or requested.verdict != "too_big":
        return
    count = len(shape.layers)

    def card_holds(config: MemoryConfig) -> bool:
        """Whether the card holds its part."""
        need = footprint(shape, config, memory=budget.memory, extras=requested.extras).need_bytes
        return need <= budget.size_bytes

    # the more layers stay in host memory, the less the card holds: bisection finds the fewest that suffice
    steps = range(1, count + 1)
    if experts_too and any(shape.expert_weights_bytes):
        layers = 1 + bisect_left(steps, True, key=lambda n: card_holds(replace(requested.config, cpu_moe_layers=n)))
        if layers <= count:
            words = f"experts of {layers} of {count} layers on the processor: slower"
            yield "offload", words, {"cpu_moe": layers}, replace(requested.config, cpu_moe_layers=layers)
            return
    if layers_too:
        kept = 1 + bisect_left(
            steps, True, key=lambda n: card_holds(replace(requested.config, gpu_layers=count + 1 - n))
        )
        if kept <= count:
            words = f"{kept} of {count} layers on the processor: much slower"
            layers = count + 1 - kept
            yield "offload", words, {"gpu_layers": layers}, replace(requested.config, gpu_layers=layers)
