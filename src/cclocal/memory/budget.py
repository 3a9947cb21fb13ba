"""The memory that a machine has for a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cclocal.memory.footprint import Memory
from cclocal.units import GIB, MIB, memory_size

#: llama.cpp's own default margin (--fit-target), and the larger one that MLX wants: it allocates as it goes.
MARGIN_BYTES = GIB
MLX_MARGIN_BYTES = 3 * GIB // 2
#: The share of its memory that macOS lets the GPU wire, by RAM in GiB: (macOS 15 and older, macOS 26 and newer).
#: Source: public reports of recommendedMaxWorkingSetSize; None where no report is known.
#: (8 GB with macOS 26 is unreported too; the older system's share is the more careful guess.)
_APPLE_SHARES: tuple[tuple[int, float | None, float | None], ...] = (
    (8, 2 / 3, 2 / 3),
    (16, 2 / 3, 0.74),
    (18, 2 / 3, 0.74),
    (24, 2 / 3, 0.74),
    (32, 2 / 3, 0.78),
    (36, 0.75, 0.78),
    (48, 0.75, 0.78),
    (64, 0.75, 0.81),
    (96, 0.75, None),
    (128, 0.75, 0.84),
)
#: What a Mac keeps at least beside its GPU's memory: with less, machines have frozen (mlx#3186, mlx-lm#883).
_KEPT_BYTES, _KEPT_SHARE = 6 * GIB, 0.125
#: What many guides leave to the system; used only when asked for.
_KEPT_ON_REQUEST_BYTES = 3 * GIB
#: Macs up to this size are never offered a higher limit.
_TOO_SMALL_TO_RAISE_BYTES = 16 * GIB
#: A device in llama.cpp's --list-devices: "… (24564 MiB, 23000 MiB free)".
_DEVICE = re.compile(r"\((\d+) MiB, (\d+) MiB free\)\s*$")


@dataclass(frozen=True, slots=True)
class Budget:
    """How many bytes a model may use, after the margin, and where that number comes from.

    host_bytes: what host memory has for the rest, where the device has a memory of its own; None = the same memory.
    limit_mib: on a Mac, the limit of its GPU's memory. available_bytes: what is free now; 0 = unknown.
    """

    size_bytes: int
    source: str
    memory: Memory = "host"
    host_bytes: int | None = None
    limit_mib: int | None = None
    margin_bytes: int = MARGIN_BYTES
    available_bytes: int = 0

    def raised(self, limit_mib: int) -> Budget:
        """The same Mac with another wired limit."""
        size, source = _bounded(
            limit_mib * MIB - self.margin_bytes, f"iogpu.wired_limit_mb = {limit_mib}", self.available_bytes
        )
        return replace(self, size_bytes=size, limit_mib=limit_mib, source=source)


@dataclass(frozen=True, slots=True)
class Card:
    """One graphics processor's memory; 0 = unknown. unified: it has none of its own."""

    name: str
    total_bytes: int
    free_bytes: int
    unified: bool = False


def host_budget(
    available_bytes: int, margin_bytes: int = MARGIN_BYTES, what: str = "the memory that is free now"
) -> Budget:
    """The budget of a processor: the memory that is free now, or a container's limit if that is less."""
    return Budget(max(0, available_bytes - margin_bytes), f"{what}, less {memory_size(margin_bytes)}")


