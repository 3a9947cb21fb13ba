"""Ollama: a daemon that runs already, or one of our own on its own port, ended with the session.

A daemon that runs already is used for its own models and never stopped. It has its own context window, so a derived
model with the planned one is put there for the session and removed afterwards.

Facts, from Ollama 0.17 run for real: it silently cuts a prompt beyond its window, so the window must be the planned
one; it checks no key; a model calls tools only if its Go template mentions them.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from packaging.version import Version

from cclocal.backends.request import Backend, ServeRequest
from cclocal.command import SERVER_NAMES, SERVER_PREFIXES, Binding, Command, CommandAndFiles, Endpoint, Readiness
from cclocal.facts import Engine, Facts, Machine, version_in
from cclocal.http import is_loopback
from cclocal.models.catalog import Variant
from cclocal.settings import Sight

#: The two forms of the engine: a program that is started, a daemon that runs already.
PROGRAM, RUNNING = "ollama", "ollama-running"
#: Ollama takes names of up to 80 characters.
_NAME_LENGTH = 40
_LOAD_LIMIT_S = 1800.0
#: What a variant may have that Ollama has no setting for. A projector is part of a model that `ollama create` makes.
_NOT_HERE: Mapping[str, Callable[[Variant], bool]] = {
    "speculate": lambda variant: variant.speculate != "off",
    "mmproj": lambda variant: bool(variant.mmproj),
}
#: The first version whose /v1/messages works.
OLDEST = Version("0.17")


class OllamaSpec(Backend):
    """Ollama, started or running already."""

    NAME = "ollama"
    INSTALL = "https://ollama.com/download    or: brew install ollama"
    RUNTIME = "cclocal.backends.ollama.runtime:Ollama"
    LOG_READER = str(Path(__file__).with_name("log_reader.py"))
    FORMS = ("tag", "gguf")
    WIRES = frozenset({"anthropic", "chat", "responses"})
    CUTS_PROMPTS = True

    def sees(self, variant: Variant, facts: Facts) -> Sight | None:
        # 0.17.4 drops pictures in results of tools without a word
        if variant.tag and facts.tag_sees is None:
            return None
        return "messages" if variant.tag and facts.tag_sees else "none"

    def rank(self, machine: Machine) -> int:
        return 3

    def takes_turns(self, engine: Engine) -> bool:
        # one that runs already has a window of its own for each model but the derived one
        return engine.form == PROGRAM

    def unsupported(self, engine: Engine, variant: Variant) -> str | None:
        version = version_in(engine.version)
        # a build from source reports 0.0.0
        if version and version.release != (0, 0, 0) and version < OLDEST:
            return f"Ollama {engine.version} is too old: {OLDEST} or newer is needed"
        if variant.slots > 1 or variant.cpu_moe_layers:
            return "cclocal does not support --slots above 1 or --cpu-moe with Ollama"
        if lost := [name for name, is_set in _NOT_HERE.items() if is_set(variant)]:
            return f"Ollama has no setting for {', '.join(lost)}"
        if engine.form == RUNNING and not variant.tag:
            return "an Ollama that is already running only serves models from its own store"
        if engine.form == RUNNING and variant.kv_type != "f16":
            return "an Ollama that is already running keeps its own KV cache type (OLLAMA_KV_CACHE_TYPE)"
        return None

    def notes(self, engine: Engine, facts: Facts) -> tuple[str, ...]:
        if engine.form == RUNNING:
            return (f"cclocal uses the Ollama that is running at {engine.url} and does not stop it.",)
        said = ["Ollama does not check keys: during the session every program on this machine can use its port."]
        elsewhere = ollama_url(facts.env.environ)
        if not is_loopback(elsewhere):
            said.insert(0, f"OLLAMA_HOST names another machine; to use the Ollama there: cclocal --url {elsewhere}")
        return tuple(said)

    def command(self, engine: Engine, request: ServeRequest, binding: Binding) -> CommandAndFiles:
        variant = request.variant
        if engine.form == RUNNING:
            name = self.endpoint(engine, request, binding).model
            return Command((*engine.command, f"{request.lease_folder}/{name}.json", engine.url, name)), {}
        env = {
            "OLLAMA_HOST": f"127.0.0.1:{binding.server_port}",
            "OLLAMA_CONTEXT_LENGTH": str(request.context_tokens),
            "OLLAMA_NUM_PARALLEL": "1",
            "OLLAMA_MAX_LOADED_MODELS": "1",
            # a large model on a slow disk takes long to load
            "OLLAMA_LOAD_TIMEOUT": "60m",
            # the model stays as long as the session
            "OLLAMA_KEEP_ALIVE": "-1",
            # the store may be the user's: do not prune it
            "OLLAMA_NOPRUNE": "1",
            "OLLAMA_KV_CACHE_TYPE": variant.kv_type,
            "OLLAMA_FLASH_ATTENTION": "1",
        }
        if not variant.tag:
            # our own store, so that the user's is not filled with copies of files
            env["OLLAMA_MODELS"] = request.own_store
        return Command(
            (*engine.command, "serve"),
            env,
            keep=frozenset(SERVER_NAMES | {"OLLAMA_MODELS", "OLLAMA_LLM_LIBRARY"}),
            keep_prefixes=SERVER_PREFIXES,
        ), {}

    def readiness(self, engine: Engine, request: ServeRequest, binding: Binding) -> Readiness:
        there = self.endpoint(engine, request, binding)
        if engine.form == RUNNING:
            # the server's log is not ours to read, so loading gives no sign of life
            return Readiness(there, checks_key=False, owns_socket=False, stall_s=_LOAD_LIMIT_S)
        return Readiness(there, checks_key=False)

    def endpoint(self, engine: Engine, request: ServeRequest, binding: Binding) -> Endpoint:
        """The model's name is its tag, or one of ours for a file that we put there. In a daemon that runs already it is
        that of the derived model, which is the same for every session of this user with this window.
        """
        tag = request.variant.tag or request.model.id
        if engine.form == RUNNING:
            short = re.sub(r"[^a-z0-9._-]+", "-", tag.lower().removesuffix(":latest"))[:_NAME_LENGTH].strip("-.")
            owner = hashlib.sha256("\n".join((request.lease_folder, engine.url, tag)).encode()).hexdigest()[:8]
            return Endpoint(engine.url, "", f"cclocal-{short}-{request.context_tokens}-{owner}")
        return Endpoint.of_session(binding, request.variant.tag or f"cclocal-{request.model.id}:latest")


def ollama_url(environ: Mapping[str, str]) -> str:
    """The address by OLLAMA_HOST and Ollama's own rules (its envconfig/config.go).

    No port is 11434, or 80 and 443 with a scheme; one that is no number counts as missing; the address of all
    interfaces means this machine.
    """
    text = environ.get("OLLAMA_HOST", "").strip().strip("\"'").strip()
    scheme, mark, rest = text.partition("://")
    scheme, rest = (scheme, rest) if mark else ("http", text)
    usual = {"http": "80", "https": "443"}.get(scheme, "11434") if mark else "11434"
    place = rest.partition("/")[0]
    match = re.fullmatch(r"(\[[^\]]*\]|[^:]*):([^:]*)", place)
    host, port = (match[1], match[2]) if match else (place, usual)
    host = host.strip("[]") or "127.0.0.1"
    port = port if port.isdecimal() and int(port) <= 65535 else usual
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        host = {4: "127.0.0.1", 6: "::1"}[address.version] if address.is_unspecified else str(address)
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
