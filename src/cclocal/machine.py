"""Look at this machine: hardware, engines, agents. The only module that asks the system about itself.

What differs between Linux and macOS stays in here; the rest of cclocal sees `Facts`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cclocal import tiny
from cclocal.catalog import Catalog, Model, Variant
from cclocal.command import MODEL_FILE, SERVER_NAMES, SERVER_PREFIXES, Command
from cclocal.errors import AgentMissingError, BackendMissingError, FolderError
from cclocal.facts import AgentFound, Alternative, Engine, Facts, Gpu, Machine
from cclocal.files import Folders, packaged, write_private
from cclocal.hub import cached_files
from cclocal.lookup import of_gguf
from cclocal.measured import corrections
from cclocal.memory.gguf import read_header
from cclocal.memory.known import known_shape
from cclocal.memory.shape import Shape, shape_of
from cclocal.plan import placeholder_of
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
        projector_bytes={
            variant.mmproj: path.stat().st_size
            for variant in model.variants
            if variant.mmproj and (path := _projector(variant, cached)) and path.is_file()
        },
        corrections=corrections(folders),
    )
    memory.save()
    return found


def alternatives(shelf: Catalog, chosen: Model) -> tuple[Alternative, ...]:
    """The other models of the catalog whose dimensions are published."""
    found = []
    for model in shelf.models.values():
        variant = model.variants[0]
        shape = known_shape(model.shape or "", variant.size_bytes) if model.id != chosen.id else None
        if shape:
            found.append(Alternative(model.id, model.name, shape, model.served_context_tokens))
    return tuple(found)


def _projector(variant: Variant, cached: Mapping[tuple[str, str], Path]) -> Path | None:
    if variant.path:
        return Path(variant.mmproj or "")
    return cached.get((variant.repo or "", variant.mmproj or ""))


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
        machine=machine(environ),
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


def machine(environ: Mapping[str, str] | None = None) -> Machine:
    """The hardware and its system.

    Everything that only a Mac can answer is asked of programs, found by `mac_tool`: tests give them recorded answers.
    """
    import psutil

    environ = environ or {}
    memory = psutil.virtual_memory()
    arch = {"aarch64": "arm64", "amd64": "x86_64"}.get(platform.machine().lower(), platform.machine())
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if not is_mac(environ):
        gpus = tuple(_linux_gpus(Path("/")))
        free = available_bytes(memory.available, Path("/sys/fs/cgroup"))
        cpu = _cpu_name() or arch
        return Machine("linux", platform.release(), arch, cpu, cores, memory.total, gpus, free)
    ask = partial(_ask_mac, environ)
    cpu = ask("sysctl", "-n", "machdep.cpu.brand_string") or arch
    return Machine(
        os="macos",
        os_version=ask("sw_vers", "-productVersion"),
        arch="arm64" if cpu.startswith("Apple") else arch,
        cpu=cpu,
        cores=cores,
        ram_bytes=int(ask("sysctl", "-n", "hw.memsize") or memory.total),
        available_bytes=reclaimable_bytes(ask("vm_stat")) or memory.available,
        # Ventura had it under another name
        wired_limit_mib=wired_limit_mib(environ),
        mlx_limit_bytes=_mlx_limit(environ),
        gpus=tuple(_apple_gpu(cpu)),
    )


_MAC_TOOLS = {
    "sysctl": "/usr/sbin/sysctl",
    "sw_vers": "/usr/bin/sw_vers",
    "vm_stat": "/usr/bin/vm_stat",
    "sudo": "/usr/bin/sudo",
}


def is_mac(environ: Mapping[str, str]) -> bool:
    """Whether this is a Mac, or a test that stands in for one (docs/development.md)."""
    return sys.platform == "darwin" or "CCLOCAL_TEST_MAC" in environ


def mac_tool(environ: Mapping[str, str], name: str) -> str:
    """A program of macOS by its full path: nothing that PATH could exchange."""
    stand_ins = environ.get("CCLOCAL_TEST_MAC")
    return str(Path(stand_ins, name)) if stand_ins else _MAC_TOOLS[name]


def _ask_mac(environ: Mapping[str, str], name: str, *words: str) -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            [mac_tool(environ, name), *words], capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()
    return ""


def wired_limit_mib(environ: Mapping[str, str]) -> int:
    """What a Mac's GPU may wire, if somebody set it; 0 = the system's own share. Ventura had it under another name."""
    for name in ("iogpu.wired_limit_mb", "debug.iogpu.wired_limit"):
        if answer := _ask_mac(environ, "sysctl", "-n", name):
            return int(answer) if answer.isdigit() else 0
    return 0


def reclaimable_bytes(vm_stat: str) -> int:
    """What macOS could hand out at once, from `vm_stat`: free, speculative and inactive pages, as psutil counts."""
    page = re.search(r"page size of (\d+) bytes", vm_stat)
    pages = dict(re.findall(r"^Pages ([\w ]+):\s+(\d+)\.", vm_stat, re.MULTILINE))
    return int(page[1]) * sum(int(pages.get(kind, 0)) for kind in ("free", "speculative", "inactive")) if page else 0


def _mlx_limit(environ: Mapping[str, str]) -> int:
    """What Metal told MLX, if MLX is in our own environment."""
    if not importlib.util.find_spec("mlx"):
        return 0
    question = (
        "import mlx.core as mx; ask = getattr(mx, 'device_info', None) or mx.metal.device_info; "
        "print(ask()['max_recommended_working_set_size'])"
    )
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        return int(_ask([sys.executable, "-P", "-c", question], environ).stdout)
    return 0


def available_bytes(free_bytes: int, cgroup: Path) -> int:
    """What is free, or left under the container's limit (cgroup v2, then v1) if that is less."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            # "max" is no number, and no limit
            left = int((cgroup / limit).read_text()) - int((cgroup / used).read_text())
            return min(free_bytes, max(0, left))
    return free_bytes


