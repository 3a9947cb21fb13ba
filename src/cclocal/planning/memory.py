"""The memory side of a plan: how a variant is served, what the machine has for it, and what else there is. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

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
from cclocal.memory.footprint import KV_TYPES, Extras, Memory, Serving
from cclocal.memory.remedies import Remedy, Smaller, remedies
from cclocal.memory.shape import Shape
from cclocal.models.catalog import Variant
from cclocal.settings import Settings


def adjusted(variant: Variant, settings: Settings) -> Variant:
    """The variant with what the user wants otherwise. Raises UsageError for a KV cache type there is not."""
    if settings.kv is not None and settings.kv not in KV_TYPES:
        raise UsageError(
            f"There is no KV cache type “{settings.kv}”.{settings.origin('kv')}", hint=f"--kv {' | '.join(KV_TYPES)}"
        )
    if settings.parser and not variant.is_folder:
        raise UsageError(f"--parser is for vllm-mlx; {variant.backend} goes by the model's own template.")
    wishes: dict[str, Any] = {
        "kv_type": settings.kv,
        "slots": settings.slots,
        "ubatch_tokens": settings.ubatch,
        "cache_ram_mib": settings.cache_ram_mib,
        "gpu_layers": settings.gpu_layers,
        "cpu_moe_layers": settings.cpu_moe,
        "tool_parser": settings.parser,
    }
    return replace(variant, **{name: wish for name, wish in wishes.items() if wish is not None})


def wired_limit(settings: Settings, machine: Machine, engine: Engine) -> tuple[int | None, str | None]:
    """(the wired limit to raise to, or None; what to say if it is not). Raises UsageError for an impossible one."""
    wished = settings.wired_limit_mib
    if wished is None:
        return None, None
    if machine.os != "macos":
        raise UsageError("--wired-limit is for Macs: here the GPU has its own memory, or all of it.")
    most = highest_limit_mib(machine.ram_bytes) if safe_limit_mib(machine.ram_bytes) else 0
    if not most:
        raise UsageError("With 16 GB or less the wired limit is not raised: macOS needs the rest for itself.")
    if machine.wired_limit_mib is None:
        raise UsageError("This macOS has no iogpu.wired_limit_mb to raise.")
    if wished > most:
        raise UsageError(f"--wired-limit {wished} is too much: {most} MiB at most, so that 3 GB are left for macOS.")
    now = _apple(engine, machine, MARGIN_BYTES).limit_mib or 0
    if wished <= now:
        return None, f"The wired limit is {now:,} MiB already, so it is not raised."
    return wished, None


def memory_serving(variant: Variant, context_tokens: int) -> Serving:
    """How a variant is served, as far as memory goes."""
    return Serving(
        context_tokens,
        kv_type=variant.kv_type,
        slots=variant.slots,
        ubatch_tokens=variant.ubatch_tokens or 512,
        prefill_step_tokens=(variant.ubatch_tokens if variant.is_folder else None) or 2048,
        cache_ram_bytes=variant.cache_ram_mib * 2**20,
        gpu_layers=variant.gpu_layers,
        cpu_moe_layers=variant.cpu_moe_layers,
    )


def fit_on(
    shape: Shape, serving: Serving, variant: Variant, engine: Engine | None, facts: Facts, limit_mib: int | None = None
) -> Fit:
    """What serving a variant needs on this machine, against what there is; `limit_mib`: with the wired limit raised."""
    kind: Memory = "discrete" if engine and engine.devices else "host"
    budget = budget_of(engine, facts.machine, shape, limit_mib)
    return fit_memory(shape, serving, budget, memory=kind, extras=_extras(variant, engine, shape, serving, facts))


def what_helps(wanted: Fit, engine: Engine | None, facts: Facts, least_context_tokens: int) -> tuple[Remedy, ...]:
    """The remedies that this engine and machine allow."""
    machine = facts.machine

    def can(flag: str) -> bool:
        return bool(engine and engine.has(flag))

    return remedies(
        wanted,
        least_context_tokens=least_context_tokens,
        can_quantise_kv=can("--cache-type-k"),
        can_offload=can("--n-gpu-layers"),
        can_offload_experts=can("--n-cpu-moe"),
        safe_limit_mib=_safe_limit(machine),
        smaller=_smaller_models(wanted, facts) if wanted.verdict == "too_big" else (),
    )


def _extras(variant: Variant, engine: Engine | None, shape: Shape, serving: Serving, facts: Facts) -> Extras:
    """What is needed beside the model: its projector, and what earlier starts of this engine taught us."""
    projector = facts.projector_bytes.get(variant.mmproj or "", 0)
    learned = facts.corrections.get(correction_key(engine, shape, serving), 0) if engine else 0
    return Extras(projector, learned)


def correction_key(engine: Engine, shape: Shape, serving: Serving) -> str:
    """What the compute buffers follow beside the context: engine, device, the model's dimensions, micro-batch."""
    devices = ",".join(device.split(" (")[0] for device in engine.devices) or "cpu"
    attention = "" if serving.flash_attention else " without flash attention"
    widest = max((layer.key_elements for layer in shape.layers), default=0)
    dimensions = (
        f"{shape.architecture} {len(shape.layers)}x{shape.query_heads}x{widest}, {shape.weights_bytes >> 20} MiB"
    )
    return f"{engine.form} {engine.version} | {devices} | {dimensions} | {serving.ubatch_tokens}{attention}"


