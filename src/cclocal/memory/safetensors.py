"""The header of a safetensors file: eight bytes of length, then JSON. Source: the safetensors format description."""

from __future__ import annotations

import json
import struct
from typing import Any

from cclocal.memory.gguf import BadHeaderError, CutHeaderError

#: No real header is longer (the format's own limit); a damaged or hostile one may claim to.
LONGEST_BYTES = 100_000_000


def weights_bytes(data: bytes) -> int:
    """The bytes of all tensors of a file of which `data` is the beginning.

    Raises CutHeaderError if more of the file is needed, BadHeaderError if it cannot be right.
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
        raise BadHeaderError("its header is no JSON") from None
    if not isinstance(header, dict):
        raise BadHeaderError("its header is no table")
    return sum(_size(name, tensor) for name, tensor in header.items() if name != "__metadata__")


def _size(name: str, tensor: Any) -> int:
    at = tensor.get("data_offsets") if isinstance(tensor, dict) else None
    if not isinstance(at, list) or len(at) != 2 or not all(type(n) is int and 0 <= n < 2**63 for n in at):
        raise BadHeaderError(f"its tensor {name[:80]!a} has no place")
    return max(0, int(at[1]) - int(at[0]))
