"""The memory side of a plan: how a variant is served, what the machine has for it, and what helps. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cclocal.backends import BACKENDS
from cclocal.errors import UsageError
from cclocal.facts import Engine, Facts, Gpu, Machine
from cclocal.memory.fit import MARGIN_BYTES, MLX_MARGIN_BYTES, Budget, Fit, fit
from cclocal.memory.footprint import DEFAULT_UBATCH_TOKENS, DRAFT_TOKENS, KV_TYPES, MemoryConfig
from cclocal.memory.remedies import Remedy, remedies
from cclocal.memory.shape import Shape
from cclocal.models.catalog import Variant
from cclocal.settings import MTP, SPECULATIONS, SUBAGENT_SLOTS, Settings
from cclocal.units import GIB, MIB, memory_size

#: The share of its memory that macOS lets the GPU wire, from so many GiB of RAM on: macOS 15 and older, 26 and newer.
#: Source: public reports of recommendedMaxWorkingSetSize for 8 to 128 GB. A size that is not reported has the share of
#: the next smaller one, which is the more careful guess (8 and 96 GB with macOS 26 among them).
_SHARES_TO_15 = ((0, 2 / 3), (36, 0.75))
_SHARES_FROM_26 = ((0, 2 / 3), (16, 0.74), (32, 0.78), (64, 0.81), (128, 0.84))
#: What a Mac keeps at least beside its GPU's memory: with less, machines have frozen (mlx#3186, mlx-lm#883).
_KEPT_BYTES, _KEPT_SHARE = 6 * GIB, 0.125
#: What many guides leave to the system; used only when asked for.
_KEPT_ON_REQUEST_BYTES = 3 * GIB
#: Macs up to this size are never offered a higher limit.
_TOO_SMALL_TO_RAISE_BYTES = 16 * GIB
#: A device in llama.cpp's --list-devices: "… (24564 MiB, 23000 MiB free)".
_DEVICE = re.compile(r"\((\d+) MiB, (\d+) MiB free\)\s*$")
#: The vendor of a device, by a word in its name.
_VENDORS = {"CUDA": "nvidia", "NVIDIA": "nvidia", "GeForce": "nvidia", "ROCm": "amd", "AMD": "amd", "Radeon": "amd"}


#: Two workers of one machine are asked within a second: what they report as free differs by less.
_SAME_MACHINE_BYTES = 64 * MIB


def adjusted(variant: Variant, settings: Settings) -> Variant:
    """The variant with the user's settings. Raises UsageError for a KV cache type that does not exist."""
    if settings.kv is not None and settings.kv not in KV_TYPES:
        raise UsageError(
            f"There is no KV cache type “{settings.kv}”.{settings.origin('kv')}", hint=f"--kv {' | '.join(KV_TYPES)}"
        )
    if settings.speculate is not None and settings.speculate not in SPECULATIONS:
        words = f"There is no kind of speculation “{settings.speculate}”.{settings.origin('speculate')}"
        raise UsageError(words, hint=f"--speculate {' | '.join(SPECULATIONS)}")
    if settings.parser and "parser" not in BACKENDS[variant.backend].ASKED_BY:
        others = " or ".join(name for name, backend in BACKENDS.items() if "parser" in backend.ASKED_BY)
        raise UsageError(f"--parser is for {others}; {variant.backend} uses the model's own template.")
    variant = variant if settings.vision else replace(variant, mmproj=None)
    # without slots of their own subagents would cost the conversation what is cached of it
    needs_slots = settings.subagents and BACKENDS[variant.backend].SLOTS
    changes: dict[str, Any] = {
        "kv_type": settings.kv,
        "speculate": settings.speculate,
        "slots": settings.slots or (SUBAGENT_SLOTS if needs_slots else None),
        "ubatch_tokens": settings.ubatch,
        "cache_ram_mib": settings.cache_ram_mib,
        "gpu_layers": settings.gpu_layers,
        "cpu_moe_layers": settings.cpu_moe,
        "tool_parser": settings.parser,
        "picture_tokens": settings.picture_tokens,
    }
    return replace(variant, **{name: value for name, value in changes.items() if value is not None})


