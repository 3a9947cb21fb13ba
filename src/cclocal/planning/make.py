"""From a model, settings and facts to a plan. Pure, so it is called again when more is known or a setting changed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace

from cclocal.agents import Agent
from cclocal.backends import BACKENDS, Backend
from cclocal.backends.request import ServeRequest
from cclocal.checks import results
from cclocal.command import Binding
from cclocal.errors import UsageError
from cclocal.facts import Engine, Facts
from cclocal.memory.fit import Fit
from cclocal.memory.footprint import CELLS
from cclocal.memory.shape import Shape
from cclocal.models.catalog import Model, Variant
from cclocal.planning.choose import agent_session, choose_agent, choose_engine, choose_variant, model_path
from cclocal.planning.memory import adjusted, fit_on, limit_words, memory_config, what_helps, wired_limit
from cclocal.planning.plan import Fetch, Plan, slot_tokens
from cclocal.settings import Settings


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
    shrunk = _as_requested(model, settings.changed(shrink.changes, "memory plan"), facts)
    note = _shrink_note(plan, shrunk)
    return replace(shrunk, requested=plan.fit, remedies=plan.remedies, notes=(note, *shrunk.notes))


def _shrink_note(requested: Plan, shrunk: Plan) -> str:
    """What was changed so that the model fits."""
    assert requested.fit
    assert shrunk.fit
    now, then = shrunk.fit.config, requested.fit.config
    parts = []
    if shrunk.context_tokens != requested.context_tokens:
        parts.append(f"the context is {shrunk.context_tokens:,} tokens instead of {requested.context_tokens:,}")
    parts += [f"one slot instead of {then.slots}"] if now.slots != then.slots else []
    if now.prefill_step_tokens != then.prefill_step_tokens:
        parts.append(f"the prefill step {now.prefill_step_tokens}")
    elif now.ubatch_tokens != then.ubatch_tokens:
        parts.append(f"the micro-batch {now.ubatch_tokens}")
    parts += [f"the KV cache {now.kv_type}"] if now.kv_type != then.kv_type else []
    return f"To fit, {', '.join(parts or ['prompts of idle slots are not kept'])}."


def _as_requested(model: Model, settings: Settings, facts: Facts) -> Plan:
    agent = choose_agent(settings)
    sources = dict(settings.sources)
    variant, reason = choose_variant(model, settings, facts)
    sources |= {"backend": reason} if reason else {}
    variant = adjusted(variant, settings)
    can_think = "enable_thinking" in variant.template_kwargs or variant.reasoning_budget_tokens == 0
    if settings.think and can_think:
        variant = _thinking(variant)
    backend = BACKENDS[variant.backend]
    engine = choose_engine(backend, agent.WIRE, model, variant, facts)
    path = model_path(variant, facts)
    shape = facts.shapes.get(path)
    context = _context(model, variant, settings, sources, shape)
    slot = slot_tokens(context, variant.slots)
    out = _out_tokens(model, settings, agent, slot, sources, variant.slots)
    limit, limit_note = wired_limit(settings, facts.machine, engine)
    fit = fit_on(shape, memory_config(variant, context), variant, engine, facts, limit) if shape else None
    folders = facts.env.folders
    session = replace(agent_session(settings, facts, slot, out), log_reader=backend.LOG_READER)
    request = ServeRequest(
        model=model,
        variant=variant,
        model_file=path,
        mmproj_file=_projector_path(variant, facts),
        context_tokens=context,
        own_store=str(folders.data / "ollama"),
        lease_folder=str(folders.state / "ollama"),
    )
    is_cached = _caches_prompts(settings, variant, backend, engine)
    # in a daemon that runs already the model has a name of its own, which is in the prompt
    name = backend.endpoint(engine, request, _NOWHERE).model
    capture = agent.capture(session, name) if is_cached else None
    saves = capture is not None and backend.prompt_caching(engine) == "save"
    if saves:
        request = replace(request, prompt_folder=str(folders.saved_prompts))
    kinds = {layer.kind for layer in shape.layers} if shape else set()
    is_proven = facts.proofs.get(results.key(model, variant, engine, agent.NAME, lean=session.lean))
    return Plan(
        model=model,
        variant=variant,
        engine=engine,
        agent=agent.NAME,
        settings=settings,
        fetch=_fetch(variant, facts),
        context_tokens=context,
        out_tokens=out,
        port=_port(model, settings, sources, engine),
        request=request,
        session=session,
        fit=fit,
        remedies=what_helps(fit, engine, facts, model.id, agent.window(slot, out).least_tokens) if fit else (),
        wired_limit_mib=limit,
        limit_words=limit_words(fit, facts.machine) if fit else None,
        notes=(
            *_notes(model, variant, settings, facts, fit, bool(is_proven), limit_note, can_think),
            *backend.notes(engine, facts),
            *agent.notes(session),
        ),
        sources=sources,
        is_proven=is_proven,
        capture=capture,
        cache_key=_cache_key(variant, engine) if capture else "",
        # llama.cpp cannot continue from a restored sliding window, and saves nothing beside a projector
        can_save_prompt=saves and "sliding" not in kinds and not variant.mmproj,
        word=(settings.model or model.id) if model.untested else model.id,
    )


#: For names that depend on no value of a session.
_NOWHERE = Binding("0", "", "", "", "")


def _notes(
    model: Model,
    variant: Variant,
    settings: Settings,
    facts: Facts,
    fit: Fit | None,
    is_proven: bool,
    limit_note: str | None,
    can_think: bool,
) -> Iterator[str]:
    """What the user should know of a plan before it is carried out."""
    if facts.agent is None and not settings.server:
        agent = choose_agent(settings)
        yield f"{facts.agent_problem or f'{agent.PROGRAM} was not found on PATH.'} To install it: {agent.INSTALL}"
    if model.warning:
        yield model.warning
    if model.untested and not is_proven:
        yield _untested_note(model, variant, settings)
    if fit and fit.verdict == "too_big":
        yield f"{model.name} does not fit in memory: it {fit.in_words}."
    if limit_note:
        yield limit_note
    if settings.think and not can_think:
        yield f"Thinking cannot be switched on for {model.name}."


def _untested_note(model: Model, variant: Variant, settings: Settings) -> str:
    """For a model that was never seen to call a tool."""
    words = shlex.join((settings.model or model.name, *(("--backend", settings.backend) if settings.backend else ())))
    note = f"{model.name} is not in the catalog: its tool use is untested (cclocal check {words})."
    if variant.is_folder and not variant.tool_parser:
        note += " cclocal does not know its tool call format; --parser NAME sets it."
    return note


def _caches_prompts(settings: Settings, variant: Variant, backend: Backend, engine: Engine) -> bool:
    """Whether the fixed part of the prompt is read ahead: for one conversation, with tools, in this process."""
    is_asked = not (settings.cold or settings.server or settings.no_tools) and variant.slots == 1
    return is_asked and bool(backend.prompt_caching(engine))


def _cache_key(variant: Variant, engine: Engine) -> str:
    """What a saved prompt depends on beside the agent and the model's file."""
    model = [dict(variant.template_kwargs), variant.reasoning_budget_tokens, variant.override_kv, variant.mmproj]
    about = json.dumps([*model, variant.extra_args])
    return f"{engine.form} {engine.version} {','.join(engine.device_names)} {variant.kv_type} {about}"


