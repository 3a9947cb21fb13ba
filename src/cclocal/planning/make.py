"""From a model, settings and facts to a plan. Pure, so it is called again when more is known or a setting changed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace

from cclocal.agents import Agent
from cclocal.backends import BACKENDS, Backend
from cclocal.backends.request import ServeRequest
from cclocal.checks import results, tuning
from cclocal.command import SHOWN
from cclocal.errors import UsageError
from cclocal.facts import Engine, Facts
from cclocal.memory.footprint import CELLS, MemoryConfig
from cclocal.memory.shape import Shape
from cclocal.models.catalog import Model, Variant
from cclocal.planning import pictures, pool, speculation
from cclocal.planning.choose import (
    agent_session,
    choose_agent,
    choose_engine,
    choose_variant,
    for_agent,
    model_path,
    thinking,
)
from cclocal.planning.memory import adjusted, fit_on, limit_words, what_helps, wired_limit
from cclocal.planning.plan import Fetch, Plan, take_turns
from cclocal.settings import LEAST_OUT_TOKENS, Prompt, Settings
from cclocal.units import memory_size

#: Who changed a setting: so that the model fits, and because its projector could not be fetched.
MEMORY_PLAN, DOWNLOAD = "memory plan", "download"


def make_plan(model: Model, settings: Settings, facts: Facts) -> Plan:
    """Decide everything about one launch; a model that does not fit as requested is planned with the cheapest remedy.

    Raises UsageError, BackendMissingError (30) or BackendTooOldError (31) before anything has happened. Whether the
    agent is there is for `check_agent`: a plan can be shown without it.
    """
    plan = _as_requested(model, settings, facts)
    if not settings.mem_check or plan.fit is None or plan.fit.verdict != "too_big":
        return plan
    shrink = next((remedy for remedy in plan.remedies if remedy.name == "shrink"), None)
    if shrink is None:
        return plan
    shrunk = _as_requested(model, settings.changed(shrink.changes, MEMORY_PLAN), facts)
    note = _shrink_note(plan.fit.config, shrink.fit.config)
    return replace(shrunk, requested=plan.fit, remedies=plan.remedies, notes=(note, *shrunk.notes))


def _shrink_note(then: MemoryConfig, now: MemoryConfig) -> str:
    """What was changed so that the model fits."""
    parts = []
    if now.context_tokens != then.context_tokens:
        parts.append(f"the context is {now.context_tokens:,} tokens instead of {then.context_tokens:,}")
    if now.slots != then.slots:
        parts.append(f"one slot instead of {then.slots}")
    if then.projector and not now.projector:
        parts.append("no pictures")
    if now.prefill_step_tokens != then.prefill_step_tokens:
        parts.append(f"the prefill step {now.prefill_step_tokens}")
    elif now.ubatch_tokens != then.ubatch_tokens:
        parts.append(f"the micro-batch {now.ubatch_tokens}")
    if now.kv_type != then.kv_type:
        parts.append(f"the KV cache {now.kv_type}")
    return f"To fit, {', '.join(parts or ['prompts of idle slots are not kept'])}."


def _as_requested(model: Model, settings: Settings, facts: Facts) -> Plan:
    agent, settings = choose_agent(settings), for_agent(settings)
    variant, reason = choose_variant(model, settings, facts)
    variant, think_note = thinking(model, adjusted(variant, settings), settings)
    backend = BACKENDS[variant.backend]
    engine = choose_engine(backend, agent.WIRE, model, variant, facts)
    path = model_path(variant, facts)
    shape = facts.shapes.get(path)
    speculations = speculation.kinds(backend, engine, variant, shape)
    tuning_key = tuning.key(model, variant, engine)
    variant, is_tuned = speculation.choose(model, variant, settings, facts.tuned.get(tuning_key), shape)
    variant, picture_note = pictures.with_limit(model, variant, engine, facts)
    context = _context(model, variant, settings, shape)
    # llama.cpp rounds the window of a slot down to whole cells
    slot = context // variant.slots // CELLS * CELLS
    out = _out_tokens(model, settings, agent, slot, variant.slots, _native(model, shape))
    least = agent.window(slot, out, settings.prompt).least_tokens
    limit, limit_note = wired_limit(settings, facts.machine, engine)
    fit = fit_on(shape, variant, context, engine, facts, limit) if shape else None
    folders = facts.env.folders
    also = _also(backend, engine, variant, context, facts, limit) if "also" in agent.HAS else ()
    session = agent_session(settings, facts, slot, out)
    session = replace(session, log_reader=backend.LOG_READER, also=also, sees=backend.sees(variant, facts))
    request = ServeRequest(
        model=model,
        variant=variant,
        model_file=path,
        mmproj_file=_projector_path(variant, facts),
        context_tokens=context,
        own_store=str(folders.data / backend.NAME),
        lease_folder=str(folders.state / backend.NAME),
        cores=0 if engine.devices else facts.machine.cores,
    )
    # the fixed part of the prompt is read ahead with tools, and in this process
    is_cached = not (settings.cold or settings.server or settings.no_tools)
    caching = backend.prompt_caching(engine) if is_cached else ""
    # in a daemon that runs already the model has a name of its own, which is in the prompt
    name = backend.endpoint(engine, request, SHOWN).model
    capture = agent.capture(session, name) if caching else None
    saves = capture is not None and caching == "save"
    if saves or (variant.slots > 1 and backend.prompt_caching(engine) == "save" and not settings.cold):
        request = replace(request, prompt_folder=str(folders.saved_prompts))
    # whether the engine can restore these kinds of memory, and beside a projector, is tried on this machine
    kinds: list[str] = sorted({layer.kind for layer in shape.layers} - {"none"}) if shape else []
    kinds += ["projector"] if variant.mmproj else []
    restores_key = " ".join((engine.form, engine.version, *engine.device_names, *kinds))
    result_key = results.key(model, variant, engine, agent.NAME, lean=session.lean)
    plan = Plan(
        model=model,
        variant=variant,
        engine=engine,
        agent=agent.NAME,
        settings=settings,
        fetch=_fetch(variant, facts),
        context_tokens=context,
        out_tokens=out,
        port=_port(model, settings, engine),
        request=request,
        session=session,
        fit=fit,
        remedies=what_helps(fit, engine, facts, model.id, least) if fit else (),
        wired_limit_mib=limit,
        limit_words=limit_words(fit, facts.machine) if fit else None,
        sources=_sources(settings, reason, engine) | ({"speculate": "measured here"} if is_tuned else {}),
        result_key=result_key,
        is_proven=facts.proofs.get(result_key),
        prompt_caching=caching,
        capture=capture,
        cache_key=_cache_key(variant, engine),
        can_save_prompt=saves and facts.restores.get(f"{restores_key} prompt", True),
        can_save_conversation=saves and facts.restores.get(f"{restores_key} conversation", True),
        knows_restores=f"{restores_key} prompt" in facts.restores,
        restores_key=restores_key,
        speculations=speculations,
        tuning_key=tuning_key,
        word=(settings.model or model.id) if model.untested else model.id,
        is_strict=path in facts.strict,
        is_toolless=path in facts.toolless,
        fewer=pool.windows(shape, variant, context, least, engine, facts) if shape and engine.workers else {},
    )
    notes = [
        *_notes(plan, agent, facts),
        limit_note,
        picture_note,
        think_note,
        *backend.notes(engine, facts),
        *pool.notes(engine),
        *agent.notes(session),
    ]
    return replace(plan, notes=tuple(note for note in notes if note))


def _also(
    backend: Backend, engine: Engine, variant: Variant, context: int, facts: Facts, limit: int | None
) -> tuple[str, ...]:
    """The other models that `/model` may choose: they fit with the window that the agent believes in."""
    if not backend.takes_turns(engine):
        return ()
    fits = []
    for tag, shape in facts.tags.items():
        found = fit_on(shape, variant, context, engine, facts, limit)
        if context <= shape.native_context_tokens and found.verdict != "too_big":
            fits.append(tag)
    return tuple(fits)


def _sources(settings: Settings, backend_reason: str | None, engine: Engine) -> dict[str, str]:
    """Where each value came from: as the settings say, or a default of the catalog's or of ours."""
    sources = dict(settings.sources)
    if backend_reason:
        sources["backend"] = backend_reason
    sources |= {name: "catalog" for name in ("ctx", "out_tokens") if getattr(settings, name) is None}
    if settings.port is None and not engine.url:
        sources["port"] = "catalog" if settings.server else "default"
    return sources


