"""What is true of this machine and of a model's files, as frozen data.

Discovery reads the machine once; facts about a model are added as more of it is seen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from packaging.version import Version

from cclocal.errors import SandboxError
from cclocal.memory.projector import Projector
from cclocal.memory.shape import Shape
from cclocal.paths import Env
from cclocal.settings import Speculation


def version_in(text: str) -> Version | None:
    """The first version number in a text, such as 0.17.4 or the 7342 of "b7342 (4f6e2a1)"; None if there is none."""
    found = re.search(r"\d+(\.\d+)*", text)
    return Version(found[0]) if found else None


@dataclass(frozen=True, slots=True)
class Gpu:
    """A graphics processor. vendor: nvidia, amd or apple; unified: it has no memory of its own; 0 bytes = unknown."""

    vendor: str
    name: str
    total_bytes: int = 0
    free_bytes: int = 0
    unified: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware and its system. os: linux or macos; arch: x86_64 or arm64."""

    os: str
    os_version: str
    arch: str
    ram_bytes: int
    gpus: tuple[Gpu, ...] = ()
    #: free now, or left under a container's limit if that is less
    available_bytes: int = 0
    #: the limit of a Mac's GPU memory, if it was set (0 = the system's own share; None = it cannot be set)
    wired_limit_mib: int | None = 0
    #: Metal's recommended working set in bytes, as MLX reports it; 0 if MLX is not installed
    mlx_limit_bytes: int = 0
    #: which boot of the machine this is
    boot_id: str = ""
    #: physical cores that a process may use; 0 where engines know better how many threads to start
    cores: int = 0
    #: describes available_bytes
    memory_words: str = "the memory that is free now"

    @property
    def is_apple_silicon(self) -> bool:
        """Whether MLX runs on this machine's GPU."""
        return self.os == "macos" and self.arch == "arm64"


@dataclass(frozen=True, slots=True)
class ServerSandbox:
    """What an engine's server runs in: bubblewrap, and the folders of the engine, which are shown read-only inside."""

    program: str
    folders: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Engine:
    """An inference engine that was found on this machine.

    form: which of a backend's engines it is; only that backend reads it. title: the form in words. flags: every flag
    that its help names. devices: the GPUs it lists, empty for a CPU-only build. uses: "listed" computes on those
    devices, "everything" on whatever GPUs there are, "untold" does not say. url: of a server that runs already, which
    is used and never stopped. unix_socket: it can listen on a unix socket instead of a port. asks_devices: a command
    that prints its devices. workers: other machines whose devices it uses, as host:port. sandbox: its server's; None if
    there is none, or if the engine does not run in it.
    """

    form: str
    command: tuple[str, ...]
    version: str
    flags: frozenset[str]
    devices: tuple[str, ...] = ()
    title: str = ""
    uses: Literal["listed", "everything", "untold"] = "listed"
    url: str = ""
    unix_socket: bool = False
    asks_devices: tuple[str, ...] = ()
    workers: tuple[str, ...] = ()
    sandbox: ServerSandbox | None = None

    @property
    def on_processor(self) -> bool:
        """Whether it computes on the processor alone."""
        return self.uses == "listed" and not self.devices

    @property
    def device_names(self) -> tuple[str, ...]:
        """Its devices without how much of their memory is free."""
        return tuple(device.split(" (")[0] for device in self.devices)

    def left_with(self, workers: tuple[str, ...]) -> Engine:
        """The same with some of its workers only."""
        gone = set(self.workers) - set(workers)
        devices = tuple(device for device in self.devices if not any(f": {worker} (" in device for worker in gone))
        return replace(self, workers=workers, devices=devices)


@dataclass(frozen=True, slots=True)
class AgentFound:
    """An agent's program on this machine.

    `context`: what else the agent looked up here; only the agent reads it. `remedy`: what to try where it cannot work.
    """

    path: Path
    version: str
    context: Any = None
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another model of the catalog, as far as memory goes."""

    id: str
    name: str
    shape: Shape
    context_tokens: int
    projector: Projector | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that a plan may depend on beside the model and the settings.

    cached: (repository, file) → the file on disk. shapes: what the headers of model files mean for memory, by the path
    that a plan gives the model. strict: the models whose chat templates take one system message, by the same paths.
    projectors: those of vision models, by file name. read_per_s: tokens of a prompt read per second, by model.
    """

    machine: Machine
    env: Env
    cwd: Path
    #: what serves models here, by backend, best first
    engines: Mapping[str, tuple[Engine, ...]] = field(default_factory=dict)
    agent: AgentFound | None = None
    #: why the agent's program cannot be used, if it cannot
    agent_problem: str = ""
    #: the bubblewrap that works here, or why there is none, if a sandbox is asked for
    sandbox: str = ""
    sandbox_error: SandboxError | None = None
    #: the MCP servers that the user gives the agent, by name
    mcp: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: how a package is added to the environment cclocal itself runs in
    pip: tuple[str, ...] = ("pip", "install")
    git_root: Path | None = None
    cached: Mapping[tuple[str, str], Path] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    strict: frozenset[str] = frozenset()
    #: the models whose chat templates know no tools
    toolless: frozenset[str] = frozenset()
    #: the other models of the store that serves the chosen one, those that call tools
    tags: Mapping[str, Shape] = field(default_factory=dict)
    #: whether a model of a store sees pictures; None: it is not there yet
    tag_sees: bool | None = None
    projectors: Mapping[str, Projector] = field(default_factory=dict)
    read_per_s: Mapping[str, float] = field(default_factory=dict)
    #: the models of the catalog whose dimensions are published, for when another one does not fit
    alternatives: tuple[Alternative, ...] = ()
    #: by checks.results.key: whether the agent can work, by the newest check
    proofs: Mapping[str, bool] = field(default_factory=dict)
    #: whether a state that was restored was of use, by Plan.restores_key and what it was of
    restores: Mapping[str, bool] = field(default_factory=dict)
    #: the kind of speculation that was the fastest here, by checks.tuning.key
    tuned: Mapping[str, Speculation] = field(default_factory=dict)
    #: bytes that earlier starts used beyond their plan, by planning.memory.correction_key
    corrections: Mapping[str, int] = field(default_factory=dict)

    def with_shape(self, model_path: str, shape: Shape, *, is_toolless: bool = False) -> Facts:
        """The same, with what a header says that was read from elsewhere."""
        toolless = self.toolless | {model_path} if is_toolless else self.toolless
        return replace(self, shapes={**self.shapes, model_path: shape}, toolless=toolless)
