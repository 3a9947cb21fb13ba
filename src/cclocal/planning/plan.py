"""One frozen plan of a launch: what is fetched, served and started. `--dry-run` prints it, a launch carries it out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from cclocal.agents import AGENTS
from cclocal.agents.session import AgentSession, Capture
from cclocal.backends import BACKENDS, Backend, PromptCaching
from cclocal.backends.request import ServeRequest
from cclocal.command import SHOWN, Binding, CommandAndFiles, Endpoint, Readiness, server_url
from cclocal.facts import Engine
from cclocal.memory.fit import Fit
from cclocal.memory.remedies import Remedy
from cclocal.models.catalog import ANY, CONFIG, Builtin, Model, Variant
from cclocal.settings import Settings, Speculation
from cclocal.units import file_size
from cclocal.wires import WIRES
from cclocal.wires.wire import Refusal

#: The micro-batch of a server whose memory ran out; smaller ones save little and read slowly.
LEAST_UBATCH_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Fetch:
    """What must be downloaded or built before the server can start. `repo` None = nothing, the model is on disk.

    quant: which file is meant as long as its name is unknown; empty for a model of several files. tag: what Ollama is
    asked for. projector: it is fetched too, under a name not known yet, or alone, as the model itself is on disk.
    """

    repo: str | None
    files: tuple[str, ...] = ()
    size_bytes: int | None = None
    builtin: Builtin | None = None
    quant: str = ""
    tag: str = ""
    projector: Literal["", "too", "alone"] = ""

    @property
    def in_words(self) -> str:
        """What will be downloaded, in one line."""
        if self.builtin:
            return "built locally, nothing to download"
        if self.tag:
            return f"{self.tag}, pulled by Ollama unless it is in its store"
        if not self.repo:
            return "nothing to download"
        size = f", {file_size(self.size_bytes)}" if self.size_bytes else ""
        if CONFIG in self.files:
            names = f"{len(self.files)} files"
        elif self.files:
            names = ", ".join(self.files)
        elif self.quant:
            names = "its default file" if self.quant == ANY else f"the {self.quant} file"
        else:
            names = "the model"
        names += " and its projector" if self.projector == "too" else ""
        return f"{names} from {self.repo}{size}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a launch will do. Commands are functions of a Binding: see `server_command`, `agent_command`.

    settings: as planned, after a remedy. fit: what the model needs in memory against what there is; None if its shape
    is unknown. requested: the fit of the settings as given, set only if the plan shrank them to fit. limit_words: why
    raising the wired limit is not offered. result_key: the key of the results of checks of this plan. is_proven: the
    newest check's result; None = there was none. prompt_caching: what is done about the fixed part of the prompt.
    cache_key: what a saved prompt depends on beside the agent and the model's file. can_save_prompt: its KV cache can
    be restored, as far as is known; can_save_conversation: that of a conversation too. knows_restores: it was tried.
    restores_key: the engine and the model's kinds of memory, by which that is known. speculations: the kinds that could
    be used, beside none; tuning_key: by which the fastest one is known. word: what `--model` must be given to mean this
    model. is_strict: its chat template takes one system message; is_toolless: it knows no tools. others: of the models
    that `/model` changes to.
    """

    model: Model
    variant: Variant
    engine: Engine
    agent: str
    settings: Settings
    fetch: Fetch
    context_tokens: int
    out_tokens: int
    port: int | None
    request: ServeRequest
    session: AgentSession
    fit: Fit | None
    remedies: tuple[Remedy, ...] = ()
    requested: Fit | None = None
    wired_limit_mib: int | None = None
    limit_words: str | None = None
    notes: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    result_key: str = ""
    is_proven: bool | None = None
    prompt_caching: PromptCaching = ""
    capture: Capture | None = None
    cache_key: str = ""
    can_save_prompt: bool = False
    can_save_conversation: bool = False
    knows_restores: bool = False
    restores_key: str = ""
    speculations: tuple[Speculation, ...] = ()
    tuning_key: str = ""
    word: str = ""
    is_strict: bool = False
    is_toolless: bool = False
    others: tuple[Plan, ...] = ()
    fewer: Mapping[tuple[str, ...], int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What requests call the model."""
        return self.endpoint(self.shown).model

    def with_others(self, others: Sequence[Plan]) -> Plan:
        """The same for a session that changes to other models, each served as planned for it."""
        if not others:
            return self
        names = tuple(other.name for other in others)
        notes = [note for other in others for note in other.notes if note not in self.notes]
        # the hooks cannot tell which model is asked
        sees = self.session.sees if {other.session.sees for other in others} == {self.session.sees} else None
        return replace(
            self,
            others=tuple(others),
            session=replace(self.session, also=names, sees=sees),
            notes=(*self.notes, take_turns(names), *notes),
        )

    @property
    def _backend(self) -> Backend:
        return BACKENDS[self.variant.backend]

    @property
    def memory(self) -> str:
        """The memory plan in one line."""
        return self.fit.in_words if self.fit else "unknown; a start reads the model's header before the download"

    @property
    def is_interactive(self) -> bool:
        """Whether the agent takes over the terminal."""
        return AGENTS[self.agent].is_interactive(self.settings.agent_args)

    @property
    def shown(self) -> Binding:
        """The values of a session as they are shown before there is one."""
        url = server_url(SHOWN.folder, "<server port>", on_socket=self.engine.unix_socket)
        return replace(SHOWN, port=str(self.port or SHOWN.port), server_url=url)

    def server_command(self, binding: Binding) -> CommandAndFiles:
        """The server's command, and the files it reads."""
        return self._backend.command(self.engine, self.request, binding)

    def readiness(self, binding: Binding) -> Readiness:
        """What the server must show before the agent is started."""
        return self._backend.readiness(self.engine, self.request, binding)

    def endpoint(self, binding: Binding) -> Endpoint:
        """Where the server answers."""
        return self._backend.endpoint(self.engine, self.request, binding)

    def agent_endpoint(self, binding: Binding) -> Endpoint:
        """Where the session's relay answers."""
        return Endpoint.of_relay(binding, self.endpoint(binding).model)

    def with_less_memory(self) -> Plan:
        """For a server whose memory ran out: a small micro-batch, one slot, a KV cache of 8 bits if that is possible.

        The window of a conversation stays as it is.
        """
        batch = min(self.variant.ubatch_tokens or LEAST_UBATCH_TOKENS, LEAST_UBATCH_TOKENS)
        less = replace(self.variant, ubatch_tokens=batch, slots=1)
        if self.fit and self.fit.config.projector and self.fit.config.projector.at_once:
            less = replace(less, picture_tokens=batch)
        smaller = replace(less, kv_type="q8_0")
        if less.kv_type in ("f16", "bf16") and not self._backend.unsupported(self.engine, smaller):
            less = smaller
        context = self.session.context_tokens
        return replace(self, variant=less, request=replace(self.request, variant=less, context_tokens=context))

    def with_workers(self, workers: tuple[str, ...], context_tokens: int) -> Plan:
        """The same with some of its workers only, and another context."""
        request = replace(self.request, context_tokens=context_tokens)
        return replace(self, engine=self.engine.left_with(workers), request=request)

    def relay(self, binding: Binding) -> dict[str, Any]:
        """The options of the session's relay."""
        readiness, refusals = self.readiness(binding), self._backend.REFUSALS
        options = relay_options(binding, readiness.endpoint, refusals)
        too_long = {wire.PATH: wire.ERRORS["too long"] for wire in WIRES.values()}
        cuts = {"cuts_beyond": self.session.context_tokens, "too_long": too_long}
        models = {"models": [self.name, *(other.name for other in self.others)]} if self.others else {}
        asks = [] if self.settings.cold else [wire.PATH for wire in WIRES.values()]
        options |= {"asks": asks, "is_ours": readiness.owns_socket}
        options |= {**(cuts if self._backend.CUTS_PROMPTS else {}), **models}
        if self.variant.slots == 1 or not self._backend.SLOTS:
            return options
        several = {"count": self.variant.slots, "has_main": not self.settings.server}
        return {**options, "slots": {**self._backend.SLOTS, **several, "folder": self.request.prompt_folder}}

    def agent_command(self, binding: Binding) -> CommandAndFiles:
        """The agent's command, and the files it reads."""
        return AGENTS[self.agent].command(self.session, self.agent_endpoint(binding), binding)


def take_turns(names: Iterable[str]) -> str:
    """What the user should know of models that `/model` changes to."""
    turns = "They take turns: the other one is loaded, and reads the conversation anew."
    return f"/model changes to {', '.join(names)}. {turns}"


def relay_options(binding: Binding, server: Endpoint, refusals: Iterable[Refusal]) -> dict[str, Any]:
    """What a session's relay must know (server/relay.py) of a server that was not started for it.

    Any agent may use it, each by the path of its own API.
    """
    return {
        "session": binding.session_id,
        "key": binding.key,
        "url": server.url,
        "is_ours": False,
        # servers read one of the two; vLLM's only the first
        "fields": [f"Authorization: Bearer {server.key}", f"x-api-key: {server.key}"] if server.key else [],
        "health": "/v1/models",
        "refusals": [
            {**row, "path": wire.PATH}
            for wire in WIRES.values()
            for row in (
                *({**wire.ERRORS[refusal.meaning], "pattern": refusal.pattern} for refusal in refusals),
                # of an agent that is told 401 some ask for a login at their maker's
                *({**wire.ERRORS["wrong key"], "pattern": "", "status": status} for status in ("401", "403")),
            )
        ],
    }
