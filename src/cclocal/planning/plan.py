"""One frozen plan: what will be fetched, served and launched. `--dry-run` prints it, launch carries it out.

`make_plan` is pure: no clock, no network, no processes, no os.environ, no randomness.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cclocal.agents import AGENTS, Agent, Home, Rehearsal, Session
from cclocal.agents.claude.spec import least_context_tokens
from cclocal.backends import BACKENDS, Backend, Serving, in_order
from cclocal.backends.llama_server import spec as llama_server
from cclocal.backends.vllm_mlx import spec as vllm_mlx
from cclocal.command import (
    MODEL_FILE,
    MODEL_FOLDER,
    PORT,
    SESSION_ID,
    Command,
    Endpoint,
    Readiness,
    SessionFile,
    Stop,
    refusal,
)
from cclocal.errors import AgentMissingError, BackendMissingError, BackendTooOldError, UsageError
from cclocal.facts import Engine, Facts
from cclocal.memory.fit import Fit
from cclocal.memory.remedies import Remedy
from cclocal.memory.shape import Shape
from cclocal.models.catalog import CONFIG, Model, Variant
from cclocal.planning.memory import adjusted, fit_on, limit_words, memory_serving, what_helps, wired_limit
from cclocal.settings import Settings

#: llama.cpp rounds a context up to this.
CONTEXT_STEP_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Fetch:
    """What must come from the hub before the server can start. `repo` None = nothing, the model is at hand."""

    repo: str | None
    files: tuple[str, ...] = ()
    size_bytes: int | None = None
    builtin: str | None = None
    #: which file is meant as long as its name is not known; nothing for a model of many files
    quant: str = ""
    #: what Ollama is asked for
    tag: str = ""

    @property
    def in_words(self) -> str:
        if self.builtin:
            return "built on the spot, nothing to download"
        if self.tag:
            return f"{self.tag}, pulled by Ollama unless it has it"
        if not self.repo:
            return "nothing to download"
        size = f", {self.size_bytes / 1e9:.1f} GB" if self.size_bytes else ""
        if CONFIG in self.files:
            names = f"{len(self.files)} files"
        elif self.files:
            names = ", ".join(self.files)
        elif self.quant:
            names = "its usual file" if self.quant == "any" else f"the {self.quant} file"
        else:
            names = "the model"
        return f"{names} from {self.repo}{size}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a launch will do. `server` and `session` still hold placeholders until `bind`."""

    model: Model
    variant: Variant
    backend: str
    engine: Engine
    fetch: Fetch
    context_tokens: int
    out_tokens: int
    port: int | None
    server: Command
    readiness: Readiness
    stop: Stop
    agent: str
    session: Command
    home: Home
    files: tuple[SessionFile, ...]
    fit: Fit | None
    #: what can be done about memory, and what was wished for before the plan helped itself to the first of them
    remedies: tuple[Remedy, ...] = ()
    wanted: Fit | None = None
    #: on a Mac: the wired limit to raise to for this session
    wired_limit_mib: int | None = None
    #: why raising it is not offered
    limit_words: str | None = None
    notes: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    #: whether a model that does not fit is asked about
    mem_check: bool = True
    #: what the newest check of this model on this engine said; None = there was none
    proven: bool | None = None
    #: whether one that failed it is started without asking
    yes: bool = False
    #: whether the agent has tools
    tools: bool = True
    lean: bool = False
    #: whether the agent takes over the terminal
    draws: bool = True
    #: where the model is, or what stands for it
    model_file: str = ""
    #: how the fixed part of the prompt is found out, if it is kept; what that state holds for beside the agent; whether
    #: a state can be saved and restored
    rehearsal: Rehearsal | None = None
    warm_key: str = ""
    warm_saves: bool = True
    #: the model in the user's own words
    asked: str = ""
    #: the variables handed on by name
    passed: tuple[str, ...] = ()

    @property
    def window_tokens(self) -> int:
        """The window of one conversation: slots share the server's context."""
        return self.context_tokens // self.variant.slots // CONTEXT_STEP_TOKENS * CONTEXT_STEP_TOKENS

    @property
    def memory(self) -> str:
        """The memory plan in one line."""
        if self.fit:
            return self.fit.in_words
        return "not known yet: a start reads the model's header before it downloads the rest"

    def bind(self, values: Mapping[str, str]) -> Plan:
        """The same plan with the session's port, key, folder and model file filled in."""
        from cclocal.command import bind

        endpoint = self.readiness.endpoint
        return replace(
            self,
            model_file=bind(self.model_file, values),
            server=self.server.bind(values),
            session=self.session.bind(values),
            readiness=replace(
                self.readiness,
                endpoint=Endpoint(bind(endpoint.url, values), bind(endpoint.key, values), endpoint.model),
            ),
            files=tuple(SessionFile(f.name, bind(f.content, values)) for f in self.files),
        )

    def as_json(self, environ: Mapping[str, str]) -> dict[str, Any]:
        """The plan for scripts. Values of the caller's own variables are left out, their names are not."""
        return {
            "model": {"id": self.model.id, "name": self.model.name, "variant": self.variant.quant},
            "backend": {"name": self.backend, "form": self.engine.form, "version": self.engine.version},
            "fetch": {
                "repo": self.fetch.repo,
                "files": list(self.fetch.files),
                "size_bytes": self.fetch.size_bytes,
                "builtin": self.fetch.builtin,
                "tag": self.fetch.tag or None,
            },
            "context_tokens": self.context_tokens,
            "out_tokens": self.out_tokens,
            "memory": self.fit.as_json() if self.fit else None,
            "wired_limit_mib": self.wired_limit_mib,
            "remedies": [
                {
                    "name": remedy.name,
                    "words": remedy.words,
                    "context_tokens": remedy.fit.serving.context_tokens,
                    "max_context_tokens": remedy.max_context_tokens,
                }
                for remedy in self.remedies
                if self.wanted or (self.fit and self.fit.verdict != "roomy")
            ],
            "server": {"argv": list(self.server.argv), "env": dict(self.server.env)},
            "agent": {
                "name": self.agent,
                "argv": list(self.session.argv),
                "env": dict(self.session.env),
                "kept": sorted(self.session.kept(environ)),
                "removed": list(self.session.removed(environ)),
            },
            "files": {f.path: f.content for f in self.files},
            "notes": list(self.notes),
            "sources": dict(self.sources),
        }