def fit_on(
    shape: Shape,
    variant: Variant,
    context_tokens: int,
    engine: Engine | None,
    facts: Facts,
    limit_mib: int | None = None,
) -> Fit:
    """What serving a variant needs on this machine, against what there is; `limit_mib`: with the wired limit raised.

    The need includes a vision model's projector, and the correction that earlier starts of this engine showed.
    """
    projector = facts.projectors.get(variant.mmproj or "")
    config = MemoryConfig(
        context_tokens,
        kv_type=variant.kv_type,
        slots=variant.slots,
        ubatch_tokens=variant.ubatch_tokens or DEFAULT_UBATCH_TOKENS,
        prefill_step_tokens=(variant.ubatch_tokens if variant.is_folder else None) or 2048,
        cache_ram_bytes=variant.cache_ram_mib * MIB,
        gpu_layers=variant.gpu_layers,
        cpu_moe_layers=variant.cpu_moe_layers,
        projector=projector.capped(variant.picture_tokens) if projector else None,
        draft_tokens=DRAFT_TOKENS if variant.speculate == MTP else 0,
        devices=max(1, len(engine.devices)) if engine and engine.workers else 1,
    )
    if engine:
        correction = facts.corrections.get(correction_key(engine, shape, config), 0)
        config = replace(config, correction_bytes=correction)
    budget = budget_of(engine, facts.machine, shape, limit_mib)
    return fit(shape, config, budget, memory="discrete" if engine and engine.devices else "host")


def what_helps(
    requested: Fit, engine: Engine | None, facts: Facts, model_id: str, least_tokens: int
) -> tuple[Remedy, ...]:
    """The remedies that this engine and machine allow. least_tokens: the smallest window the agent can work in."""
    flags = engine.flags if engine else frozenset()
    return remedies(
        requested,
        least_context_tokens=least_tokens,
        can_quantise_kv="--cache-type-k" in flags,
        can_offload="--n-gpu-layers" in flags,
        can_offload_experts="--n-cpu-moe" in flags,
        safe_limit_mib=safe_limit_mib(facts.machine),
        smaller=_smaller_model(requested, facts, model_id) if requested.verdict == "too_big" else (),
    )


def correction_key(engine: Engine, shape: Shape, config: MemoryConfig) -> str:
    """What compute buffers depend on beside the context: engine, devices, the model's dimensions, micro-batch."""
    devices = ",".join(engine.device_names) or "cpu"
    attention = "" if config.flash_attention else " without flash attention"
    attention += " with MTP" if config.draft_tokens else ""
    widest = max((layer.key_elements for layer in shape.layers), default=0)
    dimensions = (
        f"{shape.architecture} {len(shape.layers)}x{shape.query_heads}x{widest}, {shape.weights_bytes >> 20} MiB"
    )
    return f"{engine.form} {engine.version} | {devices} | {dimensions} | {config.ubatch_tokens}{attention}"


def _smaller_model(requested: Fit, facts: Facts, model_id: str) -> list[Remedy]:
    """The largest other model of the catalog that fits as it is served, if it is smaller than this one."""
    config = replace(requested.config, correction_bytes=0)
    for other in sorted(facts.alternatives, key=lambda one: -one.shape.weights_bytes):
        if other.id == model_id or other.shape.weights_bytes >= requested.shape.weights_bytes:
            continue
        served = replace(config, context_tokens=other.context_tokens, projector=other.projector)
        result = fit(other.shape, served, requested.budget)
        if result.fits:
            changes = {"model": other.id, "ctx": other.context_tokens, "wired_limit": None}
            return [Remedy("smaller", f"{other.name} instead (--{other.id})", changes, result)]
    return []