def _notes(plan: Plan, agent: Agent, facts: Facts) -> Iterator[str]:
    """What the user should know of a plan before it is carried out."""
    model, variant, settings = plan.model, plan.variant, plan.settings
    if facts.agent is None and not settings.server:
        yield f"{facts.agent_problem or f'{agent.PROGRAM} was not found on PATH.'} To install it: {agent.INSTALL}"
    if model.warning:
        yield model.warning
    is_asked = not settings.vision and settings.sources.get("vision") not in (MEMORY_PLAN, DOWNLOAD)
    unused = facts.projectors.values() if is_asked else ()
    if saved_bytes := sum(one.device_bytes for one in unused):
        yield f"{model.name} sees no pictures without its projector, which saves {memory_size(saved_bytes)}."
    if plan.session.subagents and variant.slots == 1:
        yield "Subagents have no slots of their own here: each may cost the conversation what is cached of it."
    if plan.session.also:
        yield take_turns(plan.session.also)
    if model.untested and not plan.is_proven:
        backend = ("--backend", settings.backend) if settings.backend else ()
        words = shlex.join((settings.model or model.name, *backend))
        note = f"{model.name} is not in the catalog: its tool use is untested (cclocal check {words})."
        if variant.is_folder and not variant.tool_parser:
            note += " cclocal does not know its tool call format; --parser NAME sets it."
        yield note
    if plan.fit and plan.fit.verdict == "too_big":
        yield f"{model.name} does not fit in memory: it {plan.fit.in_words}."


