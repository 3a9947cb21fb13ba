"""vllm-mlx: MLX models on Apple's GPUs, through its own `serve`, in the versions that were tested.

Facts, from vllm-mlx 0.6.0 run for real (on a processor): it listens only once the model is loaded; it knows no context
window, so it computes a prompt of any length; by default a second request fails while one is running; its own request
timeout of 300 s ends a long prefill; of a prompt that it has read it keeps the system message and the tools alone, so
each turn reads the conversation again; with --continuous-batching, which keeps it, it writes states to disk that are
keyed by tokens without the model's weights or a checksum, and answered wrongly after an ordinary restart; KV
quantisation covers stored prefixes only; top-k and penalties switch its prefix cache off; VLLM_MLX_ENABLE_THINKING does
nothing for text models.
"""

from __future__ import annotations

import json
from pathlib import Path

from packaging.version import Version

from cclocal.backends.request import SERVER_TIMEOUT_S, Backend, ServeRequest
from cclocal.command import SERVER_NAMES, SERVER_PREFIXES, Binding, Command, CommandAndFiles
from cclocal.facts import Engine, Facts, Machine, version_in
from cclocal.models.catalog import Variant
from cclocal.settings import Sight

#: Flags every launch relies on: without one of them it is too old.
NEEDED = ("--served-model-name", "--api-key", "--timeout", "--max-request-tokens", "--offline")
#: The first version that works, and the first that was not tested.
OLDEST, UNTRIED = Version("0.6"), Version("0.7")
#: Older ones execute code from a model's repository (CVE-2026-5843).
OLDEST_MLX_LM = Version("0.31.3")


class VllmMlxSpec(Backend):
    """vllm-mlx's own server."""

    NAME = "vllm-mlx"
    INSTALL = 'uv tool install "vllm-mlx>=0.6,<0.7" --with "mlx-lm>=0.31.3"'
    RUNTIME = "cclocal.backends.vllm_mlx.runtime:VllmMlx"
    LOG_READER = str(Path(__file__).with_name("wrapper.py"))
    WIRES = frozenset({"anthropic", "chat", "responses"})
    FORMS = ("mlx",)
    ASKED_BY = frozenset({"parser"})
    KEEPS_TURNS = False
    #: TERM alone waits for the stream in flight, without limit; INT after it does not. A Mac that loses a process
    #: holding wired memory by KILL may keep that memory wired until it is restarted, so KILL comes late.
    STOP = (("TERM", 1.0), ("INT", 30.0), ("KILL", 2.0))

    def sees(self, variant: Variant, facts: Facts) -> Sight | None:
        # 0.6 drops pictures in results of tools without a word; a model that sees any was not run
        return "none"

    def rank(self, machine: Machine) -> int:
        return 0 if machine.is_apple_silicon else 2

    def unsupported(self, engine: Engine, variant: Variant) -> str | None:
        version, mlx_lm = versions(engine)
        if version and version < OLDEST:
            return f"vllm-mlx {version} is too old: {OLDEST} or newer is needed"
        if mlx_lm and mlx_lm < OLDEST_MLX_LM:
            why = f"before {OLDEST_MLX_LM} mlx-lm executes code from a model's repository"
            return f"its mlx-lm {mlx_lm} is too old: {why}"
        if missing := [flag for flag in NEEDED if flag not in engine.flags]:
            return f"{engine.command[0]} (version {engine.version}) does not support {', '.join(missing)}"
        if variant.kv_type not in ("f16", "bf16"):
            return f"vllm-mlx keeps the KV cache in 16 bits; {variant.kv_type} would apply only to stored prefixes"
        if variant.slots > 1 or variant.cpu_moe_layers or variant.gpu_layers is not None:
            return "cclocal does not support --slots above 1, --cpu-moe or --gpu-layers with vllm-mlx"
        lost = [key for key in ("chat_template_file", "mmproj", "override_kv") if getattr(variant, key)]
        lost += ["speculate"] if variant.speculate != "off" else []
        return f"vllm-mlx has no setting for {', '.join(lost)}" if lost else None

    def notes(self, engine: Engine, facts: Facts) -> tuple[str, ...]:
        version, _ = versions(engine)
        said = []
        if version and version >= UNTRIED:
            said.append(f"vllm-mlx {engine.version} is newer than the versions cclocal was tested with.")
        if not facts.machine.is_apple_silicon:
            said.append("MLX computes on the processor here, which is slow for anything but the smallest model.")
        return tuple(said)

    def command(self, engine: Engine, request: ServeRequest, binding: Binding) -> CommandAndFiles:
        variant = request.variant
        argv = [
            *engine.command,
            binding.file("key"),
            "serve",
            request.model_file,
            *("--served-model-name", request.model.id),
            *("--host", "127.0.0.1"),
            *("--port", binding.server_port),
            *("--timeout", str(SERVER_TIMEOUT_S)),
            # it has no context window of its own; a longer request is refused with 400
            *("--max-request-tokens", str(request.context_tokens)),
            *("--max-tokens", str(request.context_tokens)),
            "--offline",
        ]

        def add(flag: str, value: object) -> None:
            if value is not None and flag in engine.flags:
                argv.extend((flag, str(value)))

        if variant.tool_parser:
            # the parser "auto" turns tool results into plain text
            argv += ["--enable-auto-tool-choice", "--tool-call-parser", variant.tool_parser]
        add("--reasoning-parser", variant.reasoning_parser)
        if variant.template_kwargs:
            add("--default-chat-template-kwargs", json.dumps(dict(variant.template_kwargs), separators=(",", ":")))
        add("--default-thinking-token-budget", variant.reasoning_budget_tokens)
        add("--prefill-step-size", variant.ubatch_tokens)
        sampling = variant.sampling
        add("--default-temperature", sampling.temp)
        add("--default-top-p", sampling.top_p)
        add("--default-min-p", sampling.min_p)
        argv += variant.extra_args
        env = {
            # two requests at once wait for each other instead of failing
            "VLLM_MLX_SIMPLE_ENGINE_LOCK_ADMISSION": "wait",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        return Command(tuple(argv), env, keep=frozenset(SERVER_NAMES), keep_prefixes=SERVER_PREFIXES), {
            "key": binding.server_key + "\n"
        }


def versions(engine: Engine) -> tuple[Version | None, Version | None]:
    """(vllm-mlx's own version, mlx-lm's), None where they are not known."""
    own, _, mlx_lm = engine.version.partition(", mlx-lm ")
    return version_in(own), version_in(mlx_lm)