def make_plan(model: Model, settings: Settings, facts: Facts) -> Plan:
    """Decide everything about one launch; a model that does not fit as wished is planned with the cheapest remedy.

    Raises UsageError, BackendMissingError (30), BackendTooOldError (31) or AgentMissingError (35) before
    anything has happened.
    """
    plan = _as_wished(model, settings, facts)
    if not settings.mem_check or plan.fit is None or plan.fit.verdict != "too_big":
        return plan
    shrink = next((remedy for remedy in plan.remedies if remedy.name == "shrink"), None)
    if shrink is None:
        return plan
    helped = _as_wished(model, settings.changed(shrink.changes, "memory plan"), facts)
    said = _said_of_shrink(plan, helped)
    return replace(helped, wanted=plan.fit, remedies=plan.remedies, notes=(said, *helped.notes))


def _said_of_shrink(wished: Plan, helped: Plan) -> str:
    """What was changed so that it fits."""
    assert wished.fit
    assert helped.fit
    now, then = helped.fit.serving, wished.fit.serving
    parts = []
    if helped.context_tokens != wished.context_tokens:
        parts.append(f"the context is {helped.context_tokens:,} tokens instead of {wished.context_tokens:,}")
    parts += [f"one slot instead of {then.slots}"] if now.slots != then.slots else []
    if now.prefill_step_tokens != then.prefill_step_tokens:
        parts.append(f"the prefill step {now.prefill_step_tokens}")
    elif now.ubatch_tokens != then.ubatch_tokens:
        parts.append(f"the micro-batch {now.ubatch_tokens}")
    parts += [f"the KV cache {now.kv_type}"] if now.kv_type != then.kv_type else []
    parts = parts or ["nothing is kept of idle prompts"]
    return f"To fit, {', '.join(parts)}."


