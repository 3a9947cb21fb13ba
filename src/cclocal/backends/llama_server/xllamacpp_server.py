"""llama.cpp's own HTTP server from the xllamacpp wheel, as a foreground program with llama-server's flags.

    python -m cclocal.backends.llama_server.xllamacpp_server --model X.gguf --port 8123 …

The flags are a subset of llama-server's with the same names and meaning, so that one command line serves both
forms of the engine. `--help` and FLAGS list them; what the wheel cannot do (`--override-kv`) is not among them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cclocal.programs import own_cores

_KV_TYPES = ("f16", "bf16", "q8_0", "q5_1", "q4_0")


def parser() -> argparse.ArgumentParser:
    """The command line, without importing the engine."""
    p = argparse.ArgumentParser(
        prog="python -m cclocal.backends.llama_server.xllamacpp_server",
        description="llama.cpp's HTTP server from the xllamacpp wheel",
        allow_abbrev=False,
    )
    p.add_argument("--model", required=True, metavar="FILE", help="the GGUF file")
    p.add_argument("--alias", metavar="NAME", help="the model's name in replies")
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, default=0, help="0 = any free one")
    p.add_argument("--api-key-file", metavar="FILE", help="one key per line")
    p.add_argument("--ctx-size", type=int, default=0, metavar="TOKENS", help="0 = the model's own")
    p.add_argument("--batch-size", type=int, default=2048, metavar="TOKENS")
    p.add_argument("--ubatch-size", type=int, default=512, metavar="TOKENS")
    p.add_argument("--parallel", type=int, default=1, metavar="SLOTS")
    p.add_argument("--slot-prompt-similarity", type=float, metavar="SHARE", help="of a prompt that its slot must have")
    p.add_argument("--threads", type=int, metavar="N", help="that write; default: one per usable core")
    p.add_argument("--threads-batch", type=int, metavar="N", help="that read prompts; default: as many")
    p.add_argument("--cache-ram", type=int, default=0, metavar="MIB", help="host memory for idle prompts")
    p.add_argument("--timeout", type=int, default=3600, metavar="SECONDS", help="read and write timeout")
    p.add_argument("--jinja", action="store_true", help="always on; accepted for compatibility with llama-server")
    p.add_argument("--no-webui", action="store_true", help="no web page")
    p.add_argument("--offline", action="store_true", help="no network")
    p.add_argument("--chat-template-file", metavar="FILE")
    p.add_argument("--chat-template-kwargs", type=json.loads, default={}, metavar="JSON")
    p.add_argument("--reasoning-budget", type=int, metavar="TOKENS", help="0 = no thinking")
    p.add_argument("--mmproj", metavar="FILE", help="the projector of a vision model")
    p.add_argument("--image-max-tokens", type=int, metavar="TOKENS", help="of one picture")
    p.add_argument("--slot-save-path", metavar="FOLDER")
    p.add_argument("--cache-type-k", choices=_KV_TYPES, help="the KV cache's type")
    p.add_argument("--cache-type-v", choices=_KV_TYPES)
    p.add_argument("--flash-attn", choices=("on", "off", "auto"))
    kinds = ("ngram-simple", "ngram-mod", "draft-mtp")
    p.add_argument("--spec-type", choices=kinds, help="decode several tokens in one step")
    p.add_argument("--spec-draft-n-max", type=int, metavar="N", help="draft-mtp: tokens guessed in a step")
    p.add_argument("--spec-ngram-mod-n-match", type=int, metavar="N")
    p.add_argument("--spec-ngram-mod-n-min", type=int, metavar="N")
    p.add_argument("--spec-ngram-mod-n-max", type=int, metavar="N")
    p.add_argument("--n-gpu-layers", type=int, metavar="N", help="default: as many as fit")
    p.add_argument("--log-verbosity", type=int, metavar="N", help="3 = events, 4 = also the sizes of buffers")
    p.add_argument("--temp", type=float)
    p.add_argument("--top-p", type=float)
    p.add_argument("--top-k", type=int)
    p.add_argument("--min-p", type=float)
    p.add_argument("--repeat-penalty", type=float, dest="penalty_repeat", metavar="REPEAT_PENALTY")
    return p


def flags() -> frozenset[str]:
    """Every flag this form of the server understands."""
    return frozenset(flag for action in parser()._actions for flag in action.option_strings)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until TERM or INT. Exit status 1 if the server cannot start; the cause is on stderr."""
    options = parser().parse_args(argv)
    import xllamacpp

    try:
        server = xllamacpp.Server(_params(xllamacpp, options))
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    # Only now: until the model is loaded the default action must end us at once.
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    print(f"server is listening on {server.listening_address}", flush=True)
    stop.wait()
    del server
    # the engine's threads may outlive the object; nothing is left to flush
    os._exit(0)


