"""Shapes of models whose dimensions are published, by which a model is planned before its header has been seen.

published.json is written by bench/published_shapes.py, which names the source of the dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from cclocal.memory.shape import Form, Layer, Shape


@cache
def _rows() -> Mapping[str, dict[str, Any]]:
    return dict(json.loads(Path(__file__).with_name("published.json").read_text("utf-8")))


def published_shape(name: str | None, form: Form, weights_bytes: int | None = None) -> Shape | None:
    """The shape of a model by the name of its dimensions, its weights scaled to `weights_bytes` if that is known.

    None if no dimensions of that name are published.
    """
    row = dict(_rows().get(name or "", {}))
    if not row:
        return None
    kinds = [Layer(*values) for values in row.pop("layer_kinds")]
    heads, unpacked = row.pop("mlx_score_heads"), row.pop("mlx_unpacked_elements")
    lists = {key: tuple(value) for key, value in row.items() if isinstance(value, list)}
    shape = Shape(**{**row, **lists, "layers": tuple(kinds[at] for at in row["layers"])})

    def scaled(size_bytes: int) -> int:
        return size_bytes * (weights_bytes or shape.weights_bytes) // shape.weights_bytes

    shape = replace(
        shape,
        weights_bytes=scaled(shape.weights_bytes),
        device_weights_bytes=scaled(shape.device_weights_bytes),
        layer_weights_bytes=tuple(map(scaled, shape.layer_weights_bytes)),
        expert_weights_bytes=tuple(map(scaled, shape.expert_weights_bytes)),
    )
    if form == "gguf":
        return shape
    return replace(
        shape, form=form, device_weights_bytes=shape.weights_bytes, score_heads=heads, unpacked_elements=unpacked
    )