def card_budget(cards: Sequence[Card], available_bytes: int) -> Budget | None:
    """The budget of graphics cards together, or of a processor's graphics; None if no card reported its memory.

    llama.cpp spreads a model's layers over all cards.
    """
    known = [card for card in cards if card.total_bytes]
    shared = [card for card in cards if card.unified]
    if shared and not [card for card in known if not card.unified]:
        most = max((card.total_bytes for card in shared), default=0) or available_bytes
        names = " and ".join(card.name for card in shared)
        free = available_bytes < most
        source = f"{names} shares this machine's memory, of which " + (
            f"{memory_size(available_bytes)} are free now" if free else f"{memory_size(most)} are for graphics"
        )
        return Budget(
            max(0, min(most, available_bytes) - MARGIN_BYTES), source, "unified", available_bytes=available_bytes
        )
    cards = [card for card in known if not card.unified]
    if not cards:
        return None
    size = sum(max(0, min(card.total_bytes - MARGIN_BYTES, card.free_bytes)) for card in cards)
    free = any(card.free_bytes < card.total_bytes - MARGIN_BYTES for card in cards)
    names = " and ".join(f"{memory_size(card.total_bytes)} of {card.name}" for card in cards)
    source = names + (
        f", of which {memory_size(sum(card.free_bytes for card in cards))} are free now"
        if free
        else ", less 1.0 GB each"
    )
    host = max(0, available_bytes - MARGIN_BYTES)
    return Budget(size, source, "discrete", host_bytes=host)


def apple_budget(
    ram_bytes: int,
    macos_version: str,
    wired_limit_mib: int = 0,
    *,
    reported_bytes: int = 0,
    reported_by: str = "",
    available_bytes: int = 0,
    margin_bytes: int = MARGIN_BYTES,
) -> Budget:
    """The budget of a Mac's GPU: its limit, and no more than is free now.

    The limit is, in this order: what Metal reported to an engine or to MLX (`reported_bytes`, `reported_by`), the limit
    that was set, the system's own share by memory size and version; where that is unknown, the smaller of its
    neighbours'.
    """
    if reported_bytes:
        limit, source = reported_bytes, f"{reported_by} may wire {memory_size(reported_bytes)}"
    elif wired_limit_mib:
        limit, source = wired_limit_mib * MIB, f"iogpu.wired_limit_mb = {wired_limit_mib}"
    else:
        share = _apple_share(ram_bytes / GIB, macos_version)
        limit = int(ram_bytes * share)
        source = f"macOS {macos_version} wires {share:.0%} of {ram_bytes / GIB:.0f} GB for the GPU"
    # a limit beyond all memory means nothing
    size, source = _bounded(min(limit, ram_bytes) - margin_bytes, source, available_bytes)
    return Budget(
        size,
        source,
        "unified",
        limit_mib=limit // MIB,
        margin_bytes=margin_bytes,
        available_bytes=available_bytes,
    )


def _bounded(size_bytes: int, source: str, available_bytes: int) -> tuple[int, str]:
    """(the size, but no more than is free now, its source)."""
    if 0 < available_bytes < size_bytes:
        return available_bytes, f"{memory_size(available_bytes)} are free now; {source}"
    return max(0, size_bytes), source


def _apple_share(ram_gib: float, macos_version: str) -> float:
    column = 2 if int(macos_version.split(".")[0] or 0) >= 26 else 1
    known = [(row[0], share) for row in _APPLE_SHARES if (share := row[column]) is not None]
    above = [share for size, share in known if size >= ram_gib - 0.5]
    below = [share for size, share in known if size <= ram_gib + 0.5]
    exact = [share for size, share in known if abs(size - ram_gib) <= 0.5]
    return exact[0] if exact else min((*above[:1], *below[-1:]))


def safe_limit_mib(ram_bytes: int) -> int:
    """The highest wired limit that is offered: RAM − max(6 GiB, 12.5 %); 0 on machines too small for any."""
    if ram_bytes <= _TOO_SMALL_TO_RAISE_BYTES + GIB // 2:
        return 0
    return int(ram_bytes - max(_KEPT_BYTES, ram_bytes * _KEPT_SHARE)) // MIB


def highest_limit_mib(ram_bytes: int) -> int:
    """The highest wired limit that may be asked for by name: RAM − 3 GiB."""
    return max(0, ram_bytes - _KEPT_ON_REQUEST_BYTES) // MIB


def device_memory(device: str) -> tuple[int, int]:
    """(total, free) bytes of a device as llama.cpp lists it; (0, 0) if it does not say."""
    found = _DEVICE.search(device)
    return (int(found[1]) * MIB, int(found[2]) * MIB) if found else (0, 0)