def budget_of(
    engine: Engine | None, machine: Machine, shape: Shape, wired_limit_mib: int | None = None
) -> Budget | None:
    """What this machine has for a model on this engine; None if that was not found out."""
    margin = MLX_MARGIN_BYTES if shape.form == "mlx" else MARGIN_BYTES
    # Ollama names no devices, and uses what there is
    everything = bool(engine and engine.form in ("ollama", "ollama-running"))
    if machine.os == "macos" and (shape.form == "mlx" or everything or (engine and engine.devices)):
        budget = _apple(engine, machine, margin)
        # never lowered: a limit that is high enough already is fine
        higher = wired_limit_mib and wired_limit_mib > (budget.limit_mib or 0)
        return budget.raised(wired_limit_mib) if wired_limit_mib and higher else budget
    if engine and engine.devices:
        return card_budget(_cards(engine, machine), machine.available_bytes)
    told = [Card(gpu.name, gpu.total_bytes, gpu.free_bytes, gpu.unified) for gpu in machine.gpus if gpu.total_bytes]
    if everything and told:
        return card_budget(told, machine.available_bytes)
    if not machine.available_bytes:
        return None
    return host_budget(machine.available_bytes, margin, machine.memory_words)


def _apple(engine: Engine | None, machine: Machine, margin_bytes: int) -> Budget:
    told = [(device_memory(device)[0], device.split(":")[0]) for device in (engine.devices if engine else ())]
    told_bytes, told_by = next((row for row in told if row[0]), (machine.mlx_limit_bytes, "MLX"))
    return apple_budget(
        machine.ram_bytes,
        machine.os_version,
        machine.wired_limit_mib or 0,
        told_bytes=told_bytes,
        told_by=f"Metal says the GPU ({told_by})",
        available_bytes=machine.available_bytes,
        margin_bytes=margin_bytes,
    )


#: Whose cards an engine's backend uses, or a device's name tells of.
_VENDORS = {"CUDA": "nvidia", "NVIDIA": "nvidia", "GeForce": "nvidia", "ROCm": "amd", "AMD": "amd", "Radeon": "amd"}


def _cards(engine: Engine, machine: Machine) -> list[Card]:
    """The cards that this engine uses: how much they have in its own words, how much is free in their drivers'."""
    left = list(machine.gpus)
    cards: list[Card] = []
    for device in engine.devices:
        name = device.split(" (")[0].partition(": ")[2]
        total, free = device_memory(device)
        vendor = next((whose for word, whose in _VENDORS.items() if word in device), None)
        named = [gpu for gpu in left if gpu.name == name]
        mine = named or [gpu for gpu in left if gpu.vendor == vendor]
        if not mine and name in [card.name for card in cards]:
            # the same card once more, through another of the engine's backends
            continue
        # of several without a name of their own the one of about that size
        gpu = min(mine, key=lambda one: abs(one.total_bytes - total), default=None)
        if gpu:
            left.remove(gpu)
            total = total or gpu.total_bytes
            free = min(total, gpu.free_bytes) if gpu.free_bytes else free
        cards.append(Card(name, total, free, bool(gpu and gpu.unified)))
    return cards


def _safe_limit(machine: Machine) -> int:
    return safe_limit_mib(machine.ram_bytes) if machine.os == "macos" and machine.wired_limit_mib is not None else 0


def limit_words(wanted: Fit, machine: Machine) -> str | None:
    """Why raising the wired limit is not among the remedies, on a Mac; None elsewhere."""
    budget = wanted.budget
    if machine.os != "macos" or budget is None or budget.limit_mib is None:
        return None
    now, safe = budget.limit_mib, _safe_limit(machine)
    if not safe:
        return "the wired limit is not raised on this Mac: macOS needs the rest"
    if now * 2**20 - budget.margin_bytes >= wanted.footprint.need_bytes or now >= safe:
        return f"the wired limit: already fine ({now:,} MiB)"
    return f"the wired limit: not even {safe:,} MiB would be enough (now {now:,})"


def _smaller_models(wanted: Fit, facts: Facts) -> list[Smaller]:
    """The largest model of the catalog that fits as it is served, if it is smaller than this one."""
    found = []
    for other in facts.alternatives:
        if other.shape.weights_bytes >= wanted.shape.weights_bytes:
            continue
        result = fit_memory(other.shape, replace(wanted.serving, context_tokens=other.context_tokens), wanted.budget)
        if result.verdict in ("roomy", "tight"):
            words = f"{other.name} instead (--{other.id})"
            changes = {"model": other.id, "ctx": other.context_tokens, "wired_limit_mib": None}
            found.append(Smaller(words, changes, result))
    return sorted(found, key=lambda one: -one.fit.shape.weights_bytes)[:1]
