"""Recorded facts of machines that cannot be run here, for golden plans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cclocal import tiny
from cclocal.agents.claude.command import Context
from cclocal.backends.llama_server.xllamacpp_server import flags
from cclocal.facts import AgentFound, Engine, Facts, Gpu, Machine
from cclocal.memory.gguf import read_header
from cclocal.memory.projector import published_projector
from cclocal.memory.shape import published_shape, shape_of
from cclocal.models.catalog import Model
from cclocal.paths import Env, Folders
from cclocal.planning.choose import model_path

GIB, MIB = 2**30, 2**20


def _mac(name: str, cores: int, ram_gib: int, macos: str = "26.1") -> Machine:
    gpu = Gpu("apple", f"{name} GPU", unified=True)
    return Machine("macos", macos, "arm64", ram_gib * GIB, (gpu,))


#: The memory of cards and of what Metal grants is as reported by their owners; what is free is made up.
_RTX_4090 = Gpu("nvidia", "NVIDIA GeForce RTX 4090", 24564 * MIB, 24100 * MIB)
_STRIX_HALO = Gpu("amd", "Radeon 8060S Graphics", 103079215104, 102 * 10**9, unified=True)
MACHINES = {
    "mac-16": _mac("Apple M2", 8, 16),
    "mac-24": _mac("Apple M4", 10, 24),
    "mac-36-old": _mac("Apple M3 Max", 14, 36, "15.5"),
    "mac-64": _mac("Apple M3 Max", 16, 64),
    "mac-128": _mac("Apple M5 Max", 18, 128),
    "linux-cpu": Machine("linux", "6.8.0", "x86_64", 32 * GIB, (), 28 * GIB),
    "linux-4090": Machine("linux", "6.8.0", "x86_64", 64 * GIB, (_RTX_4090,), 58 * GIB),
    "linux-4090-cpu-engine": Machine("linux", "6.8.0", "x86_64", 64 * GIB, (_RTX_4090,), 58 * GIB),
    "linux-strix-halo": Machine("linux", "7.1.0", "x86_64", 128 * GIB, (_STRIX_HALO,), 118 * GIB),
}
#: What their engines say of themselves (--list-devices); nothing = a build for the processor alone.
DEVICES = {
    "mac-16": "MTL0: Apple M2 (12124 MiB, 12124 MiB free)",
    "mac-24": "MTL0: Apple M4 (18186 MiB, 18185 MiB free)",
    "mac-36-old": "MTL0: Apple M3 Max (27648 MiB, 27648 MiB free)",
    # a build too old to tell
    "mac-64": "MTL0: Apple GPU",
    "mac-128": "MTL0: Apple M5 Max (110100 MiB, 110100 MiB free)",
    "linux-4090": "CUDA0: NVIDIA GeForce RTX 4090 (24082 MiB, 23687 MiB free)",
    "linux-strix-halo": "Vulkan0: Radeon 8060S Graphics (97500 MiB, 89168 MiB free)",
}

ENVIRON = {
    "HOME": "/home/ada",
    "PATH": "/home/ada/bin:/usr/bin:/bin",
    "TERM": "xterm-256color",
    "LANG": "en_GB.UTF-8",
    "JAVA_HOME": "/opt/java",
    "ANTHROPIC_API_KEY": "sk-ant-real",
    "AWS_PROFILE": "work",
    "HTTPS_PROXY": "http://proxy:3128",
}


def engine(name: str) -> Engine:
    devices = (DEVICES[name],) if name in DEVICES else ()
    command = ("/opt/cclocal/bin/python", "-P", "-m", "cclocal.backends.llama_server.xllamacpp_server")
    return Engine("wheel", command, "2026.10", flags(), devices, "inside the xllamacpp package")


#: vllm-mlx 0.6.0's flags as its help names them, and Ollama, which has none.
ENGINES = {
    "vllm-mlx": Engine(
        "vllm-mlx",
        ("/home/ada/.local/share/uv/tools/vllm-mlx/bin/python", "/opt/cclocal/wrapper.py"),
        "0.6.0, mlx-lm 0.31.3",
        frozenset(
            """--served-model-name --host --port --api-key --timeout --max-tokens --max-request-tokens --offline
            --enable-auto-tool-choice --tool-call-parser --reasoning-parser --default-chat-template-kwargs
            --prefill-step-size --default-temperature --default-top-p --default-top-k --default-min-p""".split()
        ),
        title="in its own environment",
        uses="untold",
    ),
    "ollama": Engine(
        "ollama", ("/usr/local/bin/ollama",), "0.17.4", frozenset(), title="a separate daemon", uses="everything"
    ),
}


def facts(name: str, model: Model | None = None, backend: str = "llama-server") -> Facts:
    """A machine of MACHINES with one backend, and a model none of whose files is there yet."""
    root = Path("/home/ada/.local")
    env = Env(ENVIRON, Folders(root / "config", root / "data", root / "cache", root / "state"))
    here = Facts(
        machine=MACHINES[name],
        env=env,
        cwd=Path("/home/ada/project"),
        engines={backend: (ENGINES[backend] if backend in ENGINES else engine(name),)},
        agent=AgentFound(Path("/usr/bin/claude"), "2.1.331", Context(mcp_config=Path("/opt/cclocal/mcp-local.json"))),
    )
    for variant in model.variants if model else ():
        shape = None
        if variant.builtin:
            shape = shape_of(read_header(tiny.gguf()))
        elif model and not variant.tag:
            shape = published_shape(model.shape, variant.shape_form, variant.size_bytes)
        here = here.with_shape(model_path(variant, here), shape) if shape else here
        projector = published_projector(model.shape) if model and variant.mmproj else None
        here = replace(here, projectors={str(variant.mmproj): projector}) if projector else here
    return here
