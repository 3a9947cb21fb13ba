"""PNG files of one colour, to see whether a model sees pictures."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any


def png(colour: tuple[int, int, int], width: int, height: int) -> bytes:
    """A PNG file of one colour (the PNG specification: a header, the rows each after a filter byte, an end)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes(colour) * width) * height
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def image(file: bytes) -> dict[str, Any]:
    """A PNG file as a block of a message, in the neutral form (cclocal.wires)."""
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(file).decode()}
    return {"type": "image", "source": source}