def _params(engine: Any, options: argparse.Namespace) -> Any:
    """llama.cpp's CommonParams for the options."""
    p = engine.CommonParams()
    p.model.path = options.model
    p.hostnames = [options.host]
    p.port = options.port
    p.n_ctx = options.ctx_size
    p.n_batch = options.batch_size
    p.n_ubatch = options.ubatch_size
    p.n_parallel = options.parallel
    p.cache_ram_mib = options.cache_ram
    p.timeout_read = p.timeout_write = options.timeout
    p.use_jinja = True
    if options.slot_prompt_similarity is not None:
        p.slot_prompt_similarity = options.slot_prompt_similarity
    p.ui = not options.no_webui
    p.offline = options.offline
    # with more than the usable cores llama.cpp's threads wait for each other in busy loops
    p.cpuparams.n_threads = options.threads or own_cores()
    p.cpuparams_batch.n_threads = options.threads_batch or p.cpuparams.n_threads
    if options.alias:
        p.model_alias = {options.alias}
    if options.api_key_file:
        lines = Path(options.api_key_file).read_text("utf-8").splitlines()
        p.api_keys = [line for line in map(str.strip, lines) if line and not line.startswith("#")]
    if options.chat_template_file:
        p.chat_template = Path(options.chat_template_file).read_text("utf-8")
    if options.chat_template_kwargs:
        p.default_template_kwargs = {k: json.dumps(v) for k, v in options.chat_template_kwargs.items()}
    if options.mmproj:
        p.mmproj.path = options.mmproj
    if options.image_max_tokens:
        p.image_max_tokens = options.image_max_tokens
    if options.slot_save_path:
        p.slot_save_path = options.slot_save_path.rstrip("/") + "/"
    for name, wish in (("cache_type_k", options.cache_type_k), ("cache_type_v", options.cache_type_v)):
        if wish:
            setattr(p, name, getattr(engine.ggml_type, f"GGML_TYPE_{wish.upper()}"))
    if options.flash_attn:
        kinds = {"on": "ENABLED", "off": "DISABLED", "auto": "AUTO"}
        p.flash_attn_type = getattr(engine.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{kinds[options.flash_attn]}")
    if options.spec_type:
        kind = options.spec_type.replace("-", "_").upper()
        p.speculative.types = [getattr(engine.common_speculative_type, f"COMMON_SPECULATIVE_TYPE_{kind}")]
        for name in ("n_match", "n_min", "n_max"):
            if (value := getattr(options, f"spec_ngram_mod_{name}")) is not None:
                setattr(p.speculative.ngram_mod, name, value)
        if options.spec_draft_n_max is not None:
            p.speculative.draft.n_max = options.spec_draft_n_max
    if options.n_gpu_layers is not None:
        p.n_gpu_layers = options.n_gpu_layers
    if options.log_verbosity is not None:
        p.verbosity = options.log_verbosity
    if options.reasoning_budget is not None:
        p.sampling.reasoning_budget_tokens = options.reasoning_budget
        if options.reasoning_budget == 0:
            p.enable_reasoning = 0
    _sample(engine, p.sampling, options)
    return p


def _sample(engine: Any, sampling: Any, options: argparse.Namespace) -> None:
    """The requested sampling, marked as set: a GGUF file's own values replace unmarked ones."""
    for name in ("temp", "top_p", "top_k", "min_p", "penalty_repeat"):
        if (value := getattr(options, name)) is not None:
            setattr(sampling, name, value)
            bit = f"COMMON_PARAMS_SAMPLING_CONFIG_{name.upper()}"
            sampling.user_sampling_config |= int(getattr(engine.common_params_sampling_config, bit))


if __name__ == "__main__":
    main()
