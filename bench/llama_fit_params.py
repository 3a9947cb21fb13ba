"""llama.cpp's own `llama-fit-params`: what it would allocate, without loading anything. For bench/ and the tests.

A header is enough: a sparse file with the header and the length of the whole file.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cclocal.memory.fit import Fit
from cclocal.programs import ask as ask_program

LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Opinion:
    """What llama-fit-params counts, where the model is computed."""

    weights_bytes: int
    cache_bytes: int
    compute_bytes: int

    @property
    def need_bytes(self) -> int:
        return self.weights_bytes + self.cache_bytes + self.compute_bytes


def ask(tool: Path, fit: Fit, environ: Mapping[str, str], model: Path | tuple[bytes, int]) -> Opinion | None:
    """Its answer for a model as it would be served; `model` is a file, or a header and the file's size.

    None if it does not answer.
    """
    serving = fit.config
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError), _file(model) as file:
        words = [
            *(str(tool), "--model", str(file), "--ctx-size", str(serving.context_tokens), "--fit-print", "on"),
            *("--parallel", str(serving.slots), "--ubatch-size", str(serving.ubatch_tokens)),
            *("--cache-type-k", serving.kv_type, "--cache-type-v", serving.kv_type),
            # repacked weights would count twice
            "--no-repack",
        ]
        done = ask_program(words, environ, LIMIT_S)
        rows = re.findall(r"^(\S+) (\d+) (\d+) (\d+)\s*$", done.stdout, re.MULTILINE)
        cards = [row for row in rows if row[0] != "Host"] or rows
        if cards:
            parts = (sum(int(row[column]) * 2**20 for row in cards) for column in (1, 2, 3))
            return Opinion(*parts)
    return None


@contextmanager
def _file(model: Path | tuple[bytes, int]) -> Iterator[Path]:
    if isinstance(model, Path):
        yield model
        return
    header, size = model
    with tempfile.TemporaryDirectory(prefix="cclocal-") as folder:
        path = Path(folder, "header.gguf")
        path.write_bytes(header)
        os.truncate(path, max(size, len(header)))
        yield path
