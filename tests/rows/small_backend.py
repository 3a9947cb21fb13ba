"""A backend of a few dozen lines, spec and runtime in one: what a new one has to say. It serves by the fake server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from cclocal.backends import Runtime
from cclocal.backends.request import ServeRequest
from cclocal.command import Binding, Command, CommandAndFiles, Endpoint, Readiness
from cclocal.facts import Engine, Facts, Machine
from cclocal.models.catalog import FileForm, Variant
from cclocal.paths import Env, find_program
from cclocal.programs import Answers
from cclocal.settings import Settings, Sight, Speculation
from cclocal.wires.wire import Refusal

NAME = "small"
REFUSALS: tuple[Refusal, ...] = ()
CUTS_PROMPTS = False
KEEPS_TURNS = True
STOP = (("TERM", 5.0), ("KILL", 2.0))
RUNTIME = f"{__name__}:Small"
LOG_READER = ""
FORMS: tuple[FileForm, ...] = ("gguf",)
WIRES = frozenset({"anthropic"})
ASKED_BY: frozenset[str] = frozenset()
SPECULATIONS: tuple[Speculation, ...] = ()


def rank(machine: Machine) -> int:
    return 9


def sees(variant: Variant, facts: Facts) -> Sight | None:
    return "none"


def installer(facts: Facts) -> tuple[str, ...]:
    return ()


def takes_turns(engine: Engine) -> bool:
    return False


def better_build(engine: Engine, facts: Facts) -> tuple[str, ...]:
    return ()


def install_hint(engines: tuple[Engine, ...], facts: Facts) -> str:
    return "install small"


def unsupported(engine: Engine, variant: Variant) -> str | None:
    return "small has one slot" if variant.slots > 1 else None


def prompt_caching(engine: Engine) -> str:
    return ""


def notes(engine: Engine, facts: Facts) -> tuple[str, ...]:
    return ("small is small.",)


def endpoint(engine: Engine, request: ServeRequest, binding: Binding) -> Endpoint:
    return Endpoint.of_session(binding, request.model.id)


def command(engine: Engine, request: ServeRequest, binding: Binding) -> CommandAndFiles:
    flags = ("--model", request.model_file, "--alias", request.model.id, "--port", binding.server_port)
    return Command((*engine.command, *flags, "--api-key-file", binding.file("key"))), {"key": binding.server_key}


def readiness(engine: Engine, request: ServeRequest, binding: Binding) -> Readiness:
    return Readiness(endpoint(engine, request, binding))


class Small(Runtime):
    def find(self, env: Env, settings: Settings, machine: Machine, answers: Answers) -> Iterator[Engine]:
        if path := find_program("small-server", env.environ):
            yield Engine(
                "small", (sys.executable, path), "1", frozenset(), title=f"at {Path(path).name}", uses="untold"
            )