def _as_wished(model: Model, settings: Settings, facts: Facts) -> Plan:
    agent = AGENTS["claude"]
    if not settings.server_only:
        check_agent(agent, facts)
    sources = dict(settings.sources)
    lean = bool(settings.lean)
    variant, why = choose_variant(model, settings, facts)
    sources |= {"backend": why} if why else {}
    variant = adjusted(variant, settings)
    can_think = _has_a_switch(variant)
    if settings.think and can_think:
        variant = _thinking(variant)
    backend = BACKENDS[variant.backend]
    engine = _engine(backend, model, variant, facts)

    model_file = model_path(variant, facts.cached)
    shape = facts.shapes.get(model_file)
    context = _context(model, variant, settings, sources, shape)
    # slots share the server's context, and an agent has one of them
    window = context // variant.slots // CONTEXT_STEP_TOKENS * CONTEXT_STEP_TOKENS
    out = _out(model, settings, window, sources, variant.slots)
    limit, not_raised = wired_limit(settings, facts.machine, engine)
    fit = fit_on(shape, memory_serving(variant, context), variant, engine, facts, limit) if shape else None
    found = what_helps(fit, engine, facts, least_context_tokens(out)) if fit else ()
    port = _port(model, settings, sources, engine)
    for variable in settings.pass_env:
        if why := refusal(variable):
            raise UsageError(f"--pass-env: {why}.{settings.origin('pass_env')}")

    proven = facts.proofs.get(proof_key(model, variant, variant.backend, engine, lean=lean))
    endpoint = backend.endpoint(engine, model, variant, context, port, str(facts.folders.borrowed))
    session = Session(
        endpoint,
        window,
        out,
        tuple(settings.pass_env),
        tuple(settings.agent_args),
        not settings.no_tools,
        lean,
        log=str(facts.folders.log_of(SESSION_ID)),
    )
    rehearsal = agent.rehearsal(facts, session) if _keeps_prompts(settings, variant, engine) else None
    serving = Serving(
        model=model,
        variant=variant,
        model_file=model_file,
        mmproj_file=variant.mmproj if variant.path or not variant.mmproj else _on_disk(variant, variant.mmproj, facts),
        context_tokens=context,
        endpoint=endpoint,
        port=str(port or PORT),
        own_store=str(facts.folders.data / "ollama"),
        records=str(facts.folders.borrowed),
        warm=str(facts.folders.warm) if rehearsal and engine.has(llama_server.SLOT_SAVE_PATH) else "",
    )
    server, server_files = backend.command(engine, serving)
    command, session_files = agent.command(facts, session)
    kinds = {layer.kind for layer in shape.layers} if shape else set()
    return Plan(
        model=model,
        variant=variant,
        backend=variant.backend,
        engine=engine,
        fetch=_fetch(variant, facts),
        context_tokens=context,
        out_tokens=out,
        port=port,
        server=server,
        readiness=backend.readiness(engine, serving),
        stop=backend.STOP,
        agent=agent.NAME,
        session=command,
        home=agent.home(facts),
        files=(*server_files, *session_files),
        fit=fit,
        remedies=found,
        wired_limit_mib=limit,
        limit_words=limit_words(fit, facts.machine) if fit else None,
        notes=(
            *((model.warning,) if model.warning else ()),
            *((_untested(model, variant, settings),) if model.untested and not proven else ()),
            *((f"It will hardly fit: {model.name} {fit.in_words}.",) if fit and fit.verdict == "too_big" else ()),
            *((not_raised,) if not_raised else ()),
            *((f"{model.name} has no switch for thinking.",) if settings.think and not can_think else ()),
            *backend.notes(engine, facts),
            *agent.notes(facts, session),
        ),
        sources=sources,
        mem_check=settings.mem_check,
        proven=proven,
        yes=settings.yes,
        tools=not settings.no_tools,
        lean=lean,
        model_file=model_file,
        rehearsal=rehearsal,
        warm_key=_warm_key(variant, engine),
        # llama.cpp cannot go on from a restored sliding window, and saves nothing beside a projector
        warm_saves=bool(serving.warm) and "sliding" not in kinds and not variant.mmproj,
        asked=_in_own_words(model, settings),
        draws=agent.draws(settings.agent_args),
        passed=settings.pass_env,
    )


def _untested(model: Model, variant: Variant, settings: Settings) -> str:
    """What is to be said of a model that nobody has seen call a tool."""
    words = shlex.join((settings.model or model.name, *(("--backend", settings.backend) if settings.backend else ())))
    said = f"{model.name} is not in the catalog: its tool use is untested (cclocal check {words})."
    if variant.is_folder and not variant.tool_parser:
        said += " Its template shows no tool calls that are known here; --parser NAME says how it writes them."
    return said


def _keeps_prompts(settings: Settings, variant: Variant, engine: Engine) -> bool:
    """Whether the fixed part of the prompt is read ahead: for one conversation, with its tools, in this process."""
    wanted = not (settings.cold or settings.server_only or settings.no_tools) and variant.slots == 1
    return wanted and (variant.backend != llama_server.NAME or engine.has(llama_server.SLOT_SAVE_PATH))


