"""The buffer sizes that llama.cpp logs while it loads a model."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cclocal.units import MIB

#: "llama_kv_cache:      CUDA0 KV buffer size =   512.00 MiB"; the words before have changed over the years.
_LINE = re.compile(r"(\S+)\s+(model|KV|RS|compute|output) buffer size\s*=\s*([\d.]+) MiB")
#: A vision model's projector reports its compute buffer in the same words.
_PROJECTOR = re.compile(r"^.*(?:clip|reserve_compute_meta).*$", re.MULTILINE)
_HOST = re.compile(r"CPU|.*_Host$")


@dataclass(frozen=True, slots=True)
class Buffers:
    """The bytes an engine allocated, by part, where the model is computed; `host_bytes` is what is elsewhere."""

    weights_bytes: int
    kv_bytes: int
    state_bytes: int
    compute_bytes: int
    host_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.state_bytes + self.compute_bytes


def read_buffers(log: str) -> Buffers | None:
    """The buffers that a server's log reports; None if it reports none.

    A device's compute buffer is named each time it grows, so its last size counts; caches of several kinds add up.
    """
    sizes: dict[tuple[str, str], int] = {}
    for device, part, mib in _LINE.findall(_PROJECTOR.sub("", log)):
        size = round(float(mib) * MIB)
        key = (device, part)
        sizes[key] = size if part in ("compute", "output") else sizes.get(key, 0) + size
    host = all(_HOST.match(device) for device, _ in sizes)

    def total(*parts: str, on_host: bool) -> int:
        return sum(
            size for (device, part), size in sizes.items() if part in parts and bool(_HOST.match(device)) == on_host
        )

    if not any(part in ("KV", "RS") for _, part in sizes):
        return None
    return Buffers(
        weights_bytes=total("model", on_host=host),
        kv_bytes=total("KV", on_host=host),
        state_bytes=total("RS", on_host=host),
        compute_bytes=total("compute", "output", on_host=host),
        host_bytes=0 if host else total("model", "KV", "RS", "compute", "output", on_host=True),
    )
