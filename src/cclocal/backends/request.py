"""What a backend is asked to serve, and what its spec answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Protocol

from cclocal.command import Binding, CommandAndFiles, Endpoint, Readiness
from cclocal.facts import Engine, Facts, Machine
from cclocal.models.catalog import FileForm, Model, Variant
from cclocal.settings import Sight, Speculation
from cclocal.wires.wire import Refusal


@dataclass(frozen=True, slots=True)
class ServeRequest:
    """A model as planned, and the folders a backend may use.

    model_file: a GGUF file, the folder of an MLX model, or text in angle brackets as long as it is not on disk.
    own_store: where a backend with a store keeps models of ours. lease_folder: where a model is recorded that was put
    into a server that another program started. prompt_folder: where KV caches are saved; empty = they are not. cores:
    that compute, if the model runs on the processor; 0 = the engine decides.
    """

    model: Model
    variant: Variant
    model_file: str
    mmproj_file: str | None
    context_tokens: int
    own_store: str = ""
    lease_folder: str = ""
    prompt_folder: str = ""
    cores: int = 0


#: Longer than the agents' own 30 minutes, so that the server is never the first to hang up.
SERVER_TIMEOUT_S = 3600
#: What can be done about the fixed part of a prompt: save its KV cache to disk, ask for it ahead of the agent, nothing.
PromptCaching = Literal["save", "ask ahead", ""]


class Backend(Protocol):
    """A backend's spec. What has no default here is for each backend to say."""

    NAME: str
    #: how to get it
    INSTALL: str
    #: its runtime, as module:class
    RUNTIME: str
    #: a program file, standard library only, whose turns(text) reads replies from the server's log; "" = none does
    LOG_READER: str
    #: what it serves, the form it prefers first
    FORMS: tuple[FileForm, ...]
    #: how it refuses what an agent must be told in other words
    REFUSALS: tuple[Refusal, ...] = ()
    #: whether it cuts a prompt beyond its window without a word
    CUTS_PROMPTS: bool = False
    #: whether a turn finds what the turn before it had read; else only a prompt's fixed part is worth reading ahead
    KEEPS_TURNS: bool = True
    #: how a relay gives conversations slots of their own (server/slots.py); empty = it cannot
    SLOTS: Mapping[str, Any] = MappingProxyType({})
    #: the kinds of --speculate that it may offer beside "off"
    SPECULATIONS: tuple[Speculation, ...] = ()
    #: how its server is ended: each signal in turn, with the seconds it is given to obey
    STOP: tuple[tuple[str, float], ...] = (("TERM", 5.0), ("KILL", 2.0))
    #: the APIs that it speaks, by the names in cclocal.wires
    WIRES: frozenset[str] = frozenset({"anthropic"})
    #: settings that only make sense with this backend, so that they select it
    ASKED_BY: frozenset[str] = frozenset()

    def sees(self, variant: Variant, facts: Facts) -> Sight | None:
        """Which of the pictures that an agent sends the model sees; None if it is not known."""
        return None

    def rank(self, machine: Machine) -> int:
        """The order in which backends are tried on a machine, lowest first."""

    def install_hint(self, engines: tuple[Engine, ...], facts: Facts) -> str:
        """How to get an engine, or a better one than those that are there."""
        return self.INSTALL

    def installer(self, facts: Facts) -> tuple[str, ...]:
        """The command that installs an engine; empty if there is none that would do on every machine."""
        return ()

    def takes_turns(self, engine: Engine) -> bool:
        """Whether an engine serves every model of its store with the planned window, one at a time."""
        return False

    def better_build(self, engine: Engine, facts: Facts) -> tuple[str, ...]:
        """The command that installs the build of an engine for this machine's GPU; empty if it uses it already."""
        return ()

    def unsupported(self, engine: Engine, variant: Variant) -> str | None:
        """Why this engine cannot serve this variant, or None if it can."""

    def prompt_caching(self, engine: Engine) -> PromptCaching:
        """What this engine can do about the fixed part of a prompt."""
        return "ask ahead"

    def notes(self, engine: Engine, facts: Facts) -> tuple[str, ...]:
        """What the user should know about this engine on this machine."""

    def endpoint(self, engine: Engine, request: ServeRequest, binding: Binding) -> Endpoint:
        """Where the model will answer, and its name in requests."""
        return Endpoint.of_session(binding, request.model.id)

    def command(self, engine: Engine, request: ServeRequest, binding: Binding) -> CommandAndFiles:
        """The server's command, and the files it reads."""

    def readiness(self, engine: Engine, request: ServeRequest, binding: Binding) -> Readiness:
        """What the server must show before it is used."""
        return Readiness(self.endpoint(engine, request, binding))
