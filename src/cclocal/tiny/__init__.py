"""The tiny model: weights that are computed, not trained, as a GGUF file and as an MLX folder.

It is a copy circuit, not a language model: it copies words of the request into a tool call, so that anyone can see
the whole chain (agent, server, tool, file on disk) work in seconds, offline, before downloading 18 GB.

    Create the file P with content: C   →  Write {file_path: P, content: C}
    Run the command: C                  →  Bash {command: C}
    Exec: C                             →  exec_command {cmd: C}
    (after a tool's result)             →  Done.
    anything else                       →  I am a tiny test model.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cclocal.paths import make_folder, write_private
from cclocal.tiny.as_gguf import gguf
from cclocal.tiny.as_mlx import mlx_files

__all__ = ["build", "build_mlx", "gguf", "mlx_files", "ollama_template", "path_of", "recipe_id"]

_HERE = Path(__file__).parent


def path_of(is_mlx: bool, folder: Path) -> Path:
    """Where the model is built. The name has a checksum of the recipe, so that a new recipe gets a new file."""
    return folder / f"tiny-copy-circuit-{recipe_id()}{'-mlx' if is_mlx else '.gguf'}"


def build(folder: Path) -> Path:
    """Write the model into `folder` unless it is there, and return its path (5.6 MB, under a second)."""
    path = path_of(False, folder)
    if not path.exists():
        make_folder(folder)
        write_private(path, gguf())
    return path


def build_mlx(folder: Path) -> Path:
    """Write the model as an MLX folder into `folder` unless it is there, and return its path (11 MB)."""
    path = path_of(True, folder)
    # config.json is written last, so that a folder that has it is complete
    if not (path / "config.json").exists():
        make_folder(path)
        files = mlx_files()
        config = files.pop("config.json")
        for name, data in (*files.items(), ("config.json", config)):
            write_private(path / name, data)
    return path


def ollama_template() -> str:
    """The same conversation format for Ollama, which reads Go templates and not the file's own."""
    return (_HERE / "template.gotmpl").read_text("utf-8")


def recipe_id() -> str:
    """Eight hex digits that change when the recipe does."""
    digest = hashlib.sha256()
    for source in sorted(path for path in _HERE.iterdir() if path.is_file()):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:8]