def _thinking(variant: Variant) -> Variant:
    """The variant with thinking on: the template's switch, no budget of zero, and the card's sampling for it."""
    kwargs = {name: True if name == "enable_thinking" else value for name, value in variant.template_kwargs.items()}
    sampling = variant.think_sampling or variant.sampling
    return replace(variant, template_kwargs=kwargs, reasoning_budget_tokens=None, sampling=sampling)


def _context(model: Model, variant: Variant, settings: Settings, sources: dict[str, str], shape: Shape | None) -> int:
    # the file knows what it was trained for, unless the catalog limits it further
    native = min(model.native_context_tokens, (shape and shape.native_context_tokens) or model.native_context_tokens)
    if settings.ctx is None:
        sources["ctx"] = "catalog"
        return min(variant.context_tokens or model.context_tokens, native) // CELLS * CELLS
    if settings.ctx > native:
        raise UsageError(
            f"{model.name} supports {native:,} tokens; {settings.ctx:,} is more than that.{settings.origin('ctx')}"
        )
    return settings.ctx // CELLS * CELLS


def _out_tokens(model: Model, settings: Settings, agent: Agent, slot: int, sources: dict[str, str], slots: int) -> int:
    if settings.out_tokens is None:
        sources["out_tokens"] = "catalog"
    out = settings.out_tokens or model.out_tokens
    least = agent.window(slot, out).least_tokens
    if slot < least:
        context = settings.ctx if settings.ctx and slots == 1 else slot
        raise UsageError(
            f"A context of {context:,} tokens{f', one slot of {slots},' if slots > 1 else ''} is too small for replies "
            f"of {out:,}: the agent needs {least:,} at least.{settings.origin('ctx')}{settings.origin('out_tokens')}",
            hint="a larger --ctx or a smaller --out-tokens",
        )
    return out


def _port(model: Model, settings: Settings, sources: dict[str, str], engine: Engine) -> int | None:
    """The port asked for, the catalog's for --server, else any free one; none for a server that runs already."""
    if engine.url and settings.port is not None:
        raise UsageError(f"--port is for servers that cclocal starts; {engine.url} runs already.")
    if engine.url or settings.port is not None:
        return settings.port
    sources["port"] = "catalog" if settings.server else "default"
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
    if variant.repo and not variant.files:
        return Fetch(variant.repo, (), variant.size_bytes, quant="" if variant.is_folder else variant.quant)
    if variant.repo and any((variant.repo, file) not in facts.cached for file in variant.hub_files):
        return Fetch(variant.repo, variant.hub_files, variant.size_bytes)
    return Fetch(None)
