"""Recorded facts of machines we cannot run here, for golden plans."""

from __future__ import annotations

from pathlib import Path

from cclocal.facts import AgentFound, Engine, Facts, Gpu, Machine
from cclocal.files import Folders
from cclocal.wheel_server import flags

GIB = 2**30


def _mac(name: str, cores: int, ram_gib: int) -> Machine:
    return Machine("macos", "26.1", "arm64", name, cores, ram_gib * GIB, (Gpu("apple", f"{name} GPU"),))


MACHINES = {
    "mac-16": _mac("Apple M2", 8, 16),
    "mac-24": _mac("Apple M4", 10, 24),
    "mac-64": _mac("Apple M3 Max", 16, 64),
    "linux-cpu": Machine("linux", "6.8.0", "x86_64", "AMD Ryzen 7 5800X 8-Core Processor", 8, 32 * GIB),
    "linux-4090": Machine(
        "linux", "6.8.0", "x86_64", "AMD Ryzen 9 7950X", 16, 64 * GIB, (Gpu("nvidia", "NVIDIA GeForce RTX 4090"),)
    ),
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


def engine(machine: Machine) -> Engine:
    devices = {"macos": ("MTL0: Apple GPU",), "linux": ()}[machine.os]
    return Engine("wheel", ("/opt/cclocal/bin/python", "-P", "-m", "cclocal.wheel_server"), "2026.10", flags(), devices)


def facts(machine: Machine) -> Facts:
    root = Path("/home/ada/.local")
    return Facts(
        machine=machine,
        folders=Folders(root / "config", root / "data", root / "cache", root / "state"),
        cwd=Path("/home/ada/project"),
        environ=ENVIRON,
        engines=(engine(machine),),
        agent=AgentFound(Path("/usr/bin/claude"), "2.1.329"),
        mcp_config=Path("/opt/cclocal/mcp-local.json"),
    )
