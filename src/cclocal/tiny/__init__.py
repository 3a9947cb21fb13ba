"""The tiny model: weights that are computed, not trained, as a GGUF file and as an MLX folder.

It is a copy circuit, not a language model: it copies words of the request into a tool call, so that anyone can see
the whole chain (agent, server, tool, file on disk) work in seconds, offline, before downloading 18 GB.

    Create the file P with content: C   →  Write {file_path: P, content: C}, or write {path: P, content: C}
    Run the command: C                  →  Bash {command: C}, bash {command: C} or exec_command {cmd: C}
    (after a tool's result)             →  Done.
    anything else                       →  I am a tiny test model.

It calls the tools that the agent offers, if it knows their names. A second one, “tiny-eyes”, has a projector too:

    Look at the picture: P              →  Read {file_path: P}
    (a picture)                         →  I see red. | I see green. | I see blue. | I see black.

model.zip is written by `python -m tools.tiny_model`, which computes the weights; most of them are 0.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal
from zipfile import ZipFile

from cclocal.models.catalog import Builtin
from cclocal.paths import write_private

#: The projector of “tiny-eyes”, as its variant in models.toml names it.
PROJECTOR = "mmproj.gguf"
#: Each model's file in the archive, and what its files here begin with.
_FILES: Mapping[Builtin, tuple[str, str]] = {
    "tiny": ("model.gguf", "tiny-copy-circuit"),
    "tiny-eyes": ("eyes/model.gguf", "tiny-eyes"),
}
_ARCHIVE = Path(__file__).with_name("model.zip")
_TEMPLATE = Path(__file__).with_name("template.gotmpl")


def gguf(name: Builtin = "tiny") -> bytes:
    """A model as one GGUF file (6 MB)."""
    return _packed(_FILES[name][0])


def projector() -> bytes:
    """The projector of “tiny-eyes” (120 kB)."""
    return _packed(f"eyes/{PROJECTOR}")


def _packed(name: str) -> bytes:
    with ZipFile(_ARCHIVE) as packed:
        return packed.read(name)


def mlx_files() -> dict[str, bytes]:
    """The files of the model as an MLX folder, by name (11 MB)."""
    with ZipFile(_ARCHIVE) as packed:
        return {Path(name).name: packed.read(name) for name in packed.namelist() if name.startswith("mlx/")}


def hf_files() -> dict[str, bytes]:
    """The files of the model as transformers and vLLM read it, by name: the MLX folder's, with other rotations.

    MLX rotates neighbouring dimensions together, they rotate the halves of a head: the rows of q and k change places.
    """
    files = mlx_files()
    raw, length = files["model.safetensors"], struct.calcsize("<Q")
    start = length + struct.unpack_from("<Q", raw)[0]
    head = json.loads(raw[length:start])
    data = bytearray(raw[start:])
    for name, tensor in head.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            (begin, end), rows = tensor["data_offsets"], tensor["shape"][0]
            size = (end - begin) // rows
            whole = [bytes(data[at : at + size]) for at in range(begin, end, size)]
            data[begin:end] = b"".join(whole[0::2] + whole[1::2])
    # the only kind of file that transformers takes
    head["__metadata__"] = {"format": "pt"}
    text = json.dumps(head).encode()
    config = {**json.loads(files["config.json"]), "hidden_act": "silu"}
    del config["rope_traditional"]
    generation = {"eos_token_id": config["eos_token_id"], "do_sample": False}
    return {
        **files,
        "model.safetensors": struct.pack("<Q", len(text)) + text + bytes(data),
        "config.json": json.dumps(config).encode(),
        "generation_config.json": json.dumps(generation).encode(),
    }


def ollama_template() -> str:
    """The same conversation format for Ollama, which reads Go templates and not the file's own."""
    return _TEMPLATE.read_text("utf-8")


def path_of(name: Builtin, is_mlx: bool, folder: Path) -> Path:
    """Where a model is unpacked. The name has a checksum of its files, so that a new model gets a new name."""
    checksum = hashlib.sha256(_ARCHIVE.read_bytes() + _TEMPLATE.read_bytes()).hexdigest()[:8]
    place = folder / f"{_FILES[name][1]}-{checksum}"
    if name == "tiny-eyes":
        return place / "model.gguf"
    return place.with_name(f"{place.name}-mlx") if is_mlx else place.with_name(f"{place.name}.gguf")


def built(folder: Path) -> Iterator[tuple[Builtin, Literal["gguf", "mlx"], Path]]:
    """The models that are in `folder`, also of earlier versions: each with its form, and the file or folder."""
    for name, (_, begins) in _FILES.items():
        for path in sorted(folder.glob(f"{begins}-*")):
            yield name, "mlx" if path.name.endswith("-mlx") else "gguf", path


def build(folder: Path, *, name: Builtin = "tiny", is_mlx: bool = False) -> Path:
    """Write the GGUF file, or the MLX folder, into `folder` unless it is there, and return its path."""
    path = path_of(name, is_mlx, folder)
    if not is_mlx and not path.exists():
        if name == "tiny-eyes":
            # the model is written last: where it is, the projector is
            write_private(path.with_name(PROJECTOR), projector())
        write_private(path, gguf(name))
    # config.json is written last, so that a folder that has it is complete
    if is_mlx and not (path / "config.json").exists():
        files = mlx_files()
        for file in sorted(files, key=lambda file: file == "config.json"):
            write_private(path / file, files[file])
    return path