def _shapes(model: Model, found: Mapping[tuple[str, str], Path], folders: Folders) -> Iterator[tuple[str, Shape]]:
    """The shapes of a model's files: what their headers say, else what its published dimensions make of them."""
    for variant in model.variants:
        if variant.backend != "llama-server":
            continue
        first = found.get((variant.repo or "", variant.files[0])) if variant.files else None
        if path := Path(variant.path) if variant.path else first:
            if known := of_gguf(path):
                yield str(path), known.shape
        elif variant.builtin:
            # looking writes nothing: a model not built yet is read from its recipe
            built = tiny.path_in(folders.cache)
            known = of_gguf(built) if built.exists() else None
            yield MODEL_FILE, known.shape if known else shape_of(read_header(tiny.gguf()))
        elif published := known_shape(model.shape or "", variant.size_bytes):
            yield placeholder_of(variant.files[0]), published


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return found[1] if found else ""
    return ""


def _apple_gpu(cpu: str) -> list[Gpu]:
    return [Gpu("apple", f"{cpu} GPU", unified=True)] if cpu.startswith("Apple") else []


def _linux_gpus(root: Path) -> Iterator[Gpu]:
    """NVIDIA's and AMD's cards, from what their drivers tell: NVML, and files under /proc and /sys."""
    yield from _nvml_gpus() or _nvidia_names(root)
    for vendor in sorted(root.glob("sys/class/drm/card[0-9]*/device/vendor")):
        with contextlib.suppress(OSError):
            # integrated graphics without memory of their own count too: Vulkan and ROCm can use them
            if vendor.read_text().strip() == "0x1002" and vendor.with_name("mem_info_vram_total").exists():
                yield _amd_gpu(vendor.parent)


def _nvidia_names(root: Path) -> Iterator[Gpu]:
    for info in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        with contextlib.suppress(OSError):
            name = re.search(r"^Model:\s*(.+)$", info.read_text(), re.MULTILINE)
            yield Gpu("nvidia", name[1].strip() if name else "an NVIDIA GPU")


def _nvml_gpus() -> list[Gpu]:
    """NVIDIA's cards and their memory. One that tells none, as a DGX Spark does, uses the machine's own."""
    import ctypes

    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    import pynvml

    found = []
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        for number in range(pynvml.nvmlDeviceGetCount()):
            card = pynvml.nvmlDeviceGetHandleByIndex(number)
            name = pynvml.nvmlDeviceGetName(card)
            try:
                memory = pynvml.nvmlDeviceGetMemoryInfo(card)
                found.append(Gpu("nvidia", str(name), int(memory.total), int(memory.free)))
            except pynvml.NVMLError:
                found.append(Gpu("nvidia", str(name), unified=True))
        pynvml.nvmlShutdown()
    return found


