"""Backends: what serves a model. A new one is a folder with a spec and a runtime, and a row in BACKENDS.

A spec is pure: it answers what planning asks, and turns a request into a server's command. A runtime has effects: it
finds engines, prepares a started server, reads its log. It is imported only when it is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from cclocal.backends.llama_server.spec import LlamaServerSpec
from cclocal.backends.ollama.spec import OllamaSpec
from cclocal.backends.request import Backend as Backend
from cclocal.backends.request import PromptCaching as PromptCaching
from cclocal.backends.request import ServeRequest
from cclocal.backends.vllm_mlx.spec import VllmMlxSpec
from cclocal.command import Endpoint
from cclocal.facts import Engine, Machine
from cclocal.models.catalog import Catalog
from cclocal.models.storage import Stored
from cclocal.paths import Env
from cclocal.programs import Answers
from cclocal.settings import Settings, Sight
from cclocal.turns import Turn

if TYPE_CHECKING:
    import httpx

#: A reply of /v1/models and the like, parsed; None if there was none.
Get = Callable[[str], Any]
#: Starts a progress bar: called with (total, finished) bytes.
Bars = Callable[[int, int], Any]


@dataclass(frozen=True, slots=True)
class StartedServer:
    """A server that was just started, as far as a runtime needs to know it.

    `tools`: the agent will use tools. `check_alive` raises ServerDiedError if the server has ended.
    """

    engine: Engine
    request: ServeRequest
    endpoint: Endpoint
    tools: bool
    log: Path
    check_alive: Callable[[], None]


class Reported(NamedTuple):
    """What a server that runs already reports: its kind, the window of one conversation, which pictures it sees.

    None where it does not say. refuses_empty: it refuses a message without content, so that its API can be found out
    without one that is computed, which would take the place of a prompt that it keeps.
    """

    kind: str
    context_tokens: int | None
    sees: Sight | None = None
    refuses_empty: bool = False


class Runtime:
    """A backend's effects. A subclass overrides what it needs; everything else does nothing.

    COUNTED: a pattern; in the answer to `save_request` its first group is the number of saved tokens.
    """

    COUNTED = ""

    def find(self, env: Env, settings: Settings, machine: Machine, answers: Answers) -> Iterator[Engine]:
        """The engines on this machine, best first. Raises BackendMissingError if one was asked for and does not run."""
        yield from ()

    def prepare(self, server: StartedServer, bars: Bars) -> tuple[str, ...]:
        """Have the server load the model, where it does not by itself. Returns what the user should know."""
        return ()

    def verify(self, server: StartedServer) -> None:
        """Raises NotReadyError unless the server that is ready serves what was planned."""

    def clean_up(self, env: Env) -> None:
        """Remove what killed sessions left elsewhere."""

    def stored(self, catalog: Catalog, env: Env) -> Iterator[Stored]:
        """The models in the backend's own store."""
        yield from ()

    def users_of(self, stored: Stored, env: Env) -> list[str]:
        """What uses a model of its store at this moment, in words. Raises UsageError if it cannot be removed."""
        return []

    def remove(self, stored: Stored, env: Env) -> None:
        """Remove a model from its store. Raises UsageError."""

    def reported(self, get: Get, model: str) -> Reported | None:
        """What a server that may be of this kind reports of itself.

        `get` fetches a path of it. None if it is another kind of server.
        """
        return None

    def count_tokens(self, client: httpx.Client, text: str) -> int | None:
        """The tokens of a text, counted by a running server; None if it cannot count."""
        return None

    def prompt_tokens(self, client: httpx.Client, request: Mapping[str, Any]) -> list[int]:
        """The prompt of a request, given as one of the chat API, in tokens as the server would make it."""
        raise NotImplementedError

    def read_prompt(self, client: httpx.Client, tokens: list[int]) -> int:
        """Have the server evaluate a prompt. Returns how many of its tokens were not in the KV cache already."""
        raise NotImplementedError

    def write(self, client: httpx.Client, tokens: list[int], most_tokens: int) -> tuple[str, Turn]:
        """(the most likely continuation of a prompt, what it cost): the same text at each call."""
        raise NotImplementedError

    def save_prompt(self, client: httpx.Client, name: str) -> int | None:
        """Save the KV cache under a file name in the request's prompt folder.

        Returns how many tokens it holds; None if the engine cannot save what it serves.
        """
        raise NotImplementedError

    def restore_request(self, name: str) -> tuple[str, str, str]:
        """(method, path, body) of the request that restores a saved KV cache."""
        raise NotImplementedError

    def save_request(self, name: str) -> tuple[str, str, str]:
        """(method, path, body) of the request that saves the KV cache under a file name."""
        raise NotImplementedError

    def restore_prompt(self, client: httpx.Client, name: str) -> bool:
        """Restore a saved KV cache. Returns False if the server refuses it."""
        method, path, body = self.restore_request(name)
        return client.request(method, path, content=body).status_code == 200


#: One row per backend. (A plain dictionary, so that a test can add its own.)
BACKENDS: dict[str, Backend] = {row.NAME: row for row in (LlamaServerSpec(), VllmMlxSpec(), OllamaSpec())}


def in_order(machine: Machine) -> tuple[str, ...]:
    """The names of the backends, the best for this machine first."""
    return tuple(sorted(BACKENDS, key=lambda name: BACKENDS[name].rank(machine)))


def runtime_of(name: str) -> Runtime:
    """A backend's runtime, imported now."""
    module, _, kind = BACKENDS[name].RUNTIME.partition(":")
    return cast(Runtime, getattr(importlib.import_module(module), kind)())
