"""What can be done about a model that does not fit, or hardly: cheapest first, each with the context it would give."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cclocal.memory.budget import Budget
from cclocal.memory.fit import Fit, fit
from cclocal.memory.footprint import CELLS, Serving, footprint

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
    """One thing to do. `changes` are the settings it changes; the plan is made anew with them.

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
    wanted: Fit,
    *,
    least_context_tokens: int,
    can_quantise_kv: bool = True,
    can_offload: bool = True,
    can_offload_experts: bool = True,
    safe_limit_mib: int = 0,
    smaller: Sequence[Smaller] = (),
) -> tuple[Remedy, ...]:
    """Every remedy that helps `wanted`, the recommended shrink first; empty if nothing is known of the machine.

    `least_context_tokens` is what one conversation must have at least.

    Where there is room enough the shrink is to keep what there is, and no other is needed.
    """
    if wanted.budget is None:
        return ()
    # never one that needs more: the same context in one slot has larger buffers than in several
    most = wanted.footprint.need_bytes

    def worth_it(remedy: Remedy) -> bool:
        return remedy.helps and remedy.fit.footprint.need_bytes <= most

    found = [one for one in _shrinks(wanted, least_context_tokens, can_quantise_kv=can_quantise_kv) if worth_it(one)]
    if wanted.verdict == "roomy":
        return tuple(found)
    shrunk = found[0].fit.serving.context_tokens if found else 0
    found += _raises(wanted, least_context_tokens, safe_limit_mib, shrunk)
    others = list(_others(wanted, can_quantise_kv=can_quantise_kv))
    others += _offloads(wanted, layers_too=can_offload, experts_too=can_offload_experts)
    for name, words, changes, serving in others:
        result = _served(wanted, serving, wanted.budget)
        if result.serving.context_tokens >= _least(least_context_tokens, serving) and _gains(wanted, result):
            kept = {"ctx": result.serving.context_tokens} if result.serving.context_tokens != _tokens(wanted) else {}
            found.append(Remedy(name, words, {**changes, **kept}, result))
    found += [
        Remedy("smaller", one.words, one.changes, one.fit)
        for one in smaller
        if (one.fit.max_context_tokens or 0) > (wanted.max_context_tokens or 0)
    ]
    return tuple(remedy for remedy in found if worth_it(remedy))


