"""What a vision model's projector means: the tokens that a picture costs, and the memory of the largest one.

Source of the sizes: llama.cpp's tools/mtmd/clip.cpp and mtmd-image.cpp, compared with the counts of its server
(tests/memory/test_projector.py). Source of the buffers: the tensors that are alive at once in its graphs of each kind,
compared with what it reserves (bench/memory.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from math import ceil, floor, sqrt
from pathlib import Path

from cclocal.memory.gguf import BadHeaderError, Header
from cclocal.memory.shape import Numbers

#: The kinds in which a picture has more tokens the larger it is. For each: the fewest tokens, the most, and how many
#: patches a side make one token if the file does not say.
_SIZES = {"qwen3vl_merger": (8, 4096, 2), "gemma4v": (70, 1120, 3), "gemma4uv": (70, 1120, 3)}
#: In these kinds each part of a picture attends to all of it, so a picture must be read in one micro-batch.
_AT_ONCE = ("gemma3", "gemma4v", "gemma4uv")
#: Gemma 4 E2B and E4B, by the width of their text models, read them as text.
_IN_ORDER_WIDTHS = (1536, 2560)
#: The key of a file with a vision and an audio encoder, and of one with one encoder.
_KINDS = ("clip.vision.projector_type", "clip.projector_type")
_F32, _F16, _COLOURS = 4, 2, 3
#: On the host: a picture's pixels are there this often in f32, and the widest layer's input this often in f16.
#: Measured on a processor with pictures of 256 to 3,844 tokens: 0.9 to 1.05 of it.
_COPIES_OF_PIXELS, _COPIES_OF_WIDEST = 3, 2
#: The plan says how many tokens a screenshot of this size costs.
SCREENSHOT_PX = (1920, 1080)
#: No real projector is larger.
_MOST = 2**24


@dataclass(frozen=True, slots=True)
class Projector:
    """The numbers of a projector that decide what a picture costs.

    patch_px: the side of a patch in pixels. merge: so many patches a side are one token. width and inner: of its
    layers. stacked: layers whose output is kept until the end. side_px: to which it scales every picture, of a kind
    whose pictures have all the same tokens. most_tokens: of one picture. at_once: one is read in one micro-batch.
    is_known: the buffers of its kind were compared with llama.cpp's; of others they are an upper bound.
    """

    kind: str
    weights_bytes: int
    patch_px: int
    merge: int
    width: int
    inner: int
    stacked: int = 0
    side_px: int = 0
    least_tokens: int = 0
    most_tokens: int = 0
    at_once: bool = False
    is_known: bool = True

    def capped(self, most_tokens: int | None) -> Projector:
        """The same if no picture may have more tokens (llama-server's --image-max-tokens)."""
        if not most_tokens or self.side_px or most_tokens >= self.most_tokens:
            return self
        return replace(self, least_tokens=min(self.least_tokens, most_tokens), most_tokens=most_tokens)

    def tokens(self, width_px: int, height_px: int) -> int:
        """The tokens of a picture of so many pixels, without those that mark its beginning and end."""
        if self.side_px:
            return self.most_tokens
        unit = self.patch_px * self.merge
        area = unit**2
        width, height = (max(unit, floor(side / unit + 0.5) * unit) for side in (width_px, height_px))
        if width * height > self.most_tokens * area:
            ratio = sqrt(width_px * height_px / (self.most_tokens * area))
            width, height = (max(unit, floor(side / ratio / unit) * unit) for side in (width_px, height_px))
        elif width * height < self.least_tokens * area:
            ratio = sqrt(self.least_tokens * area / (width_px * height_px))
            width, height = (ceil(side * ratio / unit) * unit for side in (width_px, height_px))
        return width * height // area

    @property
    def device_bytes(self) -> int:
        """What it takes where the model computes: its weights, and the buffers for the largest picture."""
        return self.weights_bytes + self.compute_bytes()

    def compute_bytes(self, tokens: int | None = None) -> int:
        """The buffers in which a picture of so many tokens is encoded, by default of the largest one."""
        patches = self._patches(tokens)
        pixels = patches * self._patch_bytes
        if not self.width:
            return 0
        if self.kind == "gemma4uv":
            # no layers: the pixels, and the same sorted by patches
            return 2 * pixels + self._patch_bytes + 2 * patches * _F32
        if self.kind == "qwen3vl_merger":
            # in attention: its input, Q, K and V in one, Q and K with their positions; and four positions a patch
            alive, positions = (6 + self.stacked) * self.width, 4
        else:
            # in the feed-forward part: gate, up and their product, input, residual and normed input
            alive, positions = 3 * self.inner + 3 * self.width, 2
        # what the pixels leave behind is used again only where a patch's features fit into it
        kept = pixels if self.width > self.patch_px**2 * _COLOURS else 0
        return patches * (alive + positions) * _F32 + kept

    def host_bytes(self, *, computes_there: bool) -> int:
        """What the largest picture takes in host memory besides: its pixels, and what a processor sorts anew."""
        patches = self._patches(None)
        pixels = patches * self._patch_bytes
        widest = patches * max(self.inner, self.width) * _F16
        return _COPIES_OF_PIXELS * pixels + (_COPIES_OF_WIDEST * widest if computes_there else 0)

    def _patches(self, tokens: int | None) -> int:
        return (tokens or self.most_tokens) * self.merge**2

    @property
    def _patch_bytes(self) -> int:
        """The pixels of a patch, in f32."""
        return self.patch_px**2 * _COLOURS * _F32


def projector_of(header: Header) -> Projector:
    """Read a projector from its header.

    Raises BadHeaderError for a file that is no projector, or whose numbers are absurd.
    """
    if header.architecture != "clip":
        raise BadHeaderError("it is no projector: its architecture is not clip")
    kind = next((str(found) for key in _KINDS if (found := header.metadata.get(key))), "")
    numbers = Numbers(header.metadata, "clip.vision.")
    patch, side = numbers.one("patch_size", 0), numbers.one("image_size", 0)
    least, most, merge = _SIZES.get(kind, (0, 0, 1))
    merge = numbers.one("spatial_merge_size", 0) or numbers.one("projector.scale_factor", 0) or merge
    fixed = 0 if most else side
    if fixed and patch:
        most = (fixed // patch // max(1, merge)) ** 2
    if kind == "gemma4uv":
        # the patches are merged by the first layer
        patch, merge = patch * merge, 1
    width, inner = numbers.one("embedding_length", 0), numbers.one("feed_forward_length", 0)
    if max(patch * merge, width, inner, most) > _MOST:
        raise BadHeaderError("it claims absurd dimensions")
    return Projector(
        kind=kind,
        weights_bytes=sum(tensor.size_bytes for tensor in header.tensors),
        patch_px=patch,
        merge=max(1, merge),
        width=width,
        inner=inner,
        stacked=sum(".deepstack." in one.name and one.name.endswith("norm.weight") for one in header.tensors),
        side_px=fixed,
        least_tokens=least,
        most_tokens=most,
        at_once=kind in _AT_ONCE and numbers.one("projection_dim", 0) not in _IN_ORDER_WIDTHS,
        is_known=kind in _SIZES,
    )


def unread_projector(weights_bytes: int) -> Projector:
    """A projector of which only the size is known: its buffers are not counted."""
    return Projector("", weights_bytes, 0, 1, 0, 0, is_known=False)


@cache
def published_projector(name: str | None) -> Projector | None:
    """The projector of the models of that name by its published dimensions; None if none are.

    published_projectors.json is written by bench/projectors.py, which names the source of the dimensions.
    """
    row = json.loads(Path(__file__).with_name("published_projectors.json").read_text("utf-8")).get(name)
    return Projector(**row) if row else None