def _warm_key(variant: Variant, engine: Engine) -> str:
    """What a kept prompt depends on beside the agent and the model's file."""
    model = [dict(variant.template_kwargs), variant.reasoning_budget_tokens, variant.override_kv, variant.mmproj]
    devices = ",".join(device.split(" (")[0] for device in engine.devices)
    told = json.dumps([*model, variant.extra_args])
    return f"{engine.form} {engine.version} {devices} {variant.kv_type} {told}"


def _in_own_words(model: Model, settings: Settings) -> str:
    """What `--model` must be given to mean this model."""
    return (settings.model or model.id) if model.untested else model.id


def _has_a_switch(variant: Variant) -> bool:
    return "enable_thinking" in variant.template_kwargs or variant.reasoning_budget_tokens == 0


def _thinking(variant: Variant) -> Variant:
    """The variant with thinking on: the template's switch, no budget of none, and the card's sampling for it."""
    kwargs = {name: True if name == "enable_thinking" else value for name, value in variant.template_kwargs.items()}
    sampling = variant.think_sampling or variant.sampling
    return replace(variant, template_kwargs=kwargs, reasoning_budget_tokens=None, sampling=sampling)


_LEAN = " | lean"


def proof_key(model: Model, variant: Variant, backend: str, engine: Engine, *, lean: bool) -> str:
    """What a proof holds for: another version of the engine is another thing, and so is another prompt."""
    return f"{proof_name(model, variant)} | {backend} | {engine.form} {engine.version}{_LEAN if lean else ''}"


def is_lean(key: str) -> bool:
    """Whether a proof is of a session with the short prompt."""
    return key.endswith(_LEAN)


def proof_name(model: Model, variant: Variant) -> str:
    """Which model a proof is of: by where it comes from, as other models may be called the same."""
    return f"{variant.source or model.id} {variant.quant}"


def check_agent(agent: Agent, facts: Facts) -> None:
    """Raises AgentMissingError (35) if the agent is not there or too old."""
    if facts.agent is None:
        raise AgentMissingError(f"{agent.PROGRAM} was not found on PATH.", hint=agent.INSTALL)
    if reason := agent.unusable(facts.agent.version):
        raise AgentMissingError(f"{reason}.", hint=agent.INSTALL)


def choose_variant(model: Model, settings: Settings, facts: Facts) -> tuple[Variant, str | None]:
    """(the variant that a launch here would use, why that backend if none was asked for).

    The best backend for this machine that is installed and has a variant; if none is installed, the best. Raises
    UsageError if there is no such variant.
    """
    wanted = settings.backend
    if wanted and wanted not in BACKENDS:
        raise UsageError(
            f"There is no backend “{wanted}”.{settings.origin('backend')}", hint=f"--backend {' | '.join(BACKENDS)}"
        )
    names = (wanted,) if wanted else _candidates(settings, facts)
    found = [variant for name in names if (variant := model.variant(name, settings.quant))]
    installed = [variant for variant in found if facts.engines.get(variant.backend)]
    # one that cannot do what is wished for is no candidate as long as another can
    able = [variant for variant in installed if _able(variant, settings, facts)]
    for variant in (*able, *installed, *found):
        best = variant.backend == names[0]
        why = "the first choice on this machine" if best else "the first that is installed and can serve this"
        return variant, None if wanted else why
    mine = [v for v in model.variants if wanted in (None, v.backend)]
    if settings.quant and mine:
        there = ", ".join(dict.fromkeys(v.quant for v in mine))
        raise UsageError(f"{model.name} has no {settings.quant}; it has {there}.{settings.origin('quant')}")
    others = " or ".join(dict.fromkeys(v.backend for v in model.variants))
    raise UsageError(f"{model.name} is not for {wanted}.{settings.origin('backend')}", hint=f"--backend {others}")


def _candidates(settings: Settings, facts: Facts) -> tuple[str, ...]:
    """The backends in question if none was asked for: naming one's own llama-server, or a parser, asks for one too."""
    if settings.llama_server and settings.sources.get("llama_server") == "command line":
        return (llama_server.NAME,)
    return (vllm_mlx.NAME,) if settings.parser else in_order(facts.machine)


def _able(variant: Variant, settings: Settings, facts: Facts) -> bool:
    """Whether one of the engines that are there can serve a variant as it is wished for."""
    wished = adjusted(variant, settings)
    backend = BACKENDS[variant.backend]
    return any(backend.unsupported(engine, wished) is None for engine in facts.engines.get(variant.backend, ()))


