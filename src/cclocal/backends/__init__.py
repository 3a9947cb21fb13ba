"""Backends: each turns a model variant into the command of a server. None of them runs anything.

A new backend is one module with these names and one row in BACKENDS.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from cclocal.backends import llama_server, ollama
from cclocal.catalog import Model, Variant
from cclocal.command import Command, Endpoint, Readiness, SessionFile, Stop
from cclocal.facts import Engine, Facts


@dataclass(frozen=True, slots=True)
class Serving:
    """What a backend is asked to serve."""

    model: Model
    variant: Variant
    model_file: str
    mmproj_file: str | None
    context_tokens: int
    endpoint: Endpoint
    port: str
    #: where a backend with a store keeps what is ours
    own_store: str = ""


class Backend(Protocol):
    """What a backend module offers."""

    NAME: str
    INSTALL: str
    STOP: Stop

    def engines(self, facts: Facts) -> tuple[Engine, ...]:
        """The engines found on this machine, best first."""

    def unsupported(self, engine: Engine, variant: Variant) -> str | None:
        """Why this engine cannot serve this variant, or None if it can."""

    def notes(self, engine: Engine, facts: Facts) -> tuple[str, ...]:
        """What the user should know of this engine on this machine."""

    def served_name(self, model_id: str, variant: Variant) -> str:
        """What the model is called in requests."""

    def command(self, engine: Engine, serving: Serving) -> tuple[Command, tuple[SessionFile, ...]]:
        """The server's command, and the files it reads."""

    def readiness(self, serving: Serving) -> Readiness:
        """What the server must show before it is used."""


BACKENDS: MappingProxyType[str, Backend] = MappingProxyType({llama_server.NAME: llama_server, ollama.NAME: ollama})
