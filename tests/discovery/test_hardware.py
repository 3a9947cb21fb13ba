"""What machines tell of their memory: the numbers are those their owners reported, the files and programs stand-ins.

Sources of the numbers: llama.cpp's logs and --list-devices as pasted in public issues (M1 to M5, macOS 14 to 26, RTX
3090 and 4090, GB10, Strix Halo), and Linux's /sys/class/drm/card*/device/mem_info_*.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cclocal.backends import runtime_of
from cclocal.discovery import hardware
from cclocal.discovery.hardware import usable_cores
from cclocal.errors import UsageError
from cclocal.facts import Engine, Gpu, Machine
from cclocal.memory.shape import Layer, Shape
from cclocal.paths import Env
from cclocal.planning.memory import (
    apple_budget,
    budget_of,
    card_budget,
    device_memory,
    safe_limit_mib,
    wired_limit,
)
from cclocal.programs import Answers
from cclocal.settings import Settings
from cclocal.units import GIB
from tests.world import FAKES, World

MIB = 2**20
SHAPE = Shape("llama", 32768, (Layer("full", 512, 512),), 0, 8, GIB, GIB)


# -- Macs


def a_mac(ram_gib: int, macos: str = "26.0") -> Machine:
    return Machine("macos", macos, "arm64", ram_gib * GIB)


#: (RAM in GiB, macOS, what Metal grants in decimal MB)
METAL = [
    (16, "15.1", 11453.25),
    (16, "26.5.2", 12713.12),
    (24, "15.4", 17179.89),
    (24, "26.1", 19069.67),
    (32, "15.2", 22906.50),
    (32, "26.0", 26800.60),
    (36, "15.5", 28991.03),
    (36, "26.0", 30150.67),
    (48, "14.5", 38654.71),
    (48, "26.1", 40200.90),
    (64, "14.6", 51539.61),
    (64, "26.0", 55662.79),
    (128, "15.6", 103079.22),
    (128, "26.3", 115448.73),
]


@pytest.mark.parametrize(("ram", "macos", "metal_mb"), METAL)
def test_the_share_of_a_macs_memory_is_what_metal_grants(ram: int, macos: str, metal_mb: float) -> None:
    budget = apple_budget(a_mac(ram, macos))
    assert budget.limit_mib == pytest.approx(metal_mb * 1e6 / MIB, rel=0.001)
    assert budget.size_bytes == pytest.approx(metal_mb * 1e6 - GIB, rel=0.001)


def mac(world: World, ram: int, macos: str, question: str = "machine") -> Machine:
    world.mac(ram, macos)
    return hardware.machine(world.env)


@pytest.mark.parametrize(("ram", "macos"), [(16, "15.5"), (24, "26.1"), (36, "15.5"), (64, "26.5.2"), (128, "26.3")])
def test_what_a_mac_tells_of_itself(world: World, ram: int, macos: str) -> None:
    here = mac(world, ram, macos)
    assert (here.os, here.os_version, here.arch) == ("macos", macos, "arm64")
    assert here.ram_bytes == ram * GIB
    assert here.gpus == (Gpu("apple", "Apple M4 GPU", unified=True),)
    assert 0.85 * ram * GIB < here.available_bytes < 0.95 * ram * GIB
    assert here.wired_limit_mib == 0
    (world.root / "wired_limit").write_text("20480\n")
    assert hardware.machine(world.env).wired_limit_mib == 20480


def test_a_macos_without_the_setting_is_not_offered_it(world: World) -> None:
    world.mac(32, "13.7")
    tool = world.root / "mac/sysctl"
    tool.write_text(tool.read_text().replace("iogpu.wired_limit_mb) cat", "nothing.of_the_kind) cat"))
    assert hardware.machine(world.env).wired_limit_mib is None


def test_what_vm_stat_counts_as_free() -> None:
    # a Mac mini of 32 GB, and one of 8 GB with macOS 26.6 and its wider columns
    counts = {"free": 180727, "active": 665282, "inactive": 766214, "speculative": 187537, "wired down": 138995}
    text = "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
    text += "".join(f"Pages {kind + ':':<40}{count:>10}.\n" for kind, count in counts.items())
    text += '"Translation faults":                 200155580.\nFile-backed pages:                      1049935.\n'
    assert hardware.reclaimable_bytes(text) == (180727 + 766214 + 187537) * 16384
    assert hardware.reclaimable_bytes("") == 0


def engine(*devices: str) -> Engine:
    return Engine("binary", ("llama-server",), "1", frozenset(), devices)


def test_the_order_in_which_a_macs_budget_is_read() -> None:
    m4 = Machine("macos", "26.1", "arm64", 24 * GIB, available_bytes=22 * GIB)
    told = budget_of(engine("MTL0: Apple M4 (18186 MiB, 18185 MiB free)"), m4, SHAPE)
    assert told
    assert told.size_bytes == 18186 * MIB - GIB
    assert "Metal" in told.source
    from dataclasses import replace

    silent = engine("MTL0: Apple M4")
    by_mlx = budget_of(silent, replace(m4, mlx_limit_bytes=19069665280), SHAPE)
    assert by_mlx
    assert by_mlx.size_bytes == 19069665280 - GIB
    by_sysctl = budget_of(silent, replace(m4, wired_limit_mib=20480), SHAPE)
    assert by_sysctl
    assert by_sysctl.size_bytes == 19 * GIB
    by_table = budget_of(silent, m4, SHAPE)
    assert by_table
    assert by_table.size_bytes == int(24 * GIB * 0.74) - GIB
    # never more than is free
    crowded = budget_of(silent, replace(m4, available_bytes=9 * GIB), SHAPE)
    assert crowded
    assert crowded.size_bytes == 9 * GIB
    assert "9.0 GiB are free now" in crowded.source
    # MLX allocates as it goes, and keeps a larger margin
    mlx = budget_of(None, m4, replace(SHAPE, form="mlx"))
    assert mlx
    assert by_table.size_bytes - mlx.size_bytes == GIB // 2
    # without Metal the processor has what is free
    cpu = budget_of(engine(), m4, SHAPE)
    assert cpu
    assert cpu.size_bytes == 21 * GIB


@pytest.mark.parametrize(
    ("ram", "safe"), [(8, 0), (16, 0), (18, 12), (24, 18), (32, 26), (36, 30), (64, 56), (128, 112)]
)
def test_the_highest_limit_that_is_offered(ram: int, safe: int) -> None:
    assert safe_limit_mib(a_mac(ram)) == safe * 1024
    most = f"{(ram - 3) * 1024} MiB at most" if safe else "With 16 GB or less"
    with pytest.raises(UsageError, match=most):
        wired_limit(Settings(wired_limit=ram * 1024), a_mac(ram), engine())


@pytest.mark.parametrize(
    ("line", "total", "free"),
    [
        ("MTL0: Apple M4 Max (110100 MiB, 110100 MiB free)", 110100, 110100),
        ("CUDA0: NVIDIA GeForce RTX 3090 (24115 MiB, 23737 MiB free)", 24115, 23737),
        ("Vulkan0: Radeon 8060S Graphics (RADV GFX1151) (91136 MiB, 90974 MiB free)", 91136, 90974),
        ("RPC0: 10.0.0.2:50052 (8123 MiB, 7029 MiB free)", 8123, 7029),
        ("MTL0: Apple M4", 0, 0),
    ],
)
def test_what_an_engine_says_of_its_devices(line: str, total: int, free: int) -> None:
    assert device_memory(line) == (total * MIB, free * MIB)


def test_blas_is_no_graphics_processor(world: World) -> None:
    world.fake_server(
        devices=["MTL0: Apple M4 Pro (38338 MiB, 38338 MiB free)", "BLAS: Accelerate (0 MiB, 0 MiB free)"]
    )
    answers = Answers(world.root / "probes.json")
    found = runtime_of("llama-server").find(Env.of(world.env), Settings(), hardware.machine(), answers)
    assert next(found).devices == ("MTL0: Apple M4 Pro (38338 MiB, 38338 MiB free)",)


# -- NVIDIA


@pytest.fixture
def nvml(tmp_path: Path) -> Path:
    """A folder with a stand-in for NVIDIA's library in it."""
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler")
    folder = tmp_path / "lib"
    folder.mkdir()
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", str(folder / "libnvidia-ml.so.1"), str(FAKES / "nvml.c")], check=True
    )
    return folder


