"""Ollama, as a daemon of our own: on a port of its own, with this model's context, ended with the session.

Facts, from Ollama 0.17 run for real: it cuts a prompt beyond its window without a word, so the window must be the
planned one; no key is ever checked; a model calls tools only if its Go template mentions them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cclocal.catalog import Variant
from cclocal.command import SERVER_NAMES, SERVER_PREFIXES, Command, Readiness, SessionFile, Stop
from cclocal.facts import Engine, Facts

if TYPE_CHECKING:
    from cclocal.backends import Serving

NAME = "ollama"
INSTALL = "https://ollama.com/download    or: brew install ollama"
#: The runner is a child of the daemon's; the keeper ends the whole group.
STOP = Stop((("TERM", 5.0), ("KILL", 2.0)))
#: The first version whose /v1/messages was seen to work.
OLDEST = (0, 17)


def engines(facts: Facts) -> tuple[Engine, ...]:
    return facts.ollamas


def unsupported(engine: Engine, variant: Variant) -> str | None:
    numbers = tuple(int(n) for n in re.findall(r"\d+", engine.version)[:2])
    # a build of one's own answers 0.0.0
    if numbers and numbers != (0, 0) and numbers < OLDEST:
        return f"Ollama {engine.version} is too old: {OLDEST[0]}.{OLDEST[1]} or newer is needed"
    if variant.slots > 1 or variant.cpu_moe_layers:
        return "Ollama takes one conversation at a time here, and no --cpu-moe"
    return None


def notes(engine: Engine, facts: Facts) -> tuple[str, ...]:
    return ("Ollama asks nobody for a key: while the session lasts, programs of this machine can use its port.",)


def command(engine: Engine, serving: Serving) -> tuple[Command, tuple[SessionFile, ...]]:
    variant = serving.variant
    env = {
        "OLLAMA_HOST": f"127.0.0.1:{serving.port}",
        "OLLAMA_CONTEXT_LENGTH": str(serving.context_tokens),
        "OLLAMA_NUM_PARALLEL": "1",
        "OLLAMA_MAX_LOADED_MODELS": "1",
        # the model stays as long as the session
        "OLLAMA_KEEP_ALIVE": "-1",
        # the store may be the user's: nothing in it is tidied up by us
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_KV_CACHE_TYPE": variant.kv_type,
        "OLLAMA_FLASH_ATTENTION": "1",
    }
    if variant.builtin:
        # a store of its own, so that `ollama list` does not show what is no language model
        env["OLLAMA_MODELS"] = serving.own_store
    return Command(
        (*engine.command, "serve"),
        env,
        keep=frozenset(SERVER_NAMES | {"OLLAMA_MODELS", "OLLAMA_LLM_LIBRARY"}),
        keep_prefixes=SERVER_PREFIXES,
    ), ()


def readiness(serving: Serving) -> Readiness:
    return Readiness(serving.endpoint, checks_key=False)


def served_name(model_id: str, variant: Variant) -> str:
    """What the model is called in Ollama: its tag, or for one that we put there our own name."""
    return variant.tag or f"cclocal-{model_id}:latest"
