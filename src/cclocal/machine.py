"""Look at this machine: hardware, engines, agents. The only module that asks the system about itself.

What differs between Linux and macOS stays in here; the rest of cclocal sees `Facts`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cclocal import tiny
from cclocal.catalog import Model
from cclocal.command import MODEL_FILE, SERVER_NAMES, SERVER_PREFIXES, Command
from cclocal.errors import AgentMissingError, BackendMissingError, FolderError, UsageError
from cclocal.facts import AgentFound, Engine, Facts, Gpu, Machine
from cclocal.files import Folders, packaged, write_private
from cclocal.hub import cached_files
from cclocal.memory.gguf import UnknownHeaderError, read_header
from cclocal.memory.shape import Shape, shape_of
from cclocal.settings import Settings

PROBE_LIMIT_S = 20.0


def probe(settings: Settings, model: Model, folders: Folders, environ: Mapping[str, str]) -> Facts:
    """Everything the plan may look at. Starts small programs (`--version`, `--help`) and remembers their answers.

    Raises AgentMissingError or BackendMissingError if a program was found but does not run.
    """
    memory = Remembered(folders.cache / "probes.json")
    facts = look_around(folders, environ, memory, want_agent=not settings.server_only)
    cached = {
        (variant.repo, file): path
        for variant in model.variants
        if variant.repo
        for file, path in cached_files(variant.repo, variant.hub_files, environ).items()
    }
    found = replace(
        facts,
        engines=tuple(find_engines(settings.llama_server, environ, facts.machine, memory)),
        cached=cached,
        shapes=dict(_shapes(model, cached, folders)),
    )
    memory.save()
    return found


def look_around(
    folders: Folders, environ: Mapping[str, str], memory: Remembered | None = None, *, want_agent: bool = True
) -> Facts:
    """The machine, the agent, and the folder we are in; no engines and no models.

    Raises FolderError if that folder is gone.
    """
    memory = memory or Remembered(folders.cache / "probes.json")
    try:
        cwd = Path(os.path.realpath(Path.cwd()))
    except FileNotFoundError:
        raise FolderError("The folder you are in is no longer there.", hint="cd to one that is") from None
    root = next((p for p in (cwd, *cwd.parents) if (p / ".git").exists()), None)
    facts = Facts(
        machine=machine(),
        folders=folders,
        cwd=cwd,
        environ=environ,
        agent=find_agent(environ, memory) if want_agent else None,
        pip=_pip(),
        git_root=root,
        user_claude_md=_user_claude_md(environ),
        parent_claude_mds=dict(reversed(list(_parent_claude_mds(cwd, root)))),
        mcp_config=packaged("mcp-local.json"),
    )
    memory.save()
    return facts


def _pip() -> str:
    """How a package is added to our own environment: uv's tool environments have no pip of their own."""
    if importlib.util.find_spec("pip"):
        return f"{sys.executable} -m pip install"
    return f"uv pip install --python {sys.executable}"


def _user_claude_md(environ: Mapping[str, str]) -> Path | None:
    folder = Path(environ.get("CLAUDE_CONFIG_DIR") or Path(environ["HOME"], ".claude"))
    path = folder / "CLAUDE.md"
    return path if path.is_file() else None


def _parent_claude_mds(cwd: Path, root: Path | None) -> Iterator[tuple[Path, int]]:
    for folder in cwd.parents if root else ():
        if not folder.is_relative_to(root or folder):
            return
        if (folder / "CLAUDE.md").is_file():
            yield folder / "CLAUDE.md", (folder / "CLAUDE.md").stat().st_size


# -- hardware ---------------------------------------------------------------------------------------------------


def machine() -> Machine:
    """The hardware and its system."""
    import psutil

    mac = sys.platform == "darwin"
    arch = {"aarch64": "arm64", "amd64": "x86_64"}.get(platform.machine().lower(), platform.machine())
    cpu = _sysctl("machdep.cpu.brand_string") if mac else _cpu_name()
    return Machine(
        os="macos" if mac else "linux",
        os_version=platform.mac_ver()[0] if mac else platform.release(),
        arch=arch,
        cpu=cpu or arch,
        cores=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        ram_bytes=psutil.virtual_memory().total,
        available_bytes=available_bytes(psutil.virtual_memory().available, Path("/sys/fs/cgroup")),
        wired_limit_mib=int(_sysctl("iogpu.wired_limit_mb") or 0) if mac else 0,
        gpus=tuple(_apple_gpu(arch, cpu) if mac else _linux_gpus(Path("/"))),
    )


