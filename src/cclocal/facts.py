"""What is true of this machine, as frozen data. machine.py reads it; the plan only looks at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cclocal.memory.shape import Shape
from cclocal.paths import Folders


@dataclass(frozen=True, slots=True)
class Gpu:
    """A graphics processor. vendor: nvidia, amd or apple; unified: it has no memory of its own; 0 bytes = not told."""

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
    cpu: str
    cores: int
    ram_bytes: int
    gpus: tuple[Gpu, ...] = ()
    #: free now, or left under a container's limit if that is less
    available_bytes: int = 0
    #: what a Mac's GPU may wire, if somebody set it (0 = the system's own share; None = it cannot be set)
    wired_limit_mib: int | None = 0
    #: what Metal told MLX that it may wire (0 = MLX was not there to ask)
    mlx_limit_bytes: int = 0
    #: what available_bytes is
    memory_words: str = "the memory that is free now"

    @property
    def is_apple_silicon(self) -> bool:
        """Whether MLX is at home here."""
        return self.os == "macos" and self.arch == "arm64"

    @property
    def in_words(self) -> str:
        parts = [f"{self.cpu}, {self.cores} cores, {self.ram_bytes / 2**30:.0f} GB"]
        parts += [g.name for g in self.gpus if g.vendor != "apple"]
        return " · ".join(parts)


@dataclass(frozen=True, slots=True)
class Engine:
    """An inference engine found on this machine.

    form: "binary" (a llama-server program), "wheel" (the same server inside the xllamacpp package), "ollama" (a
    program), "ollama-running" (a daemon) or "vllm-mlx". flags: every flag its help names. devices: the GPUs it can
    use, empty for a CPU-only build.
    """

    form: str
    command: tuple[str, ...]
    version: str
    flags: frozenset[str]
    devices: tuple[str, ...] = ()
    #: of a server that runs already
    url: str = ""

    def has(self, flag: str) -> bool:
        return flag in self.flags


@dataclass(frozen=True, slots=True)
class AgentFound:
    """An agent's program on this machine."""

    path: Path
    version: str


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another model of the catalog, as far as memory goes."""

    id: str
    name: str
    shape: Shape
    context_tokens: int


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything the plan may look at beside the catalog and the settings.

    `environ` is the caller's environment, `cached` maps (repo, file) to a file on disk.
    """

    machine: Machine
    folders: Folders
    cwd: Path
    environ: Mapping[str, str]
    #: what serves models here, by backend, best first
    engines: Mapping[str, tuple[Engine, ...]] = field(default_factory=dict)
    agent: AgentFound | None = None
    cached: Mapping[tuple[str, str], Path] = field(default_factory=dict)
    #: the program behind the agent's status line, without its arguments
    status_line: tuple[str, ...] = ()
    #: how a package is added to the environment cclocal itself runs in
    pip: str = "pip install"
    git_root: Path | None = None
    #: the user's own CLAUDE.md, which reaches a session although their settings files do not
    user_claude_md: Path | None = None
    #: CLAUDE.md of the folders from the repository's root down to cwd, cwd's own not among them, and their sizes
    parent_claude_mds: Mapping[Path, int] = field(default_factory=dict)
    mcp_config: Path = Path("mcp-local.json")
    #: what the headers of model files on disk mean for memory, by path
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    #: the sizes of projectors, by file name
    projector_bytes: Mapping[str, int] = field(default_factory=dict)
    #: other models of the catalog, for when this one does not fit
    alternatives: tuple[Alternative, ...] = ()
    #: by plan.proof_key: whether the newest check said that the agent can work
    proofs: Mapping[str, bool] = field(default_factory=dict)
    #: bytes that earlier starts used beyond their plan, by measured.key
    corrections: Mapping[str, int] = field(default_factory=dict)