def _least(least_tokens: int, serving: Serving) -> int:
    """What a server must have at least: each of its slots rounds down to whole cells."""
    return -(-least_tokens // CELLS) * CELLS * serving.slots


def _tokens(wanted: Fit) -> int:
    return wanted.serving.context_tokens


def _gains(wanted: Fit, result: Fit) -> bool:
    """A remedy that gives neither more context nor more room is none."""
    return (result.max_context_tokens or 0) > (wanted.max_context_tokens or 0)


def _served(wanted: Fit, serving: Serving, budget: Budget) -> Fit:
    """The fit with the wanted context, or the largest there is."""
    tried = fit(wanted.shape, serving, budget, extras=wanted.extras)
    most = min(tried.max_context_tokens or 0, serving.context_tokens)
    return replace_context(tried, most) if most != serving.context_tokens else tried


def replace_context(result: Fit, context_tokens: int) -> Fit:
    """The same with another context."""
    return fit(
        result.shape, replace(result.serving, context_tokens=context_tokens), result.budget, extras=result.extras
    )


def _shrinks(wanted: Fit, least_tokens: int, *, can_quantise_kv: bool) -> Iterator[Remedy]:
    """The recommended one: less context, and only if that leaves too little for an agent more than that."""
    serving, words = wanted.serving, []
    changes: dict[str, Any] = {}
    steps: list[tuple[str, dict[str, Any], Serving]] = [("", {}, serving)]
    if serving.slots > 1 or serving.cache_ram_bytes:
        serving = replace(serving, slots=1, cache_ram_bytes=0)
        steps.append(("one slot", {"slots": 1, "cache_ram_mib": 0}, serving))
    if wanted.shape.form == "gguf" and serving.ubatch_tokens > SMALL_UBATCH_TOKENS:
        serving = replace(serving, ubatch_tokens=SMALL_UBATCH_TOKENS)
        steps.append((f"micro-batch {SMALL_UBATCH_TOKENS}", {"ubatch": SMALL_UBATCH_TOKENS}, serving))
    if wanted.shape.form == "mlx" and serving.prefill_step_tokens > SMALL_UBATCH_TOKENS:
        serving = replace(serving, prefill_step_tokens=SMALL_UBATCH_TOKENS)
        steps.append((f"prefill step {SMALL_UBATCH_TOKENS}", {"ubatch": SMALL_UBATCH_TOKENS}, serving))
    if _may_quantise(wanted, can_quantise_kv=can_quantise_kv):
        serving = replace(serving, kv_type="q8_0")
        steps.append(("q8_0 KV cache", {"kv": "q8_0"}, serving))
    assert wanted.budget is not None
    for label, change, tried in steps:
        changes |= change
        words += [label] if label else []
        result = _served(wanted, tried, wanted.budget)
        tokens = result.serving.context_tokens
        if tokens >= _least(least_tokens, tried) or (tokens == _tokens(wanted) and tried == wanted.serving):
            same = tokens == _tokens(wanted)
            context = f"context {tokens:,}" if not same else f"keep the context of {tokens:,}"
            yield Remedy("shrink", ", ".join((context, *words)), {**changes, "ctx": tokens}, result)
            return


def _may_quantise(wanted: Fit, *, can_quantise_kv: bool) -> bool:
    return (
        can_quantise_kv
        and wanted.shape.form == "gguf"
        and wanted.serving.kv_type in ("f16", "bf16")
        and wanted.serving.flash_attention
    )


def _raises(wanted: Fit, least_tokens: int, safe_limit_mib: int, shrunk_tokens: int) -> Iterator[Remedy]:
    """A higher wired limit for the session: only as far as the plan needs, never above the safe maximum."""
    budget = wanted.budget
    if budget is None or budget.limit_mib is None or not safe_limit_mib:
        return
    needed = -(-(wanted.footprint.need_bytes + budget.margin_bytes) // 2**20)
    limit = min(-(-needed // _LIMIT_STEP_MIB) * _LIMIT_STEP_MIB, safe_limit_mib)
    if limit <= budget.limit_mib:
        return
    result = _served(wanted, wanted.serving, budget.raised(limit))
    least_tokens = _least(least_tokens, wanted.serving)
    if result.serving.context_tokens < least_tokens or not _gains(wanted, result):
        return
    words = f"raise the wired limit from {budget.limit_mib:,} to {limit:,} MiB for this session (sudo)"
    changes: dict[str, Any] = {"wired_limit_mib": limit}
    reached = result.serving.context_tokens
    if reached == _tokens(wanted):
        yield Remedy("raise", words, changes, result)
        # both: more room than either alone
        reached = min(reached, shrunk_tokens) if shrunk_tokens >= least_tokens else reached
        result = replace_context(result, reached)
    yield Remedy("both", f"{words}, and context {reached:,}", {**changes, "ctx": reached}, result)


def _others(wanted: Fit, *, can_quantise_kv: bool) -> Iterator[tuple[str, str, dict[str, Any], Serving]]:
    serving = wanted.serving
    if serving.slots > 1 or serving.cache_ram_bytes:
        yield (
            "slots",
            "one slot, and no memory for idle prompts",
            {"slots": 1, "cache_ram_mib": 0},
            replace(serving, slots=1, cache_ram_bytes=0),
        )
    if wanted.shape.form == "mlx" and serving.prefill_step_tokens > SMALL_UBATCH_TOKENS:
        words = f"prefill step {SMALL_UBATCH_TOKENS}: reads prompts a little slower"
        small = {"ubatch": SMALL_UBATCH_TOKENS}
        yield "ubatch", words, small, replace(serving, prefill_step_tokens=SMALL_UBATCH_TOKENS)
    elif serving.ubatch_tokens > SMALL_UBATCH_TOKENS:
        words = f"micro-batch {SMALL_UBATCH_TOKENS}: reads prompts a little slower"
        small = {"ubatch": SMALL_UBATCH_TOKENS}
        yield "ubatch", words, small, replace(serving, ubatch_tokens=SMALL_UBATCH_TOKENS)
    if _may_quantise(wanted, can_quantise_kv=can_quantise_kv):
        yield "kv", "q8_0 KV cache: half the size, nearly as exact", {"kv": "q8_0"}, replace(serving, kv_type="q8_0")


def _offloads(
    wanted: Fit, *, layers_too: bool, experts_too: bool
) -> Iterator[tuple[str, str, dict[str, Any], Serving]]:
    """Part of the model in host memory: the experts of as few layers as it takes, else whole layers."""
    shape, budget = wanted.shape, wanted.budget
    if budget is None or budget.memory != "discrete" or not shape.layer_weights_bytes or wanted.verdict != "too_big":
        return
    count = len(shape.layers)

    def at_ease(serving: Serving) -> bool:
        """Whether the card holds its part."""
        need = footprint(shape, serving, memory=budget.memory, extras=wanted.extras).need_bytes
        return need <= budget.size_bytes

    # the more stays in host memory, the less the card must hold: halving finds the least that has to
    steps = range(1, count + 1)
    if experts_too and any(shape.expert_weights_bytes):
        layers = 1 + bisect_left(steps, True, key=lambda n: at_ease(replace(wanted.serving, cpu_moe_layers=n)))
        if layers <= count:
            words = f"experts of {layers} of {count} layers on the processor: slower"
            yield "offload", words, {"cpu_moe": layers}, replace(wanted.serving, cpu_moe_layers=layers)
            return
    if layers_too:
        kept = 1 + bisect_left(steps, True, key=lambda n: at_ease(replace(wanted.serving, gpu_layers=count + 1 - n)))
        if kept <= count:
            words = f"{kept} of {count} layers on the processor: much slower"
            layers = count + 1 - kept
            yield "offload", words, {"gpu_layers": layers}, replace(wanted.serving, gpu_layers=layers)
