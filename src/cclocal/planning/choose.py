"""Which backend, variant, engine and agent a launch uses. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import replace

from cclocal.agents import AGENTS, DEFAULT, Agent
from cclocal.agents.session import AgentSession
from cclocal.backends import BACKENDS, Backend, in_order
from cclocal.errors import AgentMissingError, BackendMissingError, BackendTooOldError, UsageError
from cclocal.facts import Engine, Facts, Machine
from cclocal.memory.footprint import KV_TYPES
from cclocal.models.catalog import CONFIG, Model, Variant
from cclocal.planning.memory import adjusted
from cclocal.settings import BASH, OFF, SANDBOXES, SPECULATIONS, STRICT, Settings

#: The sandbox level if none was asked for. On a Mac strict was never run (docs/unverified.md).
_LEVELS = {"linux": STRICT, "macos": BASH}


#: The settings that take one of some words, and these words.
CHOICES: Mapping[str, Collection[str]] = {
    "agent": AGENTS,
    "backend": BACKENDS,
    "kv": KV_TYPES,
    "sandbox": SANDBOXES,
    "speculate": SPECULATIONS,
}


def choose_agent(settings: Settings) -> Agent:
    """The agent asked for, or the default. Raises UsageError if there is none of that name."""
    name = settings.agent or DEFAULT
    if name not in AGENTS:
        raise UsageError(f"There is no agent “{name}”.{settings.origin('agent')}", hint=f"--agent {' | '.join(AGENTS)}")
    return AGENTS[name]


def check_agent(agent: Agent, facts: Facts, settings: Settings) -> None:
    """Raises AgentMissingError (35) if the agent is not there, does not run, is too old, or cannot work here."""
    if facts.agent is None:
        words = facts.agent_problem or f"{agent.PROGRAM} was not found on PATH."
        raise AgentMissingError(words, hint=agent.INSTALL, cure=shlex.split(agent.INSTALL))
    if reason := agent.unusable(facts.agent, settings.agent_args, level=level_of(settings, facts.machine)):
        raise AgentMissingError(f"{reason}.", hint=facts.agent.remedy or agent.INSTALL)


def level_of(settings: Settings, machine: Machine) -> str:
    """What holds the agent: strict, bash or off. Raises UsageError if there is no such level, or the agent has not."""
    agent, level = choose_agent(settings), settings.sandbox
    if level is None:
        level = _LEVELS.get(machine.os, OFF)
        return level if level in (STRICT, *agent.OWN_LEVELS) else OFF
    if level not in SANDBOXES:
        words = f"There is no sandbox level “{level}”.{settings.origin('sandbox')}"
        raise UsageError(words, hint=f"--sandbox {' | '.join(SANDBOXES)}")
    if level != STRICT and level not in agent.OWN_LEVELS:
        words = f"{agent.TITLE} has no sandbox of its own.{settings.origin('sandbox')}"
        raise UsageError(words, hint=f"--sandbox {STRICT} | {OFF}")
    return level


def agent_session(settings: Settings, facts: Facts, context_tokens: int, out_tokens: int) -> AgentSession:
    """What the agent is told, for a window and replies of so many tokens. Raises UsageError for what it cannot do."""
    settings = for_agent(settings)
    level = level_of(settings, facts.machine)
    return AgentSession(
        found=facts.agent,
        context_tokens=context_tokens,
        out_tokens=out_tokens,
        cwd=facts.cwd,
        # it lasts, so that conversations can be resumed
        home=facts.env.folders.data / choose_agent(settings).NAME,
        git_root=facts.git_root,
        passed=settings.pass_env,
        arguments=settings.agent_args,
        tools=not settings.no_tools,
        lean=bool(settings.lean),
        nudge=settings.nudge,
        level=level,
        web=settings.web,
        subagents=settings.subagents,
        mcp=facts.mcp,
        proxied=level == STRICT and bool(settings.allow_net or settings.web),
    )


def for_agent(settings: Settings) -> Settings:
    """The settings without those that the agent has not. Raises UsageError for a typed one."""
    agent = choose_agent(settings)
    for name in ("web", "mcp", "also", "subagents"):
        value = getattr(settings, name)
        if value and name not in agent.HAS:
            if settings.sources.get(name) == "command line":
                able = " or ".join(other.TITLE for other in AGENTS.values() if name in other.HAS)
                raise UsageError(f"{agent.TITLE} has no --{name}; {able} has.")
            # one of config.toml is for the others
            settings = replace(settings, **{name: type(value)()})
    return settings


def choose_variant(model: Model, settings: Settings, facts: Facts) -> tuple[Variant, str | None]:
    """(the variant that a launch here would use, the reason for its backend if none was asked for).

    It is the best backend for this machine that is installed and serves a variant as asked; if none is installed, the
    best. Raises UsageError if there is no such variant.
    """
    asked = settings.backend
    if asked and asked not in BACKENDS:
        raise UsageError(
            f"There is no backend “{asked}”.{settings.origin('backend')}", hint=f"--backend {' | '.join(BACKENDS)}"
        )
    names = (asked,) if asked else _candidates(settings, facts)
    found = [variant for name in names if (variant := model.variant(name, settings.quant))]
    installed = [variant for variant in found if facts.engines.get(variant.backend)]
    # prefer engines that support the requested options
    able = [variant for variant in installed if _is_able(variant, settings, facts)]
    for variant in (*able, *installed, *found):
        best = variant.backend == names[0]
        reason = "the first choice on this machine" if best else "the first that is installed and can serve this"
        return variant, None if asked else reason
    mine = [v for v in model.variants if asked in (None, v.backend)]
    if settings.quant and mine:
        there = ", ".join(dict.fromkeys(v.quant for v in mine))
        raise UsageError(f"{model.name} has no {settings.quant}; it has {there}.{settings.origin('quant')}")
    others = " or ".join(dict.fromkeys(v.backend for v in model.variants))
    raise UsageError(f"{model.name} cannot run on {asked}.{settings.origin('backend')}", hint=f"--backend {others}")


def _candidates(settings: Settings, facts: Facts) -> tuple[str, ...]:
    """The backends to try if none was asked for; a typed setting that only one of them has selects it."""
    for name, backend in BACKENDS.items():
        if any(getattr(settings, one) and settings.sources.get(one) == "command line" for one in backend.ASKED_BY):
            return (name,)
    return in_order(facts.machine)


def _is_able(variant: Variant, settings: Settings, facts: Facts) -> bool:
    """Whether one of the engines here can serve a variant as asked."""
    requested = adjusted(variant, settings)
    backend = BACKENDS[variant.backend]
    return any(backend.unsupported(engine, requested) is None for engine in facts.engines.get(variant.backend, ()))


def thinking(model: Model, variant: Variant, settings: Settings) -> tuple[Variant, str | None]:
    """(the variant, with thinking on if that was asked for; a note if it cannot be switched on).

    Switched on are the template's switch, a budget that is not zero, and the card's sampling for it.
    """
    if not settings.think:
        return variant, None
    if "enable_thinking" not in variant.template_kwargs and variant.reasoning_budget_tokens != 0:
        return variant, f"Thinking cannot be switched on for {model.name}."
    kwargs = {name: True if name == "enable_thinking" else value for name, value in variant.template_kwargs.items()}
    sampling = variant.think_sampling or variant.sampling
    return replace(variant, template_kwargs=kwargs, reasoning_budget_tokens=None, sampling=sampling), None


def choose_engine(backend: Backend, wire: str, model: Model, variant: Variant, facts: Facts) -> Engine:
    """The best engine that can serve a variant to an agent that speaks `wire`.

    Raises BackendMissingError (30) or BackendTooOldError (31).
    """
    if wire not in backend.WIRES:
        raise BackendTooOldError(f"{backend.NAME} does not speak the API of this agent ({wire}).")
    engines = facts.engines.get(backend.NAME, ())
    refusals = []
    for engine in engines:
        reason = backend.unsupported(engine, variant)
        if reason is None:
            return engine
        refusals.append(reason)
    hint = backend.install_hint(engines, facts)
    if refusals:
        raise BackendTooOldError(f"{model.name} cannot run here: {'; '.join(refusals)}.", hint=hint)
    cure = backend.installer(facts)
    raise BackendMissingError(f"No {backend.NAME} was found on this machine.", hint=hint, cure=cure)


def model_path(variant: Variant, facts: Facts) -> str:
    """Where the model is: a GGUF file or an MLX folder, or text in angle brackets as long as it is not on disk."""
    if variant.path:
        return variant.path
    if variant.tag:
        return f"<{variant.tag}>"
    name: str = variant.builtin or (CONFIG if variant.is_folder else next(iter(variant.files), ""))
    there = facts.cached.get((variant.repo or "", name))
    if there:
        return str(there.parent if variant.is_folder else there)
    if variant.builtin:
        return "<model folder>" if variant.is_folder else "<model file>"
    if variant.is_folder:
        return f"<folder of {variant.repo}>"
    return f"<{name or f'{variant.quant} of {variant.repo}'}>"
