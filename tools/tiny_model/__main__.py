"""Write the tiny model's files into the package: python -m tools.tiny_model"""

from __future__ import annotations

import io
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from cclocal.tiny import PROJECTOR
from tools.tiny_model import eyes
from tools.tiny_model.as_gguf import gguf
from tools.tiny_model.as_mlx import mlx_files

TARGET = Path(__file__).parents[2] / "src/cclocal/tiny/model.zip"


def files() -> dict[str, bytes]:
    """Every file of both forms, by its name in the archive."""
    seeing = {"eyes/model.gguf": eyes.model(), f"eyes/{PROJECTOR}": eyes.projector()}
    return {"model.gguf": gguf(), **seeing} | {f"mlx/{name}": data for name, data in mlx_files().items()}


def archive() -> bytes:
    """The archive; the same files give the same bytes."""
    buffer = io.BytesIO()
    with ZipFile(buffer, "w", ZIP_DEFLATED, compresslevel=9) as packed:
        for name, data in files().items():
            # a fixed date, 1980-01-01
            info = ZipInfo(name)
            info.compress_type = ZIP_DEFLATED
            packed.writestr(info, data, compresslevel=9)
    return buffer.getvalue()


if __name__ == "__main__":
    TARGET.write_bytes(archive())