#: An AMD GPU with no more memory of its own than this, and several times as much of the machine's, shares it.
_APU_VRAM_BYTES, _APU_GTT_BYTES, _APU_TIMES = 4 * 2**30, 8 * 2**30, 4


def _amd_gpu(device: Path) -> Gpu:
    """An AMD GPU's memory: its own, or for a processor's graphics what it may map of the machine's (GTT)."""

    def number(name: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int((device / name).read_text())
        return 0

    product = device / "product_name"
    name = product.read_text().strip() if product.exists() else "an AMD GPU"
    vram, gtt = number("mem_info_vram_total"), number("mem_info_gtt_total")
    if vram <= _APU_VRAM_BYTES and gtt >= _APU_GTT_BYTES and gtt >= _APU_TIMES * vram:
        return Gpu("amd", name, gtt, max(0, gtt - number("mem_info_gtt_used")), unified=True)
    return Gpu("amd", name, vram, max(0, vram - number("mem_info_vram_used")))


#: Programs that hold models in memory, by the words of their command lines.
_MODEL_SERVERS = {
    "llama-server": "llama-server",
    "cclocal.wheel_server": "llama.cpp's server in the wheel",
    "ollama": "Ollama",
    "vllm-mlx": "vllm-mlx",
    "mlx_lm.server": "mlx-lm",
    "mlx_lm": "mlx-lm",
    "mlx_vlm.server": "mlx-vlm",
    "vllm": "vLLM",
    "koboldcpp": "KoboldCpp",
    "omlx": "oMLX",
    "lms": "LM Studio",
    "LM Studio": "LM Studio",
}
#: A program that holds less is not the reason why a model does not fit.
_WORTH_NAMING_BYTES = 512 * 2**20


def resident_servers() -> list[tuple[str, int, int]]:
    """Model servers that are running already: (name, pid, bytes they hold), the largest first."""
    import psutil

    found = []
    for process in psutil.process_iter(["cmdline", "memory_info"]):
        words = [Path(word).name for word in (process.info["cmdline"] or [])[:4]]
        name = next((_MODEL_SERVERS[word] for word in words if word in _MODEL_SERVERS), None)
        if name and process.info["memory_info"]:
            found.append((name, process.pid, process.info["memory_info"].rss))
    for pid, held in _nvml_processes().items():
        found = [(name, known, max(size, held) if known == pid else size) for name, known, size in found]
    return sorted((row for row in found if row[2] >= _WORTH_NAMING_BYTES), key=lambda row: -row[2])


def _nvml_processes() -> dict[int, int]:
    """What processes hold on NVIDIA's cards, by pid."""
    import ctypes

    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return {}
    import pynvml

    held: dict[int, int] = {}
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        for number in range(pynvml.nvmlDeviceGetCount()):
            card = pynvml.nvmlDeviceGetHandleByIndex(number)
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(card):
                held[process.pid] = held.get(process.pid, 0) + (process.usedGpuMemory or 0)
        pynvml.nvmlShutdown()
    return held


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

    # a Mac's GPU tells more once more may be wired
    return f"{boot_id()}|{','.join(gpu.name for gpu in here.gpus)}|{here.wired_limit_mib}"


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
                # BLAS counts as a device there, with no memory
                "devices": [
                    d for d in re.findall(r"^\s*(\w+: .+\(\d+ MiB.*)$", devices, re.MULTILINE) if "(0 MiB" not in d
                ],
            },
        )
    return Engine("binary", (str(path),), known["version"], frozenset(known["flags"]), tuple(known["devices"]))


_WHEEL_PROBE = """
import json, xllamacpp
from importlib.metadata import version
devices = [d for d in xllamacpp.get_device_info() if "GPU" in d["type"].name]
told = [f'{d["name"]}: {d["description"]} ({d["memory_total"] >> 20} MiB, {d["memory_free"] >> 20} MiB free)'
        for d in devices]
print(json.dumps({"version": version("xllamacpp"), "devices": told}))
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
