"""A stand-in for vllm-mlx and the Python it lives in: `World.fake_mlx(**switches)` writes both.

    version, mlx_lm   what is installed there
    health            what /health answers
    breaks            nothing there runs

and every switch of the stand-in for llama-server, which does the serving.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

#: the folder of the stand-ins is on the path, this package is not
serve = importlib.import_module("llama_server").main

FLAGS = (
    "--served-model-name --host --port --api-key --timeout --max-tokens --max-request-tokens --offline "
    "--enable-auto-tool-choice --tool-call-parser --reasoning-parser --default-chat-template-kwargs "
    "--prefill-step-size --default-temperature --default-top-p --default-min-p"
).split()


def main(switches: dict[str, Any]) -> None:
    argv = sys.argv[1:]
    if argv[0].endswith("/vllm-mlx"):
        # the entry point, which names this program as its interpreter
        del argv[0]
    if switches.get("breaks"):
        sys.exit("ModuleNotFoundError: No module named 'mlx'")
    if argv[:2] == ["-I", "-c"]:
        versions = {"vllm-mlx": switches.get("version", "0.6.0"), "mlx-lm": switches.get("mlx_lm", "0.31.3")}
        print(json.dumps(versions))
        return
    if argv == ["serve", "--help"]:
        print("\n".join(f"{flag} X" for flag in FLAGS))
        return
    # mlx_server.py KEYFILE serve MODEL …
    _, key_file, _, model, *rest = argv
    alias = rest[rest.index("--served-model-name") + 1]
    sys.argv = ["vllm-mlx", "--model", model, "--alias", alias, "--api-key-file", key_file, *rest]
    health = switches.get("health", {"status": "healthy", "model_loaded": True})
    serve({**switches, "routes": {"/health": health, **switches.get("routes", {})}})