def _cache_key(variant: Variant, engine: Engine) -> str:
    """What a saved prompt depends on beside the agent and the model's file."""
    kwargs, budget = dict(variant.template_kwargs), variant.reasoning_budget_tokens
    about = json.dumps([kwargs, budget, variant.override_kv, variant.mmproj, variant.extra_args])
    return f"{engine.form} {engine.version} {','.join(engine.device_names)} {variant.kv_type} {about}"


def _native(model: Model, shape: Shape | None) -> int:
    """The window that a model was trained for: the file knows it, unless the catalog limits it further."""
    return min(model.native_context_tokens, (shape and shape.native_context_tokens) or model.native_context_tokens)


def _context(model: Model, variant: Variant, settings: Settings, shape: Shape | None) -> int:
    native = _native(model, shape)
    if settings.ctx is None:
        each = min(variant.context_tokens or model.context_tokens, native) // CELLS * CELLS
        # each subagent has a window of its own, as large as the conversation's
        return each * variant.slots if settings.subagents and settings.slots is None else each
    if settings.ctx > native * variant.slots:
        of_slots = f" for each of {variant.slots} slots" if variant.slots > 1 else ""
        words = f"{model.name} supports {native:,} tokens{of_slots}; {settings.ctx:,} is more than that."
        raise UsageError(words + settings.origin("ctx"))
    return settings.ctx // CELLS * CELLS


def _out_tokens(model: Model, settings: Settings, agent: Agent, slot: int, slots: int, native: int) -> int:
    out = settings.out_tokens or model.out_tokens
    least = agent.window(slot, out, settings.prompt).least_tokens
    if slot < least:
        context = settings.ctx if settings.ctx and slots == 1 else slot
        helps = ["a larger --ctx"] if least <= native else []
        helps += ["a smaller --out-tokens"] if least - out + LEAST_OUT_TOKENS <= slot else []
        helps += shorter_prompts(agent, settings, slot, out)
        raise UsageError(
            f"A context of {context:,} tokens{f', one slot of {slots},' if slots > 1 else ''} is too small for replies "
            f"of {out:,}: the agent needs {least:,} at least.{settings.origin('ctx')}{settings.origin('out_tokens')}",
            hint=" or ".join(helps) or f"another model: the window of this one ends at {native:,} tokens",
        )
    return out


def shorter_prompts(agent: Agent, settings: Settings, context_tokens: int, out_tokens: int) -> list[str]:
    """The settings that make the prompt so short that the agent can work in a window."""
    flags: dict[Prompt, str] = {"lean": "--lean", "chat": "--no-tools"}
    now = agent.window(context_tokens, out_tokens, settings.prompt).least_tokens
    least = {flag: agent.window(context_tokens, out_tokens, kind).least_tokens for kind, flag in flags.items()}
    return [flag for flag, tokens in least.items() if tokens <= context_tokens and tokens < now]


def _port(model: Model, settings: Settings, engine: Engine) -> int | None:
    """The port asked for, the catalog's for --server, else any free one; none for a server that runs already."""
    if engine.url and settings.port is not None:
        raise UsageError(f"--port is for servers that cclocal starts; {engine.url} runs already.")
    if engine.url or settings.port is not None:
        return settings.port
    return model.port if settings.server else None


def _projector_path(variant: Variant, facts: Facts) -> str | None:
    if variant.path or not variant.mmproj:
        return variant.mmproj
    path = facts.cached.get((variant.repo or "", variant.mmproj))
    return str(path) if path else f"<{variant.mmproj}>"


def _fetch(variant: Variant, facts: Facts) -> Fetch:
    if variant.builtin:
        is_built = ("", variant.builtin) in facts.cached
        return Fetch(None, builtin=None if is_built else variant.builtin)
    if variant.tag:
        return Fetch(None, tag=variant.tag)
    name, projector = variant.mmproj, facts.projectors.get(variant.mmproj or "")
    more_bytes = projector.weights_bytes if projector else 0
    size_bytes = variant.size_bytes and variant.size_bytes + more_bytes
    if variant.repo and not variant.files:
        quant = "" if variant.is_folder else variant.quant
        return Fetch(variant.repo, (), size_bytes, quant=quant, projector="too" if name else "")
    missing = [file for file in variant.hub_files if variant.repo and (variant.repo, file) not in facts.cached]
    if name and missing == [name]:
        return Fetch(variant.repo, (name,), more_bytes or None, projector="alone")
    return Fetch(variant.repo, variant.hub_files, size_bytes) if missing else Fetch(None)