def nvidia(nvml: Path, cards: str) -> list[Gpu]:
    code = (
        "import json, dataclasses; from cclocal.discovery import hardware\n"
        "print(json.dumps([dataclasses.asdict(gpu) for gpu in hardware._nvml_gpus()]))\n"
        "assert hardware._nvml_processes() == {}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LD_LIBRARY_PATH": str(nvml), "FAKE_NVML": cards},
        capture_output=True,
        text=True,
        check=True,
    )
    return [Gpu(**row) for row in json.loads(done.stdout)]


def test_nvidias_cards_tell_their_memory(nvml: Path) -> None:
    found = nvidia(nvml, "NVIDIA GeForce RTX 4090:24564:23149;NVIDIA GeForce RTX 3090:24576:1502")
    assert found == [
        Gpu("nvidia", "NVIDIA GeForce RTX 4090", 24564 * MIB, 23149 * MIB),
        Gpu("nvidia", "NVIDIA GeForce RTX 3090", 24576 * MIB, 1502 * MIB),
    ]


def test_a_dgx_spark_shares_the_machines_memory(nvml: Path) -> None:
    (spark,) = nvidia(nvml, "NVIDIA GB10:-:-")
    assert spark == Gpu("nvidia", "NVIDIA GB10", unified=True)
    here = Machine("linux", "6.17", "arm64", 121 * GIB, (spark,), available_bytes=118 * GIB)
    budget = budget_of(engine("CUDA0: NVIDIA GB10 (124609 MiB, 121444 MiB free)"), here, SHAPE)
    assert budget
    assert (budget.memory, budget.size_bytes) == ("unified", 117 * GIB)


