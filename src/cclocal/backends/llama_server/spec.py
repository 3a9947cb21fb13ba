"""llama.cpp's HTTP server, in two forms behind one name.

A `llama-server` on PATH, else the same server inside the xllamacpp wheel (cclocal.backends.llama_server.xllamacpp_server gives it the same
flags). Facts: llama.cpp's tools/server/README.md, and runs of both forms in the tests.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from cclocal.command import (
    SERVER_NAMES,
    SERVER_PREFIXES,
    Command,
    Endpoint,
    Readiness,
    SessionFile,
    Stop,
)
from cclocal.facts import Engine, Facts
from cclocal.models.catalog import Model, Variant

if TYPE_CHECKING:
    from cclocal.backends import Serving

NAME = "llama-server"
INSTALL = 'pip install "cclocal[engine]"    or: brew install llama.cpp'
#: TERM waits for the batch in flight (58-88 s measured on a large CPU model), so it cannot be waited for; a Mac
#: that loses a process holding wired memory by KILL may leak it, so TERM gets its time first.
STOP = Stop((("TERM", 5.0), ("KILL", 2.0)))

#: Flags every launch relies on: without one of them the engine is too old.
NEEDED = ("--jinja", "--api-key-file", "--alias", "--parallel", "--ctx-size")
#: Without it no prompt is kept.
SLOT_SAVE_PATH = "--slot-save-path"
#: Above Claude Code's own 30 minutes, so that the server is never the first to hang up.
SERVER_TIMEOUT_S = 3600
LOG_VERBOSITY = 4
#: llama.cpp's own default.
DEFAULT_BATCH_TOKENS = 2048


def unsupported(engine: Engine, variant: Variant) -> str | None:
    if too_old := _too_old(engine, variant):
        return too_old
    missing = [flag for flag in (*NEEDED, *_variant_flags(variant)) if not engine.has(flag)]
    if not missing:
        return None
    if engine.form == "wheel":
        return f"the engine in the xllamacpp wheel has no {', '.join(missing)}; a llama-server on PATH has"
    return f"{engine.command[0]} (version {engine.version}) has no {', '.join(missing)}; a newer llama.cpp has"


def _too_old(engine: Engine, variant: Variant) -> str | None:
    """`requires` names the oldest "xllamacpp" and the oldest build of "llama-server" that run the variant."""
    name = "xllamacpp" if engine.form == "wheel" else "llama-server"
    wanted = variant.requires.get(name)
    numbers = re.findall(r"\d+", engine.version)
    # a build from source may not know its number; then only the flags tell
    if not wanted or not numbers or engine.version.startswith("unknown"):
        return None
    if [int(n) for n in numbers] >= [int(n) for n in re.findall(r"\d+", wanted)]:
        return None
    return f"it needs {name} {wanted} or newer, and this is {engine.version}"


def _variant_flags(variant: Variant) -> list[str]:
    """The flags without which this variant would run wrongly rather than slowly."""
    flags: list[str] = []
    if variant.override_kv:
        flags.append("--override-kv")
    if variant.mmproj:
        flags.append("--mmproj")
    if variant.reasoning_budget_tokens is not None:
        flags.append("--reasoning-budget")
    if variant.template_kwargs:
        flags.append("--chat-template-kwargs")
    if variant.chat_template_file:
        flags.append("--chat-template-file")
    if variant.kv_type != "f16":
        flags += ["--cache-type-k", "--cache-type-v"]
    if variant.gpu_layers is not None:
        flags.append("--n-gpu-layers")
    if variant.cpu_moe_layers:
        flags.append("--n-cpu-moe")
    return flags


def notes(engine: Engine, facts: Facts) -> tuple[str, ...]:
    gpus = facts.machine.gpus
    names = " and ".join(gpu.name for gpu in gpus)
    if engine.devices:
        return ()
    if not gpus:
        return ("No GPU was found: the model runs on the CPU, which is slow for anything but the smallest.",)
    vendor = gpus[0].vendor
    if vendor == "apple":
        cure = "brew install llama.cpp"
    else:
        index = "cu128" if vendor == "nvidia" else "rocm-6.4.1"
        cure = f"{facts.pip} xllamacpp --force-reinstall --index-url https://xorbitsai.github.io/xllamacpp/whl/{index}"
        if engine.form == "binary":
            cure += "    and then --llama-server wheel"
    return (f"This engine uses only the CPU and leaves {names} idle. To change that: {cure}",)


def endpoint(
    engine: Engine, model: Model, variant: Variant, context_tokens: int, port: int | None, records: str
) -> Endpoint:
    return Endpoint.of_session(port, model.id)


def command(engine: Engine, serving: Serving) -> tuple[Command, tuple[SessionFile, ...]]:
    variant = serving.variant
    key_file = SessionFile("key", serving.endpoint.key + "\n")
    argv = [
        *engine.command,
        *("--model", serving.model_file),
        *("--alias", serving.endpoint.model),
        *("--host", "127.0.0.1"),
        *("--port", serving.port),
        *("--api-key-file", key_file.path),
        *("--ctx-size", str(serving.context_tokens)),
        # One slot: four (the default) split the cache, and Claude-sized requests lose their shared prefix.
        *("--parallel", str(variant.slots)),
        "--jinja",
    ]

    def add(flag: str, value: object) -> None:
        if value is not None and engine.has(flag):
            argv.extend((flag, str(value)))

    # 8 GiB of host memory by default, which no plan counted on.
    add("--cache-ram", variant.cache_ram_mib)
    add("--timeout", SERVER_TIMEOUT_S)
    add(SLOT_SAVE_PATH, serving.warm or None)
    batch = max(variant.batch_tokens or DEFAULT_BATCH_TOKENS, variant.ubatch_tokens or 0)
    # a micro-batch beyond the batch would silently be cut to it
    add("--batch-size", batch if batch > DEFAULT_BATCH_TOKENS else variant.batch_tokens)
    add("--ubatch-size", variant.ubatch_tokens)
    if variant.kv_type != "f16":
        argv += ["--cache-type-k", variant.kv_type, "--cache-type-v", variant.kv_type]
        # llama.cpp refuses a quantised V without it
        add("--flash-attn", "on")
    add("--n-gpu-layers", variant.gpu_layers)
    if variant.cpu_moe_layers:
        argv += ["--n-cpu-moe", str(variant.cpu_moe_layers)]
    # only from there on does the log tell the buffers' sizes
    add("--log-verbosity", LOG_VERBOSITY)
    add("--mmproj", serving.mmproj_file)
    add("--chat-template-file", variant.chat_template_file)
    if variant.template_kwargs:
        add("--chat-template-kwargs", json.dumps(dict(variant.template_kwargs), separators=(",", ":")))
    add("--reasoning-budget", variant.reasoning_budget_tokens)
    for override in variant.override_kv:
        add("--override-kv", override)
    sampling = variant.sampling
    add("--temp", sampling.temp)
    add("--top-p", sampling.top_p)
    add("--top-k", sampling.top_k)
    add("--min-p", sampling.min_p)
    add("--repeat-penalty", sampling.repeat_penalty)
    argv += [flag for flag in ("--no-webui", "--offline") if engine.has(flag)]
    argv += variant.extra_args
    return Command(tuple(argv), keep=frozenset(SERVER_NAMES), keep_prefixes=SERVER_PREFIXES), (key_file,)


def readiness(engine: Engine, serving: Serving) -> Readiness:
    return Readiness(serving.endpoint)
