"""`cclocal plan`: what a model needs and how much context fits, here or on another machine. Starts nothing."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import replace

from cclocal.backends import BACKENDS, in_order
from cclocal.discovery.look import look, look_at_model
from cclocal.errors import CclocalError, UsageError
from cclocal.facts import Engine, Facts, Gpu, Machine
from cclocal.memory.fit import Fit
from cclocal.memory.footprint import CELLS
from cclocal.memory.gguf import BadHeaderError
from cclocal.models.catalog import Catalog, Model, Variant
from cclocal.models.repo_files import ask_hub, peek, refuse_unnamed
from cclocal.models.resolve import resolve
from cclocal.paths import Env
from cclocal.planning.choose import choose_agent, choose_engine, choose_variant, model_path
from cclocal.planning.cluster import machines_of, splits
from cclocal.planning.memory import adjusted, fit_on, what_helps, wired_limit
from cclocal.planning.pictures import with_limit
from cclocal.settings import Settings
from cclocal.ui.cluster_view import ClusterPlan
from cclocal.ui.console import busy
from cclocal.ui.memory_view import FitRow
from cclocal.units import GIB, memory_size

#: Memory that a system takes for itself on a machine that is not this one.
_SYSTEM_BYTES = 2 * GIB


def plan_one(catalog: Catalog, word: str, settings: Settings, facts: Facts) -> FitRow:
    """One model in full. Raises UsageError or HubError if its headers cannot be read."""
    env = facts.env
    model = resolve(catalog, word, settings.backend, env)
    variant = choose_variant(model, settings, facts)[0]
    name, seen = model.name, look_at_model(facts, model, variant)
    source = _source(variant, seen)
    if model_path(variant, seen) not in seen.shapes:
        if variant.path:
            raise UsageError(
                f"The header of {model.name} is of a kind that is not known here: nothing can be computed.",
                hint=f"cclocal --model {word}, where the engine itself reads it",
            )
        if not model.untested:
            raise UsageError(
                f"{model.name} is not on disk, and its dimensions are not published: nothing can be computed.",
                hint="cclocal plan owner/repository:QUANT reads a header on the hub",
            )
        with busy(f"{model.name}: looking at its headers"):
            if variant.repo and not variant.files:
                ask_hub(variant.repo, env)
                model = resolve(catalog, word, settings.backend, env)
                variant = model.variants[0]
                if not variant.files:
                    refuse_unnamed(variant, env)
            try:
                header = peek(variant, env)
            except BadHeaderError as error:
                raise UsageError(f"{model.name} cannot be used: {error}.") from None
        seen = facts.with_shape(model_path(variant, facts), header.shape)
        source = header.source
        name = word if variant.tag or variant.is_folder else f"{variant.repo}, {variant.files[0]}"
    fit, engine = _fit(model, variant, settings, seen)
    out_tokens = settings.out_tokens or model.out_tokens
    least = choose_agent(settings).window(fit.config.context_tokens, out_tokens, settings.prompt).least_tokens
    least = CELLS if least > (model.native_context_tokens or least) else least
    remedies = what_helps(fit, engine, seen, model.id, least) if fit.verdict != "roomy" else ()
    shown = name if model.untested else model.id
    return FitRow(shown, name, fit, source, remedies, variant, least_tokens=least)


def plan_cluster(catalog: Catalog, word: str, settings: Settings, facts: Facts, gpus: str, nodes: str) -> ClusterPlan:
    """How a model would be divided among GPUs that are not here. Raises what `plan_one` raises, and for wrong GPUs."""
    machines = machines_of(gpus, nodes)
    row = plan_one(catalog, word, settings, facts)
    assert row.fit
    assert row.variant
    shape, variant = row.fit.shape, row.variant
    # MLX packs its quantised weights in a way of its own
    is_vllms = variant.is_folder and "mlx" not in (variant.repo or "").lower() and not variant.builtin
    window = row.fit.config.context_tokens
    return ClusterPlan(
        row.name,
        row.source,
        variant.quant,
        variant.source if is_vllms else "",
        variant.tool_parser or "",
        window,
        splits(shape, machines, window),
    )


def plan_catalog(catalog: Catalog, settings: Settings, facts: Facts) -> Sequence[FitRow]:
    """Every model of the catalog: those on disk by their headers, the others by their published dimensions."""
    rows = []
    for model in catalog.models.values():
        variant, fit, source = None, None, ""
        # a file that is gone or damaged, or a backend without this model, must not hide the other models
        with contextlib.suppress(CclocalError):
            one = resolve(catalog, model.id, settings.backend, facts.env)
            variant = choose_variant(one, settings, facts)[0]
            seen = look_at_model(facts, one, variant)
            if model_path(variant, seen) in seen.shapes:
                fit, source = _fit(one, variant, settings, seen)[0], _source(variant, seen)
        rows.append(FitRow(model.id, model.name, fit, source, variant=variant))
    return rows


def look_at_machine(
    catalog: Catalog, settings: Settings, env: Env, ram_gib: int | None = None, macos: str | None = None
) -> Facts:
    """The facts of this machine, or of one with so much memory, or of a Mac of that version."""
    # an engine that does not run is not needed to plan, nor an agent
    facts = look(env, replace(settings, server=True), catalog, engines_must_run=False)
    if not ram_gib and not macos:
        return facts
    machine = _machine(ram_gib, macos, facts.machine)
    devices = ("MTL0: Apple GPU",) if machine.os == "macos" else ()
    name = next(name for name in in_order(facts.machine) if "gguf" in BACKENDS[name].FORMS)
    engine = Engine("binary", (name,), "any", frozenset({"--cache-type-k"}), devices)
    return replace(facts, machine=machine, engines={name: (engine,)}, corrections={}, read_per_s={})


def _machine(ram_gib: int | None, macos: str | None, here: Machine) -> Machine:
    """A machine that is not this one: what is free on it is unknown."""
    ram_bytes = (ram_gib or 0) * GIB or here.ram_bytes
    if macos or here.os == "macos":
        version = macos or here.os_version
        if not re.fullmatch(r"\d{1,3}(\.\d+)*", version, re.ASCII):
            raise UsageError(f"“{version}” is not a macOS version.", hint="--macos 26")
        return Machine("macos", version, "arm64", ram_bytes, (Gpu("apple", "Apple GPU", unified=True),))
    free = max(1, ram_bytes - _SYSTEM_BYTES)
    words = f"{memory_size(ram_bytes)} with {memory_size(_SYSTEM_BYTES)} for the system"
    return Machine("linux", "", here.arch, ram_bytes, (), available_bytes=free, memory_words=words)


def _source(variant: Variant, facts: Facts) -> str:
    if variant.tag:
        return "Ollama's own copy"
    if variant.path or variant.builtin or any(repo == variant.repo for repo, _ in facts.cached):
        return "the file's own header"
    return "the model's published dimensions, until its header is seen"


def _fit(model: Model, variant: Variant, settings: Settings, facts: Facts) -> tuple[Fit, Engine | None]:
    """(the fit, the engine that a launch would use, or else the first: a plan needs none that is able to serve it)."""
    shape = facts.shapes[model_path(variant, facts)]
    native = shape.native_context_tokens
    if settings.ctx and native and settings.ctx > native:
        raise UsageError(f"{model.name} supports {native:,} tokens; {settings.ctx:,} is more than that.")
    variant = adjusted(variant, settings)
    served = min(model.served_context_tokens, native or model.served_context_tokens)
    engine = next(iter(facts.engines.get(variant.backend, ())), None)
    with contextlib.suppress(CclocalError):
        engine = choose_engine(BACKENDS[variant.backend], choose_agent(settings).WIRE, model, variant, facts)
    limit = wired_limit(settings, facts.machine, engine)[0] if engine else None
    variant = with_limit(model, variant, engine, facts)[0] if engine else variant
    return fit_on(shape, variant, settings.ctx or served, engine, facts, limit), engine
