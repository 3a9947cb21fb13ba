"""Sizes, times and token counts in words. Files count in decimal units, memory in binary ones."""

from __future__ import annotations

import signal

GIB = 2**30
MIB = 2**20


def memory_size(size_bytes: int) -> str:
    """A size in memory, in GiB or MiB: as memory is sold, and as engines print it."""
    return f"{size_bytes / GIB:.1f} GiB" if abs(size_bytes) >= GIB else f"{size_bytes / MIB:.0f} MiB"


def file_size(size_bytes: int | None) -> str:
    """A size on disk or of a download: 1 GB = 10^9 bytes, as hubs and disks count; "?" if unknown."""
    if size_bytes is None:
        return "?"
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"


def count(number: float | None) -> str:
    """A number with separators, or a dash if it is unknown."""
    return "—" if number is None else f"{number:,.0f}"


def seconds(number_s: float | None) -> str:
    """A duration in seconds, or a dash if it is unknown."""
    return "—" if number_s is None else f"{number_s:,.{1 if number_s >= 1 else 2}f} s"


def duration(number_s: float) -> str:
    """A duration in its two largest units: 12 s, 5 min, 3 h 20 min, 2 d 4 h."""
    minutes, s = divmod(int(number_s), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{s} s"


def window(tokens: int) -> str:
    """A context window in units of 1,024 tokens: 64k."""
    return f"{tokens // 1024}k"


def how_it_ended(code: int) -> str:
    """An exit status in words."""
    if code >= 0:
        return f"exit {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
