"""A second opinion: llama.cpp's own `llama-fit-params` says what it would allocate, without loading anything.

It needs a header only: a sparse file with the header and the whole file's length will do.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cclocal.facts import Engine
from cclocal.memory.fit import Fit, memory_size
from cclocal.server.start import ask as ask_program

LIMIT_S = 20.0
#: Below this two answers are the same.
WORTH_SAYING = 0.03


@dataclass(frozen=True, slots=True)
class Opinion:
    """What llama-fit-params counts, where the model is computed."""

    weights_bytes: int
    cache_bytes: int
    compute_bytes: int

    @property
    def need_bytes(self) -> int:
        return self.weights_bytes + self.cache_bytes + self.compute_bytes

    def differs(self, fit: Fit) -> bool:
        """Whether it is more than 3 % off the plan (which counts more than the engine does: caches of prompts…)."""
        ours = fit.footprint.need_bytes - fit.footprint.other_bytes
        return abs(self.need_bytes - ours) > WORTH_SAYING * ours

    def in_words(self, fit: Fit) -> str:
        parts = fit.footprint
        rows = (
            (
                "weights",
                self.weights_bytes,
                parts.weights_bytes,
                "without a GPU an embedding that is the output too counts twice there",
            ),
            ("caches", self.cache_bytes, parts.kv_bytes + parts.state_bytes, "ask it yourself, and trust it"),
            (
                "compute",
                self.compute_bytes,
                parts.compute_bytes,
                "it holds logits of a whole micro-batch, which a server does not make",
            ),
        )
        off = [
            f"{name} {memory_size(theirs)} instead of {memory_size(ours)} ({why})"
            for name, theirs, ours, why in rows
            if abs(theirs - ours) > WORTH_SAYING * max(theirs, ours)
        ]
        ours = parts.need_bytes - parts.other_bytes
        return (
            f"llama-fit-params counts {memory_size(self.need_bytes)} instead of {memory_size(ours)}: {'; '.join(off)}."
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "weights_bytes": self.weights_bytes,
            "cache_bytes": self.cache_bytes,
            "compute_bytes": self.compute_bytes,
            "need_bytes": self.need_bytes,
        }


def program(engine: Engine | None, environ: Mapping[str, str]) -> Path | None:
    """llama-fit-params beside the llama-server that would be used, else on PATH."""
    beside = [str(Path(os.path.realpath(engine.command[0])).parent)] if engine and engine.form == "binary" else []
    found = shutil.which("llama-fit-params", path=os.pathsep.join((*beside, environ.get("PATH", os.defpath))))
    return Path(found).absolute() if found else None


def ask(tool: Path, fit: Fit, environ: Mapping[str, str], model: Path | tuple[bytes, int]) -> Opinion | None:
    """Its answer for a model as it would be served; `model` is a file, or a header and the file's size.

    None if it does not answer: it is asked for a second opinion, never relied on.
    """
    serving = fit.serving
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