def _engine(backend: Backend, model: Model, variant: Variant, facts: Facts) -> Engine:
    """The best engine that can serve this variant."""
    refusals = []
    for engine in facts.engines.get(backend.NAME, ()):
        reason = backend.unsupported(engine, variant)
        if reason is None:
            return engine
        refusals.append(reason)
    if refusals:
        raise BackendTooOldError(f"{model.name} cannot run here: {'; '.join(refusals)}.", hint=backend.INSTALL)
    raise BackendMissingError(f"No {backend.NAME} was found on this machine.", hint=backend.INSTALL)


def _context(model: Model, variant: Variant, settings: Settings, sources: dict[str, str], shape: Shape | None) -> int:
    # the file knows best what it was made for, unless the catalog knows less is good
    native = min(model.native_context_tokens, (shape and shape.native_context_tokens) or model.native_context_tokens)
    if settings.ctx is None:
        sources["ctx"] = "catalog"
        wanted = variant.context_tokens or model.context_tokens
        return min(wanted, native) // CONTEXT_STEP_TOKENS * CONTEXT_STEP_TOKENS
    if settings.ctx > native:
        raise UsageError(
            f"{model.name} was made for {native:,} tokens; {settings.ctx:,} is beyond that.{settings.origin('ctx')}"
        )
    return settings.ctx // CONTEXT_STEP_TOKENS * CONTEXT_STEP_TOKENS


def _out(model: Model, settings: Settings, context: int, sources: dict[str, str], slots: int) -> int:
    if settings.out_tokens is None:
        sources["out_tokens"] = "catalog"
    out = settings.out_tokens or model.out_tokens
    if context < least_context_tokens(out):
        raise UsageError(
            f"A context of {settings.ctx if settings.ctx and slots == 1 else context:,} tokens"
            f"{f', one slot of {slots},' if slots > 1 else ''} is too small for replies of {out:,}: the agent needs "
            f"{least_context_tokens(out):,} at least.{settings.origin('ctx')}{settings.origin('out_tokens')}",
            hint="a larger --ctx or a smaller --out-tokens",
        )
    return out


def _port(model: Model, settings: Settings, sources: dict[str, str], engine: Engine) -> int | None:
    """A fixed port if one was asked for, the catalog's for --server, else any free one; none for a server that runs."""
    if engine.url and settings.port is not None:
        raise UsageError(f"--port is for servers that cclocal starts; {engine.url} runs already.")
    if engine.url:
        return None
    if settings.port is not None:
        return settings.port
    if settings.server_only:
        sources["port"] = "catalog"
        return model.port
    sources["port"] = "default"
    return None


def _on_disk(variant: Variant, file: str, facts: Facts) -> str:
    path = facts.cached.get((variant.repo or "", file))
    return str(path) if path else placeholder_of(file)


def _fetch(variant: Variant, facts: Facts) -> Fetch:
    if variant.builtin:
        return Fetch(None, builtin=variant.builtin)
    if variant.tag:
        return Fetch(None, tag=variant.tag)
    if variant.repo and not variant.files:
        return Fetch(variant.repo, (), variant.size_bytes, quant="" if variant.is_folder else variant.quant)
    if variant.repo and any((variant.repo, file) not in facts.cached for file in variant.hub_files):
        return Fetch(variant.repo, variant.hub_files, variant.size_bytes)
    return Fetch(None)


def placeholder_of(file: str) -> str:
    """What stands for a file of the hub as long as it is not on disk."""
    return f"<{file}>"


def model_path(variant: Variant, cached: Mapping[tuple[str, str], Path]) -> str:
    """Where the model is: a GGUF file or an MLX folder, or what stands for it as long as it is not on disk."""
    if variant.path:
        return variant.path
    if variant.tag:
        return placeholder_of(variant.tag)
    if variant.builtin:
        return MODEL_FOLDER if variant.is_folder else MODEL_FILE
    if variant.is_folder:
        there = cached.get((variant.repo or "", CONFIG))
        return str(there.parent) if there else placeholder_of(f"folder of {variant.repo}")
    if not variant.files:
        return placeholder_of(f"{variant.quant} of {variant.repo}") if variant.repo else MODEL_FILE
    there = cached.get((variant.repo or "", variant.files[0]))
    return str(there) if there else placeholder_of(variant.files[0])


def model_file_values(variant: Variant, files: Mapping[str, Path]) -> dict[str, str]:
    """What `bind` needs once the files are on disk: placeholder → path."""
    values = {placeholder_of(name): str(path) for name, path in files.items()}
    if variant.builtin:
        values[model_path(variant, {})] = str(files["tiny"])
    elif variant.is_folder and CONFIG in files:
        values[model_path(variant, {})] = str(files[CONFIG].parent)
    return values
