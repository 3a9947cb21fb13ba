"""The tiny model's files in the package are those that its generator makes."""

from __future__ import annotations

from cclocal import tiny
from tools.tiny_model.as_gguf import gguf
from tools.tiny_model.as_mlx import mlx_files


def test_the_files_in_the_package_are_those_of_the_generator() -> None:
    assert tiny.gguf() == gguf(), "run: python -m tools.tiny_model"
    assert tiny.mlx_files() == mlx_files(), "run: python -m tools.tiny_model"