def available_bytes(free_bytes: int, cgroup: Path) -> int:
    """What is free, or left under the container's limit (cgroup v2) if that is less."""
    with contextlib.suppress(OSError, ValueError):
        # "max" is no number, and no limit
        limit = int((cgroup / "memory.max").read_text())
        return min(free_bytes, max(0, limit - int((cgroup / "memory.current").read_text())))
    return free_bytes


def read_shape(path: Path) -> Shape | None:
    """What a GGUF file's header means for memory; None if it is newer than we know, or one part of several.

    Raises UsageError if the file is damaged or no GGUF file.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = read_header(data)
            return shape_of(header) if header.metadata.get("split.count", 1) in (0, 1) else None
    except UnknownHeaderError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be used: {error}.") from None


def _shapes(model: Model, found: Mapping[tuple[str, str], Path], folders: Folders) -> Iterator[tuple[str, Shape]]:
    """The shapes of a model's files that are on disk."""
    for variant in model.variants:
        if variant.backend != "llama-server":
            continue
        first = found.get((variant.repo or "", variant.files[0])) if variant.files else None
        if path := Path(variant.path) if variant.path else first:
            if shape := read_shape(path):
                yield str(path), shape
        elif variant.builtin:
            # looking writes nothing: a model not built yet is read from its recipe
            built = tiny.path_in(folders.cache)
            known = read_shape(built) if built.exists() else None
            yield MODEL_FILE, known or shape_of(read_header(tiny.gguf()))