def budget_of(
    engine: Engine | None, machine: Machine, shape: Shape, wired_limit_mib: int | None = None
) -> Budget | None:
    """What this machine has for a model on this engine; None if that is unknown.

    wired_limit_mib: on a Mac, the limit that `wired_limit` found to be higher than the one there is.
    """
    margin = MLX_MARGIN_BYTES if shape.form == "mlx" else MARGIN_BYTES
    everything = engine is not None and engine.uses == "everything"
    if machine.os == "macos" and (shape.form == "mlx" or everything or (engine and engine.devices)):
        budget = apple_budget(machine, engine, margin)
        return budget.raised(wired_limit_mib) if wired_limit_mib else budget
    known = [gpu for gpu in machine.gpus if everything and gpu.total_bytes]
    if cards := _cards(engine, machine) if engine and engine.devices else known:
        return card_budget(cards, machine.available_bytes)
    if not machine.available_bytes:
        return None
    size = max(0, machine.available_bytes - margin)
    return Budget(size, f"{machine.memory_words}, less {memory_size(margin)}")


def apple_budget(machine: Machine, engine: Engine | None = None, margin_bytes: int = MARGIN_BYTES) -> Budget:
    """The budget of a Mac's GPU: its limit, and no more than is free now.

    The limit is, in this order: what Metal reported to an engine or to MLX, the limit that was set, the system's own
    share by memory size and version.
    """
    listed = [(device_memory(device)[0], device.split(":")[0]) for device in (engine.devices if engine else ())]
    reported_bytes, reported_by = next((row for row in listed if row[0]), (machine.mlx_limit_bytes, "MLX"))
    if reported_bytes:
        limit, source = reported_bytes, f"Metal says the GPU ({reported_by}) may wire {memory_size(reported_bytes)}"
    elif machine.wired_limit_mib:
        limit, source = machine.wired_limit_mib * MIB, f"iogpu.wired_limit_mb = {machine.wired_limit_mib}"
    else:
        ram_gib, version = machine.ram_bytes / GIB, machine.os_version
        shares = _SHARES_FROM_26 if int(version.split(".")[0] or 0) >= 26 else _SHARES_TO_15
        share = max(share for size_gib, share in shares if size_gib <= ram_gib + 0.5)
        limit = int(machine.ram_bytes * share)
        source = f"macOS {version} wires {share:.0%} of {ram_gib:.0f} GiB for the GPU"
        source += f", less {memory_size(margin_bytes)} to spare" if margin_bytes else ""
    unlimited = Budget(0, "", "unified", margin_bytes=margin_bytes, available_bytes=machine.available_bytes)
    # a limit beyond all memory means nothing
    return unlimited.limited(min(limit, machine.ram_bytes), source)


def card_budget(cards: Sequence[Gpu], available_bytes: int) -> Budget | None:
    """The budget of graphics cards together, or of a processor's graphics; None if no card reported its memory.

    llama.cpp spreads a model's layers over all cards.
    """
    shared = [card for card in cards if card.unified]
    cards = [card for card in cards if card.total_bytes and not card.unified]
    if shared and not cards:
        most = max(card.total_bytes for card in shared) or available_bytes
        names = " and ".join(card.name for card in shared)
        free = available_bytes < most
        source = f"{names} shares this machine's memory, of which " + (
            f"{memory_size(available_bytes)} are free now" if free else f"{memory_size(most)} are for graphics"
        )
        size = max(0, min(most, available_bytes) - MARGIN_BYTES)
        return Budget(size, source, "unified", available_bytes=available_bytes)
    if not cards:
        return None
    size = sum(max(0, min(card.total_bytes - MARGIN_BYTES, card.free_bytes)) for card in cards)
    free = any(card.free_bytes < card.total_bytes - MARGIN_BYTES for card in cards)
    names = " and ".join(f"{memory_size(card.total_bytes)} of {card.name}" for card in cards)
    source = names + (
        f", of which {memory_size(sum(card.free_bytes for card in cards))} are free now"
        if free
        else ", less 1.0 GiB each"
    )
    host = max(0, available_bytes - MARGIN_BYTES)
    return Budget(size, source, "discrete", host_bytes=host)


