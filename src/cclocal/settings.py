"""What the user wants, and where each wish came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Every lasting default that config.toml may hold under [defaults], with its type.
DEFAULT_TYPES: Mapping[str, type] = {
    "model": str,
    "backend": str,
    "llama_server": str,
    "ctx": int,
    "out_tokens": int,
    "port": int,
    "pass_env": list,
    "safe": bool,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """The wishes of one launch. None means: not said, so the catalog or the plan decides.

    `llama_server` is a path to a llama-server binary, or "wheel" for the engine inside the xllamacpp package.
    `sources` says where each one came from: "command line", "environment", "user file" or "default".
    """

    model: str | None = None
    backend: str | None = None
    llama_server: str | None = None
    ctx: int | None = None
    out_tokens: int | None = None
    port: int | None = None
    pass_env: tuple[str, ...] = ()
    server_only: bool = False
    agent_args: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
