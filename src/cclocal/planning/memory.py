"""The memory side of a plan: how a variant is served, what the machine has for it, and what helps. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cclocal.backends import BACKENDS
from cclocal.errors import UsageError
from cclocal.facts import Engine, Facts, Machine
from cclocal.memory.budget import (
    MARGIN_BYTES,
    MLX_MARGIN_BYTES,
    Budget,
    Card,
    apple_budget,
    card_budget,
    device_memory,
    highest_limit_mib,
    host_budget,
    safe_limit_mib,
)
from cclocal.memory.fit import Fit
from cclocal.memory.fit import fit as fit_memory
from cclocal.memory.footprint import KV_TYPES, Extras, Memory, MemoryConfig
from cclocal.memory.remedies import Remedy, Smaller, remedies
from cclocal.memory.shape import Shape
from cclocal.models.catalog import Variant
from cclocal.settings import Settings
from cclocal.units import MIB


def adjusted(variant: Variant, settings: Settings) -> Variant:
    """The variant with the user's settings. Raises UsageError for a KV cache type that does not exist."""
    if settings.kv is not None and settings.kv not in KV_TYPES:
        raise UsageError(
            f"There is no KV cache type “{settings.kv}”.{settings.origin('kv')}", hint=f"--kv {' | '.join(KV_TYPES)}"
        )
    if settings.parser and "parser" not in BACKENDS[variant.backend].ASKED_BY:
        others = " or ".join(name for name, backend in BACKENDS.items() if "parser" in backend.ASKED_BY)
        raise UsageError(f"--parser is for {others}; {variant.backend} uses the model's own template.")
    changes: dict[str, Any] = {
        "kv_type": settings.kv,
        "slots": settings.slots,
        "ubatch_tokens": settings.ubatch,
        "cache_ram_mib": settings.cache_ram_mib,
        "gpu_layers": settings.gpu_layers,
        "cpu_moe_layers": settings.cpu_moe,
        "tool_parser": settings.parser,
    }
    return replace(variant, **{name: value for name, value in changes.items() if value is not None})


def wired_limit(settings: Settings, machine: Machine, engine: Engine) -> tuple[int | None, str | None]:
    """(the wired limit to raise to, or None; a note if it is not raised). Raises UsageError for an impossible one."""
    asked = settings.wired_limit
    if asked is None:
        return None, None
    if machine.os != "macos":
        raise UsageError("--wired-limit only applies to Macs.")
    most = highest_limit_mib(machine.ram_bytes) if safe_limit_mib(machine.ram_bytes) else 0
    if not most:
        raise UsageError("With 16 GB or less the wired limit is not raised: macOS needs the rest for itself.")
    if machine.wired_limit_mib is None:
        raise UsageError("This macOS has no iogpu.wired_limit_mb to raise.")
    if asked > most:
        raise UsageError(f"--wired-limit {asked} is too much: {most} MiB at most, so that 3 GB are left for macOS.")
    now = _apple(engine, machine, MARGIN_BYTES).limit_mib or 0
    if asked <= now:
        return None, f"The wired limit is {now:,} MiB already, so it is not raised."
    return asked, None


def memory_config(variant: Variant, context_tokens: int) -> MemoryConfig:
    """How a variant is served, as far as memory is concerned."""
    return MemoryConfig(
        context_tokens,
        kv_type=variant.kv_type,
        slots=variant.slots,
        ubatch_tokens=variant.ubatch_tokens or 512,
        prefill_step_tokens=(variant.ubatch_tokens if variant.is_folder else None) or 2048,
        cache_ram_bytes=variant.cache_ram_mib * MIB,
        gpu_layers=variant.gpu_layers,
        cpu_moe_layers=variant.cpu_moe_layers,
    )


def fit_on(
    shape: Shape,
    config: MemoryConfig,
    variant: Variant,
    engine: Engine | None,
    facts: Facts,
    limit_mib: int | None = None,
) -> Fit:
    """What serving a variant needs on this machine, against what there is; `limit_mib`: with the wired limit raised."""
    kind: Memory = "discrete" if engine and engine.devices else "host"
    budget = budget_of(engine, facts.machine, shape, limit_mib)
    return fit_memory(shape, config, budget, memory=kind, extras=_extras(variant, engine, shape, config, facts))


def what_helps(
    requested: Fit, engine: Engine | None, facts: Facts, model_id: str, least_tokens: int
) -> tuple[Remedy, ...]:
    """The remedies that this engine and machine allow. least_tokens: the smallest window the agent can work in."""
    machine = facts.machine

    def can(flag: str) -> bool:
        return bool(engine and engine.has(flag))

    return remedies(
        requested,
        least_context_tokens=least_tokens,
        can_quantise_kv=can("--cache-type-k"),
        can_offload=can("--n-gpu-layers"),
        can_offload_experts=can("--n-cpu-moe"),
        safe_limit_mib=_safe_limit(machine),
        smaller=_smaller_models(requested, facts, model_id) if requested.verdict == "too_big" else (),
    )


