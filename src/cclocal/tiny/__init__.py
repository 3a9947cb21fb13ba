"""The tiny model: weights that are computed, not trained, as a GGUF file and as an MLX folder.

It is a copy circuit, no language model: it copies words of the request into a tool call, so that anyone can see
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

__all__ = ["build", "build_mlx", "gguf", "mlx_files", "ollama_template", "path_in", "recipe_id"]

_HERE = Path(__file__).parent


def path_in(folder: Path) -> Path:
    """Where `build` puts the file. The name carries a checksum of the recipe: a new one never meets an old file."""
    return folder / f"tiny-copy-circuit-{recipe_id()}.gguf"


def build(folder: Path) -> Path:
    """Write the model into `folder` unless it is there, and return its path (5.6 MB, under a second)."""
    path = path_in(folder)
    if not path.exists():
        make_folder(folder)
        write_private(path, gguf())
    return path


def build_mlx(folder: Path) -> Path:
    """Write the model as an MLX folder into `folder` unless it is there, and return its path (11 MB)."""
    path = folder / f"tiny-copy-circuit-{recipe_id()}-mlx"
    # written last, so that a folder that has it is whole
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
