"""Ollama: a daemon that runs already, or one of our own on a port of its own, ended with the session.

A daemon that runs already is used for its own models and never stopped. It has its own idea of a window, so what is
served there is a derived model with the planned one, put there for the session and taken away again.

Facts, from Ollama 0.17 run for real: it cuts a prompt beyond its window without a word, so the window must be the
planned one; no key is ever checked; a model calls tools only if its Go template mentions them.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from cclocal.command import KEY, SERVER_NAMES, SERVER_PREFIXES, Command, Endpoint, Readiness, SessionFile, Stop
from cclocal.facts import Engine, Facts
from cclocal.models.catalog import Model, Variant
from cclocal.paths import is_loopback, ollama_url

if TYPE_CHECKING:
    from cclocal.backends import Serving

NAME = "ollama"
INSTALL = "https://ollama.com/download    or: brew install ollama"
#: The runner is a child of the daemon's; the keeper ends the whole group.
STOP = Stop((("TERM", 5.0), ("KILL", 2.0)))
#: The form of an engine that is a daemon which runs already.
RUNNING = "ollama-running"
#: Ollama takes names of up to 80 characters.
_NAME_LENGTH = 40
_LOAD_LIMIT_S = 1800.0
#: The first version whose /v1/messages was seen to work.
OLDEST = (0, 17)


def unsupported(engine: Engine, variant: Variant) -> str | None:
    numbers = tuple(int(n) for n in re.findall(r"\d+", engine.version)[:2])
    # a build of one's own answers 0.0.0
    if numbers and numbers != (0, 0) and numbers < OLDEST:
        return f"Ollama {engine.version} is too old: {OLDEST[0]}.{OLDEST[1]} or newer is needed"
    if variant.slots > 1 or variant.cpu_moe_layers:
        return "Ollama takes one conversation at a time here, and no --cpu-moe"
    if engine.form == RUNNING and not variant.tag:
        return "the Ollama that runs already is only used for its own models"
    if engine.form == RUNNING and variant.kv_type != "f16":
        return "the type of the KV cache is a matter of the Ollama that runs already (OLLAMA_KV_CACHE_TYPE)"
    return None


def notes(engine: Engine, facts: Facts) -> tuple[str, ...]:
    if engine.form == RUNNING:
        return (f"The Ollama that runs at {engine.url} is used, and left running.",)
    said = ["Ollama asks nobody for a key: while the session lasts, programs of this machine can use its port."]
    elsewhere = ollama_url(facts.environ)
    if not is_loopback(elsewhere):
        said.insert(0, f"OLLAMA_HOST names another machine; cclocal --url {elsewhere} would use that one.")
    return tuple(said)


def command(engine: Engine, serving: Serving) -> tuple[Command, tuple[SessionFile, ...]]:
    variant = serving.variant
    if engine.form == RUNNING:
        name = serving.endpoint.model
        return Command((*engine.command, f"{serving.records}/{name}.json", engine.url, name)), ()
    env = {
        "OLLAMA_HOST": f"127.0.0.1:{serving.port}",
        "OLLAMA_CONTEXT_LENGTH": str(serving.context_tokens),
        "OLLAMA_NUM_PARALLEL": "1",
        "OLLAMA_MAX_LOADED_MODELS": "1",
        # a large model on a slow disk takes its time
        "OLLAMA_LOAD_TIMEOUT": "60m",
        # the model stays as long as the session
        "OLLAMA_KEEP_ALIVE": "-1",
        # the store may be the user's: nothing in it is tidied up by us
        "OLLAMA_NOPRUNE": "1",
        "OLLAMA_KV_CACHE_TYPE": variant.kv_type,
        "OLLAMA_FLASH_ATTENTION": "1",
    }
    if not variant.tag:
        # a store of its own, so that the user's is not filled with copies of files
        env["OLLAMA_MODELS"] = serving.own_store
    return Command(
        (*engine.command, "serve"),
        env,
        keep=frozenset(SERVER_NAMES | {"OLLAMA_MODELS", "OLLAMA_LLM_LIBRARY"}),
        keep_prefixes=SERVER_PREFIXES,
    ), ()


def readiness(engine: Engine, serving: Serving) -> Readiness:
    if engine.form == RUNNING:
        # somebody else's server tells nothing while it loads
        return Readiness(serving.endpoint, checks_key=False, owns_socket=False, stall_s=_LOAD_LIMIT_S)
    return Readiness(serving.endpoint, checks_key=False)


def endpoint(
    engine: Engine, model: Model, variant: Variant, context_tokens: int, port: int | None, records: str
) -> Endpoint:
    """The name is the tag, or for a file that we put there our own; in a daemon that runs already that of the derived
    model, which is the same every time, and nobody else's.
    """
    if engine.form == RUNNING:
        tag = variant.tag or model.id
        short = re.sub(r"[^a-z0-9._-]+", "-", tag.lower().removesuffix(":latest"))[:_NAME_LENGTH].strip("-.")
        whose = hashlib.sha256("\n".join((records, engine.url, tag)).encode()).hexdigest()[:8]
        return Endpoint(engine.url, KEY, f"cclocal-{short}-{context_tokens}-{whose}")
    return Endpoint.of_session(port, variant.tag or f"cclocal-{model.id}:latest")