def _extras(variant: Variant, engine: Engine | None, shape: Shape, config: MemoryConfig, facts: Facts) -> Extras:
    """What is needed beside the model: its projector, and the correction that earlier starts of this engine showed."""
    projector = facts.projector_bytes.get(variant.mmproj or "", 0)
    correction = facts.corrections.get(correction_key(engine, shape, config), 0) if engine else 0
    return Extras(projector, correction)


def correction_key(engine: Engine, shape: Shape, config: MemoryConfig) -> str:
    """What compute buffers depend on beside the context: engine, devices, the model's dimensions, micro-batch."""
    devices = ",".join(engine.device_names) or "cpu"
    attention = "" if config.flash_attention else " without flash attention"
    widest = max((layer.key_elements for layer in shape.layers), default=0)
    dimensions = (
        f"{shape.architecture} {len(shape.layers)}x{shape.query_heads}x{widest}, {shape.weights_bytes >> 20} MiB"
    )
    return f"{engine.form} {engine.version} | {devices} | {dimensions} | {config.ubatch_tokens}{attention}"


def budget_of(
    engine: Engine | None, machine: Machine, shape: Shape, wired_limit_mib: int | None = None
) -> Budget | None:
    """What this machine has for a model on this engine; None if that is unknown."""
    margin = MLX_MARGIN_BYTES if shape.form == "mlx" else MARGIN_BYTES
    everything = engine is not None and engine.uses == "everything"
    if machine.os == "macos" and (shape.form == "mlx" or everything or (engine and engine.devices)):
        budget = _apple(engine, machine, margin)
        # never lowered: a higher limit stays
        higher = wired_limit_mib and wired_limit_mib > (budget.limit_mib or 0)
        return budget.raised(wired_limit_mib) if wired_limit_mib and higher else budget
    if engine and engine.devices:
        return card_budget(_cards(engine, machine), machine.available_bytes)
    known = [Card(gpu.name, gpu.total_bytes, gpu.free_bytes, gpu.unified) for gpu in machine.gpus if gpu.total_bytes]
    if everything and known:
        return card_budget(known, machine.available_bytes)
    if not machine.available_bytes:
        return None
    return host_budget(machine.available_bytes, margin, machine.memory_words)


def _apple(engine: Engine | None, machine: Machine, margin_bytes: int) -> Budget:
    listed = [(device_memory(device)[0], device.split(":")[0]) for device in (engine.devices if engine else ())]
    reported_bytes, reported_by = next((row for row in listed if row[0]), (machine.mlx_limit_bytes, "MLX"))
    return apple_budget(
        machine.ram_bytes,
        machine.os_version,
        machine.wired_limit_mib or 0,
        reported_bytes=reported_bytes,
        reported_by=f"Metal says the GPU ({reported_by})",
        available_bytes=machine.available_bytes,
        margin_bytes=margin_bytes,
    )


#: The vendor of a device, by a word in its name.
_VENDORS = {"CUDA": "nvidia", "NVIDIA": "nvidia", "GeForce": "nvidia", "ROCm": "amd", "AMD": "amd", "Radeon": "amd"}


def _cards(engine: Engine, machine: Machine) -> list[Card]:
    """The cards that this engine uses: their size as it lists them, what is free as their drivers say."""
    left = list(machine.gpus)
    cards: list[Card] = []
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
        cards.append(Card(name, total, free, bool(gpu and gpu.unified)))
    return cards


def _safe_limit(machine: Machine) -> int:
    return safe_limit_mib(machine.ram_bytes) if machine.os == "macos" and machine.wired_limit_mib is not None else 0


def limit_words(requested: Fit, machine: Machine) -> str | None:
    """Why raising the wired limit is not among the remedies, on a Mac; None elsewhere."""
    budget = requested.budget
    if machine.os != "macos" or budget is None or budget.limit_mib is None:
        return None
    now, safe = budget.limit_mib, _safe_limit(machine)
    if not safe:
        return "the wired limit is not raised on this Mac: macOS needs the rest"
    if now * MIB - budget.margin_bytes >= requested.footprint.need_bytes or now >= safe:
        return f"the wired limit: already high enough ({now:,} MiB)"
    return f"the wired limit: not even {safe:,} MiB would be enough (now {now:,})"


def _smaller_models(requested: Fit, facts: Facts, model_id: str) -> list[Smaller]:
    """The largest other model of the catalog that fits as it is served, if it is smaller than this one."""
    found = []
    for other in facts.alternatives:
        if other.id == model_id or other.shape.weights_bytes >= requested.shape.weights_bytes:
            continue
        config = replace(requested.config, context_tokens=other.context_tokens)
        result = fit_memory(other.shape, config, requested.budget)
        if result.verdict in ("roomy", "tight"):
            words = f"{other.name} instead (--{other.id})"
            changes = {"model": other.id, "ctx": other.context_tokens, "wired_limit": None}
            found.append(Smaller(words, changes, result))
    return sorted(found, key=lambda one: -one.fit.shape.weights_bytes)[:1]
