"""The tiny model's files in the package are those that its generator makes."""

from __future__ import annotations

import json

from cclocal import tiny
from tools.tiny_model.as_gguf import gguf
from tools.tiny_model.as_mlx import mlx_files


def test_the_files_in_the_package_are_those_of_the_generator() -> None:
    assert tiny.gguf() == gguf(), "run: python -m tools.tiny_model"
    assert tiny.mlx_files() == mlx_files(), "run: python -m tools.tiny_model"


def test_the_form_for_transformers_has_the_same_weights_with_its_own_rotations() -> None:
    def tensors(data: bytes) -> dict[str, tuple[list[int], bytes]]:
        size = int.from_bytes(data[:8], "little")
        head = json.loads(data[8 : 8 + size])
        head.pop("__metadata__")
        body = data[8 + size :]
        return {name: (one["shape"], body[slice(*one["data_offsets"])]) for name, one in head.items()}

    theirs = tensors(tiny.hf_files()["model.safetensors"])
    for name, (shape, ours) in tensors(tiny.mlx_files()["model.safetensors"]).items():
        rows = shape[0]
        size = len(ours) // rows
        at = [row // 2 + (row % 2) * rows // 2 for row in range(rows)]
        is_rotated = name.endswith(("q_proj.weight", "k_proj.weight"))
        for row in range(rows):
            there = at[row] if is_rotated else row
            assert theirs[name][1][there * size : (there + 1) * size] == ours[row * size : (row + 1) * size], name
    assert "rope_traditional" not in json.loads(tiny.hf_files()["config.json"])