def _sysctl(name: str) -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            ["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()
    return ""


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return found[1] if found else ""
    return ""


def _apple_gpu(arch: str, cpu: str) -> list[Gpu]:
    return [Gpu("apple", f"{cpu} GPU")] if arch == "arm64" else []


def _linux_gpus(root: Path) -> Iterator[Gpu]:
    """NVIDIA's and AMD's cards, from what their drivers show under /proc and /sys."""
    for info in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        with contextlib.suppress(OSError):
            name = re.search(r"^Model:\s*(.+)$", info.read_text(), re.MULTILINE)
            yield Gpu("nvidia", name[1].strip() if name else "an NVIDIA GPU")
    for vendor in sorted(root.glob("sys/class/drm/card[0-9]*/device/vendor")):
        with contextlib.suppress(OSError):
            # integrated graphics without memory of their own count too: Vulkan and ROCm can use them
            if vendor.read_text().strip() == "0x1002" and vendor.with_name("mem_info_vram_total").exists():
                product = vendor.with_name("product_name")
                yield Gpu("amd", product.read_text().strip() if product.exists() else "an AMD GPU")


# -- programs ---------------------------------------------------------------------------------------------------


class Remembered:
    """Answers of programs that cost time to ask, kept as long as the file they came from is the same."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Any] = {}
        self.fresh = False
        with contextlib.suppress(OSError, ValueError):
            self.known = dict(json.loads(path.read_text("utf-8")))

    def key(self, program: Path, *also: str) -> str:
        stat = program.stat()
        return "|".join((os.path.realpath(program), str(stat.st_size), str(stat.st_mtime_ns), *also))

    def get(self, key: str) -> Any:
        return self.known.get(key)

    def put(self, key: str, value: Any) -> Any:
        self.known[key] = value
        self.fresh = True
        return value

    def save(self) -> None:
        if self.fresh:
            self.fresh = False
            latest = dict(list(self.known.items())[-20:])
            write_private(self.path, json.dumps(latest))


def find_agent(environ: Mapping[str, str], memory: Remembered) -> AgentFound | None:
    """Claude Code on PATH, and its version."""
    found = shutil.which("claude", path=environ.get("PATH", os.defpath))
    if not found:
        return None
    path = Path(found).absolute()
    key = memory.key(path)
    version = memory.get(key)
    if version is None:
        try:
            done = _ask([str(path), "--version"], environ)
            version = re.match(r"\d+(\.\d+)+", done.stdout.strip())
        except (OSError, subprocess.SubprocessError) as error:
            raise AgentMissingError(f"{path} does not run: {error}.") from None
        if not version:
            raise AgentMissingError(
                f"{path} does not tell its version, so it is hardly Claude Code.",
                cause=(done.stdout + done.stderr).strip().splitlines()[-3:],
                hint="npm install -g @anthropic-ai/claude-code",
            )
        version = memory.put(key, version[0])
    return AgentFound(path, version)


def find_engines(wish: str | None, environ: Mapping[str, str], here: Machine, memory: Remembered) -> Iterator[Engine]:
    """llama.cpp's server, best first: the one wished for, else a llama-server on PATH, then the wheel's."""
    if wish == "wheel":
        yield from _wheel(environ, here, memory)
        return
    found = shutil.which(wish or "llama-server", path=environ.get("PATH", os.defpath))
    if found:
        try:
            yield _binary(Path(found).absolute(), environ, here, memory)
        except (OSError, subprocess.SubprocessError) as error:
            if wish:
                raise BackendMissingError(f"{found} does not run: {error}.") from None
    elif wish:
        raise BackendMissingError(
            f"There is no program {wish}.", hint="--llama-server PATH, or “wheel” for the xllamacpp package"
        )
    if not wish:
        yield from _wheel(environ, here, memory)


def _ask(argv: list[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = Command(tuple(argv), keep=frozenset(SERVER_NAMES), keep_prefixes=SERVER_PREFIXES)
    return subprocess.run(
        argv,
        env=command.environ(environ),
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        timeout=PROBE_LIMIT_S,
        check=False,
    )


def _context_of(here: Machine) -> str:
    """What an engine's view of its devices depends on beside its own file."""
    from cclocal.keeper import boot_id

    return f"{boot_id()}|{','.join(gpu.name for gpu in here.gpus)}"


def _binary(path: Path, environ: Mapping[str, str], here: Machine, memory: Remembered) -> Engine:
    key = memory.key(path, "llama-server", _context_of(here))
    known = memory.get(key)
    if known is None:
        help_text = _ask([str(path), "--help"], environ)
        flags = sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", help_text.stdout)))
        if help_text.returncode != 0 or not flags:
            raise OSError((help_text.stderr.strip() or "its --help says nothing").splitlines()[-1])
        version = _ask([str(path), "--version"], environ)
        first = re.search(r"version:\s*(.+)", version.stdout + version.stderr)
        devices = _ask([str(path), "--list-devices"], environ).stdout if "--list-devices" in flags else ""
        known = memory.put(
            key,
            {
                "version": first[1].strip() if first else "unknown",
                "flags": flags,
                "devices": [d.strip() for d in re.findall(r"^\s+(\w+\d+: .+)$", devices, re.MULTILINE)],
            },
        )
    return Engine("binary", (str(path),), known["version"], frozenset(known["flags"]), tuple(known["devices"]))


_WHEEL_PROBE = """
import json, xllamacpp
from importlib.metadata import version
devices = [d for d in xllamacpp.get_device_info() if "GPU" in d["type"].name]
print(json.dumps({"version": version("xllamacpp"), "devices": [d["name"] + ": " + d["description"] for d in devices]}))
"""


def _wheel(environ: Mapping[str, str], here: Machine, memory: Remembered) -> Iterator[Engine]:
    spec = importlib.util.find_spec("xllamacpp")
    if not spec or not spec.origin:
        return
    from cclocal.wheel_server import flags

    libraries = sorted(Path(spec.origin).parent.glob("xllamacpp*.so")) or [Path(spec.origin)]
    # the question belongs to the key: another version of cclocal may ask another one
    key = memory.key(libraries[0], _WHEEL_PROBE, _context_of(here))
    known = memory.get(key)
    if known is None:
        done = _ask([sys.executable, "-P", "-c", _WHEEL_PROBE], environ)
        if done.returncode != 0:
            raise BackendMissingError(
                "The xllamacpp package is installed but does not load.",
                cause=done.stderr.strip().splitlines()[-2:],
                hint='pip install --force-reinstall "cclocal[engine]"    (it needs the system library libgomp1)',
            )
        known = memory.put(key, json.loads(done.stdout))
    command = (sys.executable, "-P", "-m", "cclocal.wheel_server")
    yield Engine("wheel", command, known["version"], flags(), tuple(known["devices"]))
