"""The header of a GGUF file, without its vocabulary.

A reader of our own, because reading the 800,000 strings of a large vocabulary into Python takes the usual library 40 s;
skipping them takes 0.3 s. Source of the layout: the GGUF specification, version 3 (2 differs in nothing read here).
Everything is checked against the bytes there are, so a hostile length costs neither memory nor time.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

#: Scalar types by id: struct format.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
#: Arrays longer than this are skipped: vocabularies, never shapes.
_KEPT_ITEMS = 4096
#: No real file has more; a damaged or hostile one may claim to.
_MOST_KEYS, _MOST_TENSORS, _MOST_STRINGS, _LONGEST_KEY = 10_000, 100_000, 4_000_000, 65_535
_LONGEST_TEXT = 2**18

#: A larger version number is damage, not a version.
_NEWEST_VERSION = 1000

#: Bytes per block of weights: ggml type id → (weights per block, bytes per block). Source: ggml's type traits.
BLOCKS: Mapping[int, tuple[int, int]] = {
    kind: (weights, size)
    for weights, sizes in (
        (1, {0: 4, 1: 2, 24: 1, 25: 2, 26: 4, 27: 8, 28: 8, 30: 2}),
        (32, {2: 18, 3: 20, 6: 22, 7: 24, 8: 34, 9: 36, 20: 18, 39: 17}),
        (256, {10: 84, 11: 110, 12: 144, 13: 176, 14: 210, 15: 292, 34: 54, 35: 66}),
        (256, {16: 66, 17: 74, 18: 98, 19: 50, 21: 110, 22: 82, 23: 136, 29: 56}),
    )
    for kind, size in sizes.items()
}

Value = bool | int | float | str | list[bool] | list[int] | list[float] | list[str] | None


class BadHeaderError(ValueError):
    """The file is not a GGUF file, or is damaged; the text says how."""


class UnknownHeaderError(BadHeaderError):
    """The file may be valid, but uses something that this reader does not know: nothing can be computed."""


class CutHeaderError(BadHeaderError):
    """The header is longer than the bytes that were given: more of the file is needed."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: its dimensions, fastest first, and how large it is."""

    name: str
    dims: tuple[int, ...]
    kind: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """A GGUF header, without arrays too long to be shapes."""

    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", "?"))

    def get(self, key: str) -> Value:
        """A value of the model's architecture, such as `block_count`."""
        return self.metadata.get(f"{self.architecture}.{key}")


def read_header(data: bytes | memoryview | mmap.mmap) -> Header:
    """The header of a file of which `data` is the beginning (a whole file's mmap will do).

    Raises CutHeaderError if more of the file is needed, BadHeaderError if it cannot be right.
    """
    with memoryview(data) as view:
        reader = _Reader(view)
        if bytes(reader.take(4)) != b"GGUF":
            raise BadHeaderError("it does not begin with GGUF")
        version, tensor_count, key_count = reader.unpack("<IQQ")
        if version > _NEWEST_VERSION:
            raise BadHeaderError(f"it claims the version {version:,}")
        if version not in (2, 3):
            raise UnknownHeaderError(f"its version is {version}, and only 2 and 3 are supported")
        if key_count > _MOST_KEYS or tensor_count > _MOST_TENSORS:
            raise BadHeaderError(f"it claims {key_count:,} keys and {tensor_count:,} tensors")
        metadata: dict[str, Value] = {}
        for _ in range(key_count):
            key = reader.text(_LONGEST_KEY)
            (kind,) = reader.unpack("<I")
            metadata[key] = reader.array() if kind == _ARRAY else reader.scalar(kind)
        tensors = tuple(reader.tensor() for _ in range(tensor_count))
        return Header({k: v for k, v in metadata.items() if v is not None}, tensors)


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self.data, self.at, self.end = data, 0, len(data)

    def take(self, size: int) -> memoryview:
        if size > self.end - self.at:
            raise CutHeaderError(f"it ends after {self.end:,} bytes, in the middle of its header")
        self.at += size
        return self.data[self.at - size : self.at]

    def unpack(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def text(self, longest: int) -> str:
        (size,) = self.unpack("<Q")
        if size > longest:
            raise BadHeaderError(f"it claims a name of {size:,} bytes")
        try:
            return str(self.take(size), "utf-8")
        except UnicodeDecodeError:
            raise BadHeaderError("one of its names is not UTF-8") from None

    def scalar(self, kind: int) -> Value:
        if kind == _STRING:
            (size,) = self.unpack("<Q")
            # the longest text that is used is a chat template
            text = self.take(size)
            return str(text[:_LONGEST_TEXT], "utf-8", "replace")
        if kind not in _SCALARS:
            raise BadHeaderError(f"it uses a value type {kind} that is not known")
        return self.unpack(_SCALARS[kind])[0]

    def array(self) -> Value:
        """Its items if they are few numbers, else None."""
        kind, count = self.unpack("<IQ")
        if kind == _STRING:
            self._skip_strings(count)
            return None
        if kind not in _SCALARS:
            raise BadHeaderError(f"it uses an array of type {kind}, which is not known")
        layout = _SCALARS[kind]
        data = self.take(count * struct.calcsize(layout))
        return list(struct.unpack(f"<{count}{layout[1]}", data)) if count <= _KEPT_ITEMS else None

    def _skip_strings(self, count: int) -> None:
        if count > _MOST_STRINGS:
            raise BadHeaderError(f"it claims a list of {count:,} words")
        data, at, unpack_from = self.data, self.at, struct.Struct("<Q").unpack_from
        try:
            for _ in range(count):
                at += 8 + unpack_from(data, at)[0]
        except (struct.error, OverflowError):
            at = self.end + 1
        if at > self.end:
            raise CutHeaderError(f"it ends after {self.end:,} bytes, in the middle of its vocabulary")
        self.at = at

    def tensor(self) -> Tensor:
        name = self.text(_LONGEST_KEY)
        (axes,) = self.unpack("<I")
        if axes > 8:
            raise BadHeaderError(f"it claims a tensor of {axes} dimensions")
        dims = self.unpack(f"<{axes}Q")
        kind, _offset = self.unpack("<IQ")
        if kind not in BLOCKS:
            raise UnknownHeaderError(f"it uses weights of type {kind}, which is not known")
        weights, size = BLOCKS[kind]
        return Tensor(name, dims, kind, prod(dims) // weights * size)