def test_without_a_driver_there_are_names_or_nothing(tmp_path: Path) -> None:
    assert hardware._nvml_gpus() == []
    assert hardware._nvml_processes() == {}
    information = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0/information"
    information.parent.mkdir(parents=True)
    information.write_text("Model: \t\t NVIDIA GeForce RTX 4090\n")
    assert list(hardware._linux_gpus(tmp_path)) == [Gpu("nvidia", "NVIDIA GeForce RTX 4090")]


def test_a_cards_budget_is_what_is_free_on_it() -> None:
    ram = 58 * GIB
    idle = card_budget([Gpu("nvidia", "RTX 4090", 24082 * MIB, 23687 * MIB)], ram)
    assert idle
    assert (idle.memory, idle.size_bytes, idle.host_bytes) == ("discrete", 24082 * MIB - GIB, 57 * GIB)
    busy = card_budget(
        [Gpu("nvidia", "RTX 3090", 24576 * MIB, 1502 * MIB), Gpu("nvidia", "RTX 3090", 24576 * MIB, 1470 * MIB)], ram
    )
    assert busy
    assert busy.size_bytes == 2972 * MIB
    assert "free now" in busy.source
    assert card_budget([Gpu("nvidia", "unknown", 0, 0)], ram) is None


def test_the_cards_an_engine_uses_not_all_there_are() -> None:
    # a Ryzen with graphics of its own beside an RX 7900 XTX, and the card seen through two backends
    own = Gpu("amd", "an AMD GPU", 16 * GIB, 15 * GIB, unified=True)
    card = Gpu("amd", "an AMD GPU", 24560 * MIB, 24000 * MIB)
    here = Machine("linux", "6.8", "x86_64", 64 * GIB, (own, card), available_bytes=60 * GIB)
    budget = budget_of(engine("Vulkan0: AMD Radeon RX 7900 XTX (24560 MiB, 24011 MiB free)"), here, SHAPE)
    assert budget
    assert budget.memory == "discrete"
    assert budget.size_bytes == 24560 * MIB - GIB
    two = engine(
        "CUDA0: NVIDIA GeForce RTX 5090 (32149 MiB, 31626 MiB free)",
        "Vulkan2: NVIDIA GeForce RTX 5090 (32607 MiB, 31626 MiB free)",
    )
    nvidia_card = Gpu("nvidia", "NVIDIA GeForce RTX 5090", 32607 * MIB, 31626 * MIB)
    once = budget_of(two, Machine("linux", "6.8", "x86_64", 64 * GIB, (nvidia_card,), 60 * GIB), SHAPE)
    assert once
    assert once.size_bytes == 32149 * MIB - GIB


