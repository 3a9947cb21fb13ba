"""The header of a safetensors file: eight bytes of length, then JSON. Source: the safetensors format description."""

from __future__ import annotations

import json
import struct
from typing import Any

from cclocal.memory.gguf import BadHeaderError, CutHeaderError
from cclocal.units import file_size

#: No real header is longer (the format's own limit); a damaged or hostile one may claim to.
LONGEST_BYTES = 100_000_000


def weights_bytes(data: bytes, file_bytes: int | None = None) -> int:
    """The bytes of all tensors of a file of which `data` is the beginning.

    Raises CutHeaderError if more of the file is needed, BadHeaderError if it cannot be right; with `file_bytes` also if
    the file ends before its last tensor.
    """
    if len(data) < 8:
        raise CutHeaderError(f"it ends after {len(data)} bytes, in the middle of its header")
    (size,) = struct.unpack("<Q", data[:8])
    if not 2 <= size <= LONGEST_BYTES:
        raise BadHeaderError(f"it claims a header of {size:,} bytes")
    if len(data) < 8 + size:
        raise CutHeaderError(f"it ends after {len(data):,} bytes, in the middle of its header")
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError):
        raise BadHeaderError("its header is not JSON") from None
    if not isinstance(header, dict):
        raise BadHeaderError("its header is not a JSON object")
    places = [_place(name, tensor) for name, tensor in header.items() if name != "__metadata__"]
    needed = 8 + size + max((end for _, end in places), default=0)
    if file_bytes is not None and file_bytes < needed:
        raise BadHeaderError(f"it is cut off: {file_size(file_bytes)} of {file_size(needed)} are there")
    return sum(max(0, end - start) for start, end in places)


def _place(name: str, tensor: Any) -> tuple[int, int]:
    at = tensor.get("data_offsets") if isinstance(tensor, dict) else None
    if not isinstance(at, list) or len(at) != 2 or not all(type(n) is int and 0 <= n < 2**63 for n in at):
        raise BadHeaderError(f"its tensor {name[:80]!a} has no valid data_offsets")
    return int(at[0]), int(at[1])
