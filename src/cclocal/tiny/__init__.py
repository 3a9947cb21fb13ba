"""The tiny model: weights that are computed, not trained, as a GGUF file and as an MLX folder.

It is a copy circuit, not a language model: it copies words of the request into a tool call, so that anyone can see
the whole chain (agent, server, tool, file on disk) work in seconds, offline, before downloading 18 GB.

    Create the file P with content: C   →  Write {file_path: P, content: C}, or write {path: P, content: C}
    Run the command: C                  →  Bash {command: C}, bash {command: C} or exec_command {cmd: C}
    (after a tool's result)             →  Done.
    anything else                       →  I am a tiny test model.

It calls the tools that the agent offers, if it knows their names.

model.zip is written by `python -m tools.tiny_model`, which computes the weights; most of them are 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from zipfile import ZipFile

from cclocal.paths import write_private

_ARCHIVE = Path(__file__).with_name("model.zip")
_TEMPLATE = Path(__file__).with_name("template.gotmpl")


def gguf() -> bytes:
    """The model as one GGUF file (6.3 MB)."""
    with ZipFile(_ARCHIVE) as packed:
        return packed.read("model.gguf")


def mlx_files() -> dict[str, bytes]:
    """The files of the model as an MLX folder, by name (11 MB)."""
    with ZipFile(_ARCHIVE) as packed:
        return {Path(name).name: packed.read(name) for name in packed.namelist() if name.startswith("mlx/")}


def ollama_template() -> str:
    """The same conversation format for Ollama, which reads Go templates and not the file's own."""
    return _TEMPLATE.read_text("utf-8")


def path_of(is_mlx: bool, folder: Path) -> Path:
    """Where the model is unpacked. The name has a checksum of its files, so that a new model gets a new name."""
    checksum = hashlib.sha256(_ARCHIVE.read_bytes() + _TEMPLATE.read_bytes()).hexdigest()[:8]
    return folder / f"tiny-copy-circuit-{checksum}{'-mlx' if is_mlx else '.gguf'}"


def built(folder: Path) -> Iterator[tuple[Literal["gguf", "mlx"], Path]]:
    """The forms of the model that are in `folder`, also of earlier versions, and where."""
    for path in sorted(folder.glob("tiny-copy-circuit-*")):
        yield "gguf" if path.suffix == ".gguf" else "mlx", path


def build(folder: Path, *, is_mlx: bool = False) -> Path:
    """Write the GGUF file, or the MLX folder, into `folder` unless it is there, and return its path."""
    path = path_of(is_mlx, folder)
    if not is_mlx and not path.exists():
        write_private(path, gguf())
    # config.json is written last, so that a folder that has it is complete
    if is_mlx and not (path / "config.json").exists():
        files = mlx_files()
        for name in sorted(files, key=lambda name: name == "config.json"):
            write_private(path / name, files[name])
    return path
