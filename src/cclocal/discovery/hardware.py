"""Reads the hardware from the system and its drivers: macOS's own programs, NVML, files under /proc and /sys.

What differs between operating systems is here; the other modules use `Machine`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from cclocal.facts import Gpu, Machine
from cclocal.programs import ask, ask_mac, is_mac, own_cores
from cclocal.server.process import boot_id
from cclocal.server.wired_limit import NAME as WIRED_LIMIT
from cclocal.units import GIB, MIB

#: Stands for no free memory, because 0 means unknown.
NOTHING_LEFT = 1


def machine(environ: Mapping[str, str] | None = None) -> Machine:
    """The hardware and its system.

    Everything that only a Mac can answer comes from programs found by `mac_tool`: tests give them recorded answers.
    """
    environ = environ or {}
    memory = psutil.virtual_memory()
    arch = {"aarch64": "arm64", "amd64": "x86_64"}.get(platform.machine().lower(), platform.machine())
    if not is_mac(environ):
        gpus = tuple(_linux_gpus(Path("/")))
        stand_in = environ.get("CCLOCAL_TEST_FREE_BYTES")
        free = int(stand_in) if stand_in else available_bytes(memory.available, Path("/sys/fs/cgroup"))
        cores = usable_cores(Path("/sys/fs/cgroup"), own_cores())
        return Machine("linux", platform.release(), arch, memory.total, gpus, free, boot_id=boot_id(), cores=cores)
    ask = partial(ask_mac, environ)
    cpu = ask("sysctl", "-n", "machdep.cpu.brand_string") or arch
    is_apple = cpu.startswith("Apple")
    limit_mib = ask("sysctl", "-n", WIRED_LIMIT)
    return Machine(
        os="macos",
        os_version=ask("sw_vers", "-productVersion"),
        arch="arm64" if is_apple else arch,
        ram_bytes=int(ask("sysctl", "-n", "hw.memsize") or memory.total),
        available_bytes=reclaimable_bytes(ask("vm_stat")) or memory.available,
        # macOS 13 has it under another name, in an unconfirmed unit
        wired_limit_mib=int(limit_mib) if limit_mib.isdecimal() else None,
        mlx_limit_bytes=_mlx_limit(environ),
        gpus=(Gpu("apple", f"{cpu} GPU", unified=True),) if is_apple else (),
        boot_id=boot_id(),
    )


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
            # cached files, such as a model just downloaded, are dropped when memory is needed
            left += int(_found(rf"^{cached} (\d+)$", cgroup / stat) or 0)
            return min(free_bytes, max(NOTHING_LEFT, left))
    return max(NOTHING_LEFT, free_bytes)


def usable_cores(cgroup: Path, found: int) -> int:
    """The cores that were found, or as many as the container's limit allows (cgroup v2, then v1) if that is less.

    With more threads than that, llama.cpp's threads wait for each other in busy loops: ten times slower.
    """
    for quota, period in (("cpu.max", "cpu.max"), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            # "max" and -1 mean no limit
            limit = int((cgroup / quota).read_text().split()[0]) / int((cgroup / period).read_text().split()[-1])
            return max(1, min(found, round(limit))) if limit > 0 else found
    return found


def _found(pattern: str, file: Path) -> str:
    """What a pattern's group matches in one of the system's files; empty if it does not, or without such a file."""
    with contextlib.suppress(OSError):
        found = re.search(pattern, file.read_text(), re.MULTILINE)
        return found[1].strip() if found else ""
    return ""


def _linux_gpus(root: Path) -> Iterator[Gpu]:
    """NVIDIA's and AMD's cards, as their drivers report them: NVML, and files under /proc and /sys."""
    names = (_found(r"^Model:\s*(.+)$", info) for info in sorted(root.glob("proc/driver/nvidia/gpus/*/information")))
    yield from _nvml_gpus() or (Gpu("nvidia", name or "an NVIDIA GPU") for name in names)
    for vendor in sorted(root.glob("sys/class/drm/card[0-9]*/device/vendor")):
        # integrated graphics without memory of their own count too: Vulkan and ROCm can use them
        if _found("(.+)", vendor) == "0x1002" and vendor.with_name("mem_info_vram_total").exists():
            yield _amd_gpu(vendor.parent)


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
        return int(_found(r"^(\d+)$", device / f"mem_info_{name}") or 0)

    vram, gtt = number("vram_total"), number("gtt_total")
    shares = vram <= _APU_VRAM_BYTES and gtt >= _APU_GTT_BYTES and gtt >= _APU_TIMES * vram
    total, used = (gtt, number("gtt_used")) if shares else (vram, number("vram_used"))
    name = _found("(.+)", device / "product_name") or "an AMD GPU"
    return Gpu("amd", name, total, max(NOTHING_LEFT, total - used), unified=shares)


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
    found, on_cards = [], _nvml_processes()
    for process in psutil.process_iter(["cmdline", "memory_info"]):
        words = [Path(word).name for word in (process.info["cmdline"] or [])[:4]]
        name = next((_MODEL_SERVERS[word] for word in words if word in _MODEL_SERVERS), None)
        if name and process.info["memory_info"]:
            found.append((name, process.pid, max(process.info["memory_info"].rss, on_cards.get(process.pid, 0))))
    return sorted((row for row in found if row[2] >= _WORTH_NAMING_BYTES), key=lambda row: -row[2])


def _nvml_processes() -> dict[int, int]:
    """Bytes that processes hold on NVIDIA's cards, by pid."""
    held: dict[int, int] = {}
    for nvml, card in _nvml_cards():
        with contextlib.suppress(nvml.NVMLError):
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(card):
                held[process.pid] = held.get(process.pid, 0) + (process.usedGpuMemory or 0)
    return held
