"""What the user wants, and where each wish came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Kind:
    """What a setting may be: its type, and the range of a number."""

    type: type
    at_least: int | None = None
    at_most: int | None = None

    @property
    def in_words(self) -> str:
        words = {int: "a whole number", str: "a text", bool: "true or false", list: "a list of texts"}[self.type]
        if self.at_least is None:
            return words
        return f"{words}, {self.at_least} " + ("or more" if self.at_most is None else f"to {self.at_most}")

    def accepts(self, value: object) -> bool:
        if self.type is list:
            return isinstance(value, list) and all(isinstance(v, str) for v in value)
        if not isinstance(value, self.type) or (self.type is not bool and isinstance(value, bool)):
            return False
        return not isinstance(value, int) or (
            (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)
        )


#: Every lasting default that config.toml may hold under [defaults].
DEFAULTS: Mapping[str, Kind] = {
    "model": Kind(str),
    "backend": Kind(str),
    "llama_server": Kind(str),
    "ctx": Kind(int, 1),
    "out_tokens": Kind(int, 256),
    "port": Kind(int, 1, 65535),
    "kv": Kind(str),
    "slots": Kind(int, 1, 64),
    "ubatch": Kind(int, 1, 65536),
    "gpu_layers": Kind(int, 0),
    "cpu_moe": Kind(int, 0),
    "wired_limit": Kind(int, 1),
    "pass_env": Kind(list),
    "safe": Kind(bool),
    "think": Kind(bool),
    "mem_check": Kind(bool),
    "cold": Kind(bool),
    "lean": Kind(bool),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """The wishes of one launch. None means: not said, so the catalog or the plan decides.

    `llama_server` is a path to a llama-server binary, or "wheel" for the engine inside the xllamacpp package.
    `sources` says where each one came from: "command line", "environment", "user file PATH:LINE" or "default".
    """

    model: str | None = None
    backend: str | None = None
    quant: str | None = None
    #: how the model writes its tool calls, where its own template does not tell
    parser: str | None = None
    #: the agent gets no tools: it talks, and does nothing
    no_tools: bool = False
    llama_server: str | None = None
    ctx: int | None = None
    out_tokens: int | None = None
    port: int | None = None
    pass_env: tuple[str, ...] = ()
    #: let the model think before it answers
    think: bool = False
    #: how the model is held in memory: KV cache type, conversations at once, micro-batch
    kv: str | None = None
    slots: int | None = None
    ubatch: int | None = None
    cache_ram_mib: int | None = None
    #: on a card of its own memory: layers on it, and layers whose experts are not
    gpu_layers: int | None = None
    cpu_moe: int | None = None
    #: on a Mac: the wired limit to raise to for this session
    wired_limit_mib: int | None = None
    mem_check: bool = True
    #: a short system prompt and four tools; None = not said
    lean: bool | None = None
    #: keep nothing of earlier sessions' prompts
    cold: bool = False
    #: start a model that failed its check without asking
    yes: bool = False
    server_only: bool = False
    agent_args: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)

    def changed(self, changes: Mapping[str, Any], source: str) -> Settings:
        """The same wishes with some of them changed, and who changed them."""
        known = {name: value for name, value in changes.items() if value is not None or name == "wired_limit_mib"}
        return replace(self, **known, sources={**self.sources, **dict.fromkeys(known, source)})

    def origin(self, key: str) -> str:
        """Where a setting was made, as the end of a sentence about it; nothing if it stands on the command line."""
        source = self.sources.get(key, "")
        return f" It was set in the {source}." if source.startswith(("user file", "environment")) else ""
