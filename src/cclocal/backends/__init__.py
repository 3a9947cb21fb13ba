"""Backends: what serves a model. A new one is a folder with a spec and a runtime, and a row in BACKENDS.

A spec is pure: it answers what planning asks, and turns a request into a server's command. A runtime has effects: it
finds engines, prepares a started server, reads its log. It is imported only when it is used.
"""

from __future__ import annotations

import importlib
from typing import Literal, Protocol, cast

from cclocal.backends.llama_server import spec as llama_server
from cclocal.backends.ollama import spec as ollama
from cclocal.backends.request import ServeRequest
from cclocal.backends.runtime import Runtime
from cclocal.backends.vllm_mlx import spec as vllm_mlx
from cclocal.command import Binding, Command, Endpoint, Readiness, SessionFile, Stop
from cclocal.facts import Engine, Facts, Machine
from cclocal.models.catalog import FileForm, Variant

#: What can be done about the fixed part of a prompt: save its KV cache to disk, ask for it ahead of the agent, nothing.
PromptCaching = Literal["save", "ask ahead", ""]


class Backend(Protocol):
    """What a backend's spec module offers."""

    NAME: str
    #: signals that end its server
    STOP: Stop
    #: its runtime, as module:class
    RUNTIME: str
    #: a program file, standard library only, whose turns(text) reads replies from the server's log; "" = none does
    LOG_READER: str
    #: what it serves, the form it prefers first
    FORMS: tuple[FileForm, ...]
    #: the APIs that it speaks, by the names in cclocal.wires
    WIRES: frozenset[str]
    #: settings that only make sense with this backend, so that they select it
    ASKED_BY: frozenset[str]

    def rank(self, machine: Machine) -> int:
        """The order in which backends are tried on a machine, lowest first."""

    def install_hint(self, engines: tuple[Engine, ...]) -> str:
        """How to get an engine, or a better one than those that are there."""

    def unsupported(self, engine: Engine, variant: Variant) -> str | None:
        """Why this engine cannot serve this variant, or None if it can."""

    def prompt_caching(self, engine: Engine) -> PromptCaching:
        """What this engine can do about the fixed part of a prompt."""

    def notes(self, engine: Engine, facts: Facts) -> tuple[str, ...]:
        """What the user should know about this engine on this machine."""

    def endpoint(self, engine: Engine, request: ServeRequest, binding: Binding) -> Endpoint:
        """Where the model will answer, and its name in requests."""

    def command(
        self, engine: Engine, request: ServeRequest, binding: Binding
    ) -> tuple[Command, tuple[SessionFile, ...]]:
        """The server's command, and the files it reads."""

    def readiness(self, engine: Engine, request: ServeRequest, binding: Binding) -> Readiness:
        """What the server must show before it is used."""


#: One row per backend. (A plain dictionary, so that a test can add its own.)
BACKENDS: dict[str, Backend] = {llama_server.NAME: llama_server, vllm_mlx.NAME: vllm_mlx, ollama.NAME: ollama}


def in_order(machine: Machine) -> tuple[str, ...]:
    """The names of the backends, the best for this machine first."""
    return tuple(sorted(BACKENDS, key=lambda name: BACKENDS[name].rank(machine)))


def forms() -> dict[str, tuple[FileForm, ...]]:
    """What each backend serves."""
    return {name: backend.FORMS for name, backend in BACKENDS.items()}


def runtime_of(name: str) -> Runtime:
    """A backend's runtime, imported now."""
    module, _, kind = BACKENDS[name].RUNTIME.partition(":")
    return cast(Runtime, getattr(importlib.import_module(module), kind)())
