"""Backends: each turns a model variant into the command of a server. None of them runs anything.

A new backend is one module with these names and one row in BACKENDS.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from cclocal.backends.llama_server import spec as llama_server
from cclocal.backends.ollama import spec as ollama
from cclocal.backends.vllm_mlx import spec as vllm_mlx
from cclocal.command import Command, Endpoint, Readiness, SessionFile, Stop
from cclocal.facts import Engine, Facts, Machine
from cclocal.models.catalog import Model, Variant


@dataclass(frozen=True, slots=True)
class Serving:
    """What a backend is asked to serve."""

    model: Model
    variant: Variant
    #: a GGUF file, or the folder of an MLX model
    model_file: str
    mmproj_file: str | None
    context_tokens: int
    endpoint: Endpoint
    port: str
    #: where a backend with a store keeps what is ours
    own_store: str = ""
    #: where the state of prompts is kept
    warm: str = ""
    #: where it is written down what was put into somebody else's
    records: str = ""


class Backend(Protocol):
    """What a backend module offers."""

    NAME: str
    INSTALL: str
    STOP: Stop

    def unsupported(self, engine: Engine, variant: Variant) -> str | None:
        """Why this engine cannot serve this variant, or None if it can."""

    def notes(self, engine: Engine, facts: Facts) -> tuple[str, ...]:
        """What the user should know of this engine on this machine."""

    def endpoint(
        self, engine: Engine, model: Model, variant: Variant, context_tokens: int, port: int | None, records: str
    ) -> Endpoint:
        """Where the model will answer (`port`: the one wished for), and what it is called in requests."""

    def command(self, engine: Engine, serving: Serving) -> tuple[Command, tuple[SessionFile, ...]]:
        """The server's command, and the files it reads."""

    def readiness(self, engine: Engine, serving: Serving) -> Readiness:
        """What the server must show before it is used."""


BACKENDS: MappingProxyType[str, Backend] = MappingProxyType(
    {llama_server.NAME: llama_server, vllm_mlx.NAME: vllm_mlx, ollama.NAME: ollama}
)


def in_order(machine: Machine) -> tuple[str, ...]:
    """The backends, the one to prefer on this machine first: MLX on Apple Silicon, llama.cpp elsewhere."""
    first = vllm_mlx.NAME if machine.is_apple_silicon else llama_server.NAME
    return (first, *(name for name in BACKENDS if name != first))
