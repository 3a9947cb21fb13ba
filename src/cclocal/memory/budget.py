"""What a machine has for a model."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
#: llama.cpp's own default margin (--fit-target).
MARGIN_BYTES = GIB
#: The share of its memory that macOS lets the GPU wire, by RAM in GiB: (macOS 15 and older, macOS 26 and newer).
#: Source: public reports of recommendedMaxWorkingSetSize; None where nobody has reported one.
#: (8 GB with macOS 26 is not reported either; the older system's share is the more careful guess.)
_APPLE_SHARES: tuple[tuple[int, float | None, float | None], ...] = (
    (8, 2 / 3, 2 / 3),
    (16, 2 / 3, 0.74),
    (18, 2 / 3, 0.74),
    (24, 2 / 3, 0.74),
    (32, 2 / 3, 0.78),
    (36, 0.75, 0.78),
    (48, None, 0.78),
    (64, 0.75, 0.81),
    (96, 0.75, None),
    (128, 0.75, 0.84),
)


@dataclass(frozen=True, slots=True)
class Budget:
    """How many bytes a model may use, after the margin, and where the number comes from."""

    size_bytes: int
    source: str


def apple_budget(ram_bytes: int, macos_version: str, wired_limit_mib: int = 0) -> Budget:
    """What the GPU of a Mac may wire: the limit if one was set, else the system's own share.

    Where a share is not known, the smaller of its neighbours' is taken.
    """
    if wired_limit_mib:
        return Budget(max(0, wired_limit_mib * 2**20 - MARGIN_BYTES), f"iogpu.wired_limit_mb = {wired_limit_mib}")
    column = 2 if int(macos_version.split(".")[0] or 0) >= 26 else 1
    ram_gib = ram_bytes / GIB
    known = [(row[0], share) for row in _APPLE_SHARES if (share := row[column]) is not None]
    above = [share for size, share in known if size >= ram_gib - 0.5]
    below = [share for size, share in known if size <= ram_gib + 0.5]
    exact = [share for size, share in known if abs(size - ram_gib) <= 0.5]
    share = exact[0] if exact else min((*above[:1], *below[-1:]))
    return Budget(
        int(ram_bytes * share) - MARGIN_BYTES,
        f"macOS {macos_version} wires {share:.0%} of {ram_gib:.0f} GB for the GPU",
    )


def host_budget(available_bytes: int) -> Budget:
    """What the processor may use: the memory that is free now, or the container's limit if that is less."""
    return Budget(max(0, available_bytes - MARGIN_BYTES), "the memory that is free now, less 1 GB")