def _cards(engine: Engine, machine: Machine) -> list[Gpu]:
    """The cards that this engine uses: their size as it lists them, what is free as their drivers say."""
    left = list(machine.gpus)
    cards: list[Gpu] = []
    for device in engine.devices:
        name = device.split(" (")[0].partition(": ")[2]
        total, free = device_memory(device)
        vendor = next((whose for word, whose in _VENDORS.items() if word in device), None)
        named = [gpu for gpu in left if gpu.name == name]
        mine = named or [gpu for gpu in left if gpu.vendor == vendor]
        if not mine and name in [card.name for card in cards]:
            # the same card again, through another of the engine's backends
            continue
        # several without a name are distinguished by their size
        gpu = min(mine, key=lambda one: abs(one.total_bytes - total), default=None)
        if gpu:
            left.remove(gpu)
            total = total or gpu.total_bytes
            free = min(total, gpu.free_bytes) if gpu.free_bytes else free
        if name in engine.workers and any(_is_same_machine(card, total, free) for card in cards):
            total = free = 0
        cards.append(Gpu(vendor or "", name, total, free, bool(gpu and gpu.unified)))
    return cards


def _is_same_machine(card: Gpu, total_bytes: int, free_bytes: int) -> bool:
    """Whether a worker's memory is that of another one: each reports its whole machine's."""
    return card.total_bytes == total_bytes and abs(card.free_bytes - free_bytes) < _SAME_MACHINE_BYTES


def device_memory(device: str) -> tuple[int, int]:
    """(total, free) bytes of a device as llama.cpp lists it; (0, 0) if it does not say."""
    found = _DEVICE.search(device)
    return (int(found[1]) * MIB, int(found[2]) * MIB) if found else (0, 0)


def safe_limit_mib(machine: Machine) -> int:
    """The highest wired limit that is offered: RAM − max(6 GiB, 12.5 %); 0 where none can be raised."""
    if machine.os != "macos" or machine.wired_limit_mib is None:
        return 0
    if machine.ram_bytes <= _TOO_SMALL_TO_RAISE_BYTES + GIB // 2:
        return 0
    return int(machine.ram_bytes - max(_KEPT_BYTES, machine.ram_bytes * _KEPT_SHARE)) // MIB


def wired_limit(settings: Settings, machine: Machine, engine: Engine) -> tuple[int | None, str | None]:
    """(the wired limit to raise to, or None; a note if it is not raised). Raises UsageError for an impossible one."""
    asked = settings.wired_limit
    if asked is None:
        return None, None
    if machine.os != "macos":
        raise UsageError("--wired-limit only applies to Macs.")
    if machine.wired_limit_mib is None:
        raise UsageError("This macOS has no iogpu.wired_limit_mb to raise.")
    if not safe_limit_mib(machine):
        raise UsageError("With 16 GB or less the wired limit is not raised: macOS needs the rest for itself.")
    most = (machine.ram_bytes - _KEPT_ON_REQUEST_BYTES) // MIB
    if asked > most:
        raise UsageError(f"--wired-limit {asked} is too much: {most} MiB at most, so that 3 GB are left for macOS.")
    now = apple_budget(machine, engine).limit_mib or 0
    if asked <= now:
        return None, f"The wired limit is {now:,} MiB already, so it is not raised."
    return asked, None


def limit_words(requested: Fit, machine: Machine) -> str | None:
    """Why raising the wired limit is not among the remedies, on a Mac; None elsewhere."""
    budget = requested.budget
    if machine.os != "macos" or budget is None or budget.limit_mib is None:
        return None
    now, safe = budget.limit_mib, safe_limit_mib(machine)
    if not safe:
        return "the wired limit is not raised on this Mac: macOS needs the rest"
    if now * MIB - budget.margin_bytes >= requested.footprint.need_bytes or now >= safe:
        return f"the wired limit: already high enough ({now:,} MiB)"
    return f"the wired limit: not even {safe:,} MiB would be enough (now {now:,})"
