"""Reads the hardware from the system and its drivers: macOS's own programs, NVML, files under /proc and /sys.

All differences between operating systems are here; the other modules use `Machine`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cclocal.facts import Gpu, Machine
from cclocal.programs import ask
from cclocal.server.keeper import boot_id
from cclocal.units import GIB, MIB

#: Stands for no free memory, because 0 means unknown.
NOTHING_LEFT = 1


def machine(environ: Mapping[str, str] | None = None) -> Machine:
    """The hardware and its system.

    Everything that only a Mac can answer comes from programs found by `mac_tool`: tests give them recorded answers.
    """
    import psutil

    environ = environ or {}
    memory = psutil.virtual_memory()
    arch = {"aarch64": "arm64", "amd64": "x86_64"}.get(platform.machine().lower(), platform.machine())
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if not is_mac(environ):
        gpus = tuple(_linux_gpus(Path("/")))
        stand_in = environ.get("CCLOCAL_TEST_FREE_BYTES")
        free = int(stand_in) if stand_in else available_bytes(memory.available, Path("/sys/fs/cgroup"))
        cpu = _cpu_name() or arch
        return Machine("linux", platform.release(), arch, cpu, cores, memory.total, gpus, free, boot_id=boot_id())
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
        wired_limit_mib=wired_limit_mib(environ),
        mlx_limit_bytes=_mlx_limit(environ),
        gpus=tuple(_apple_gpu(cpu)),
        boot_id=boot_id(),
    )


_MAC_TOOLS = {
    "sysctl": "/usr/sbin/sysctl",
    "sw_vers": "/usr/bin/sw_vers",
    "vm_stat": "/usr/bin/vm_stat",
    "sudo": "/usr/bin/sudo",
}


def is_mac(environ: Mapping[str, str]) -> bool:
    """Whether this is a Mac, or a test that stands in for one."""
    return sys.platform == "darwin" or "CCLOCAL_TEST_MAC" in environ


def mac_tool(environ: Mapping[str, str], name: str) -> str:
    """A program of macOS by its full path, so that PATH cannot replace it."""
    stand_ins = environ.get("CCLOCAL_TEST_MAC")
    return str(Path(stand_ins, name)) if stand_ins else _MAC_TOOLS[name]


def _ask_mac(environ: Mapping[str, str], name: str, *words: str) -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            [mac_tool(environ, name), *words], capture_output=True, text=True, check=True, timeout=5
        ).stdout.strip()
    return ""


def wired_limit_mib(environ: Mapping[str, str]) -> int | None:
    """The limit of a Mac's GPU memory, if it was set; 0 = the system's own share; None = it cannot be set here.

    (macOS 13 has it under another name, in an unconfirmed unit.)
    """
    answer = _ask_mac(environ, "sysctl", "-n", "iogpu.wired_limit_mb")
    return int(answer) if answer.isdecimal() else None


def reclaimable_bytes(vm_stat: str) -> int:
    """What macOS could hand out at once, from `vm_stat`: free, speculative and inactive pages, as psutil does."""
    page = re.search(r"page size of (\d+) bytes", vm_stat)
    pages = dict(re.findall(r"^Pages ([\w ]+):\s+(\d+)\.", vm_stat, re.MULTILINE))
    return int(page[1]) * sum(int(pages.get(kind, 0)) for kind in ("free", "speculative", "inactive")) if page else 0


def _mlx_limit(environ: Mapping[str, str]) -> int:
    """Metal's recommended working set as MLX reports it, if MLX is in our own environment."""
    if not importlib.util.find_spec("mlx"):
        return 0
    question = (
        "import mlx.core as mx; ask = getattr(mx, 'device_info', None) or mx.metal.device_info; "
        "print(ask()['max_recommended_working_set_size'])"
    )
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        return int(ask([sys.executable, "-P", "-c", question], environ).stdout)
    return 0


def available_bytes(free_bytes: int, cgroup: Path) -> int:
    """What is free, or left under the container's limit (cgroup v2, then v1) if that is less."""
    for limit, used, stat, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        with contextlib.suppress(OSError, ValueError):
            # "max" means no limit
            left = int((cgroup / limit).read_text()) - int((cgroup / used).read_text())
            with contextlib.suppress(OSError):
                # cached files, such as a model just downloaded, are dropped when memory is needed
                found = re.search(rf"^{cached} (\d+)$", (cgroup / stat).read_text(), re.MULTILINE)
                left += int(found[1]) if found else 0
            return min(free_bytes, max(NOTHING_LEFT, left))
    return max(NOTHING_LEFT, free_bytes)


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return found[1] if found else ""
    return ""


def _apple_gpu(cpu: str) -> list[Gpu]:
    return [Gpu("apple", f"{cpu} GPU", unified=True)] if cpu.startswith("Apple") else []


def _linux_gpus(root: Path) -> Iterator[Gpu]:
    """NVIDIA's and AMD's cards, as their drivers report them: NVML, and files under /proc and /sys."""
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


def _nvml_cards() -> Iterator[tuple[Any, Any]]:
    """(NVIDIA's library, a card) for each card; none without a driver."""
    import ctypes

    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return
    import pynvml

    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        for number in range(pynvml.nvmlDeviceGetCount()):
            yield pynvml, pynvml.nvmlDeviceGetHandleByIndex(number)
        pynvml.nvmlShutdown()


def _nvml_gpus() -> list[Gpu]:
    """NVIDIA's cards and their memory. One that reports none, such as a DGX Spark, uses the machine's own."""
    found = []
    for nvml, card in _nvml_cards():
        with contextlib.suppress(nvml.NVMLError):
            name = str(nvml.nvmlDeviceGetName(card))
            try:
                memory = nvml.nvmlDeviceGetMemoryInfo(card)
                found.append(Gpu("nvidia", name, int(memory.total), max(NOTHING_LEFT, int(memory.free))))
            except nvml.NVMLError:
                found.append(Gpu("nvidia", name, unified=True))
    return found


#: An AMD GPU with no more memory of its own than this, and several times as much of the machine's, shares memory.
_APU_VRAM_BYTES, _APU_GTT_BYTES, _APU_TIMES = 4 * GIB, 8 * GIB, 4


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
        return Gpu("amd", name, gtt, max(NOTHING_LEFT, gtt - number("mem_info_gtt_used")), unified=True)
    return Gpu("amd", name, vram, max(NOTHING_LEFT, vram - number("mem_info_vram_used")))


#: Programs that hold models in memory, by the words of their command lines.
_MODEL_SERVERS = {
    "llama-server": "llama-server",
    "cclocal.backends.llama_server.xllamacpp_server": "llama.cpp's server in the xllamacpp package",
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
_WORTH_NAMING_BYTES = 512 * MIB


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
    """Bytes that processes hold on NVIDIA's cards, by pid."""
    held: dict[int, int] = {}
    for nvml, card in _nvml_cards():
        with contextlib.suppress(nvml.NVMLError):
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(card):
                held[process.pid] = held.get(process.pid, 0) + (process.usedGpuMemory or 0)
    return held