def test_the_right_one_of_several_cards() -> None:
    # the driver names the smaller card first, the engine the larger
    small = Gpu("nvidia", "NVIDIA GeForce RTX 3060", 12288 * MIB, 11000 * MIB)
    large = Gpu("nvidia", "NVIDIA GeForce RTX 4090", 24564 * MIB, 23000 * MIB)
    here = Machine("linux", "6.8", "x86_64", 64 * GIB, (small, large), available_bytes=60 * GIB)
    only = budget_of(engine("CUDA0: NVIDIA GeForce RTX 4090 (24082 MiB, 23687 MiB free)"), here, SHAPE)
    assert only
    assert only.size_bytes == 23000 * MIB
    # a processor's graphics beside a card: what it shares is not counted as a card's
    own = Gpu("amd", "an AMD GPU", 24 * GIB, 23 * GIB, unified=True)
    card = Gpu("nvidia", "NVIDIA GeForce RTX 4060", 8188 * MIB, 7900 * MIB)
    mixed = Machine("linux", "6.8", "x86_64", 64 * GIB, (card, own), available_bytes=60 * GIB)
    both = engine(
        "Vulkan0: AMD Radeon 780M (RADV PHOENIX) (24000 MiB, 23000 MiB free)",
        "Vulkan1: NVIDIA GeForce RTX 4060 (8188 MiB, 7900 MiB free)",
    )
    budget = budget_of(both, mixed, SHAPE)
    assert budget
    assert (budget.memory, budget.size_bytes) == ("discrete", 8188 * MIB - GIB)
    # a card that is full is full, whatever it was when the engine was asked
    full = Machine("linux", "6.8", "x86_64", 64 * GIB, (Gpu("amd", "x", 24 * GIB, 1),), 60 * GIB)
    nothing = budget_of(engine("ROCm0: AMD Radeon RX 7900 XTX (24560 MiB, 24000 MiB free)"), full, SHAPE)
    assert nothing
    assert nothing.size_bytes <= 1


# -- AMD


def amd(root: Path, number: int, **files: int) -> None:
    device = root / f"sys/class/drm/card{number}/device"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x1002\n")
    for name, value in files.items():
        (device / f"mem_info_{name}").write_text(f"{value}\n")


def test_amds_cards_and_processors_with_graphics(tmp_path: Path) -> None:
    # Strix Halo with 1 GiB carved out: what it may map of the machine's memory counts
    amd(tmp_path, 0, vram_total=1073741824, vram_used=477827072, gtt_total=112742891520, gtt_used=1121689600)
    # the same chip with 96 GiB carved out, and a card: their own memory counts
    amd(tmp_path, 1, vram_total=103079215104, vram_used=0, gtt_total=103079215104, gtt_used=0)
    amd(tmp_path, 2, vram_total=25753026560, vram_used=15960199168, gtt_total=33520500736, gtt_used=0)
    halo, carved, card = hardware._linux_gpus(tmp_path)
    assert halo == Gpu("amd", "an AMD GPU", 112742891520, 112742891520 - 1121689600, unified=True)
    assert carved == Gpu("amd", "an AMD GPU", 103079215104, 103079215104)
    assert card == Gpu("amd", "an AMD GPU", 25753026560, 25753026560 - 15960199168)


def test_shared_memory_is_bounded_by_what_is_free() -> None:
    halo = Gpu("amd", "Radeon 8060S", 103079215104, 102 * 10**9, unified=True)
    roomy, crowded = card_budget([halo], 118 * GIB), card_budget([halo], 20 * GIB)
    assert roomy
    assert crowded
    assert (roomy.size_bytes, crowded.size_bytes) == (103079215104 - GIB, 19 * GIB)


# -- the machine's own memory


def test_a_containers_limit_of_either_kind_counts(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("700\n")
    (tmp_path / "memory/memory.usage_in_bytes").write_text("300\n")
    assert hardware.available_bytes(1000, tmp_path) == 400
    # what was only read from files goes when somebody needs the room
    (tmp_path / "memory/memory.stat").write_text("cache 250\ntotal_inactive_file 200\n")
    assert hardware.available_bytes(1000, tmp_path) == 600
    # a container that is full has nothing, which is not the same as nobody knows
    (tmp_path / "memory/memory.limit_in_bytes").write_text("50\n")
    full = hardware.available_bytes(1000, tmp_path)
    budget = budget_of(engine(), Machine("linux", "6", "x86_64", GIB, (), full), SHAPE)
    assert budget
    assert budget.size_bytes == 0
    (tmp_path / "memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert hardware.available_bytes(1000, tmp_path) == 1000


def test_other_model_servers_are_named(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    # half a gigabyte and more, really held
    program.write_text(f"#!{sys.executable}\nheld = b'x' * (600 << 20)\nprint('ready', flush=True)\ninput()\n")
    program.chmod(0o755)
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        child.stdout.readline()
        found = {pid: (name, held) for name, pid, held in hardware.resident_servers()}
        name, held = found[child.pid]
        assert name == "llama-server"
        assert held > 600 << 20
        child.communicate("\n")


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 4),
        ({"cpu.max": "max 100000"}, 4),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "20000 100000"}, 1),
        ({"cpu.max": "6400000 100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu.max": "damaged"}, 4),
    ],
)
def test_a_containers_share_of_the_processor(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path, 4) == cores
