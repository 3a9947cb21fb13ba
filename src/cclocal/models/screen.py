"""Finds what in a model's files could run code while it is loaded, and files that are not the ones the catalog names.

A model is data, but some loaders run programs that come with it: mlx-lm the `model_file` of a config.json, transformers
what an `auto_map` names, PyTorch whatever a pickle says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from cclocal.errors import UnsafeModelError
from cclocal.models import hub
from cclocal.models.catalog import Variant
from cclocal.models.headers import template_of_gguf
from cclocal.paths import Env, read_table
from cclocal.programs import Answers
from cclocal.units import file_size

#: Keys of configurations that name Python code.
_CODE_KEYS = ("model_file", "auto_map")
_CONFIGS = "*config.json"
_PROGRAMS = ("*.py", "*.pyc", "*.so")
#: What PyTorch and its like unpickle.
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib")
#: The longest chat templates of known models have 20 kB. The server interprets a template at each request.
MOST_TEMPLATE_BYTES = 128 * 1024


def of_config(name: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """What in a configuration file names code."""
    return tuple(f"{name} names Python code ({key})" for key in _CODE_KEYS if config.get(key))


def refuse_unsafe(variant: Variant, path: str, trusted: Sequence[str], env: Env) -> None:
    """Check a variant's files on disk. Raises UnsafeModelError (40) unless the user trusts this very state of them."""
    folder = Path(path)
    if variant.is_folder:
        found = tuple(_in_folder(folder)) if folder.is_dir() else ()
    else:
        found = tuple(_in_gguf(folder)) if folder.is_file() else ()
    commit = hub.recorded_revision(variant.repo, env.environ) if variant.repo else _digest(folder) if found else ""
    refuse(found, variant.source, commit or "main", trusted)


def refuse(found: Sequence[str], source: str, commit: str, trusted: Sequence[str]) -> None:
    """Raises UnsafeModelError (40) if something was found in a model that is not trusted at that commit."""
    if found and f"{source}@{commit}" not in trusted:
        raise UnsafeModelError(
            f"{source} could run code while it is loaded.",
            cause=found[:5],
            hint=f"another model    or, once you have read it: --trust-model {source}@{commit}",
        )


def _in_folder(folder: Path) -> Iterator[str]:
    for path in sorted(folder.iterdir()):
        if fnmatch(path.name, _CONFIGS):
            yield from of_config(path.name, read_table(path))
        elif any(fnmatch(path.name, one) for one in _PROGRAMS):
            yield f"{path.name} is a program"
        elif any(fnmatch(path.name, one) for one in _PICKLES):
            yield f"{path.name} may be a pickle, which runs code when it is read"


def _in_gguf(path: Path) -> Iterator[str]:
    if len(template_of_gguf(path).encode()) > MOST_TEMPLATE_BYTES:
        yield f"its chat template has more than {file_size(MOST_TEMPLATE_BYTES)}; those of known models have 20 kB"


def _digest(path: Path) -> str:
    """Identifies the files in which something was found, where there is no commit."""
    total = hashlib.sha256(template_of_gguf(path).encode() if path.is_file() else b"")
    names = (_CONFIGS, *_PROGRAMS, *_PICKLES)
    files = sorted(p for p in path.iterdir() if any(fnmatch(p.name, n) for n in names)) if path.is_dir() else []
    for file in files:
        total.update(f"{file.name} {hub.sha256_of(file)}".encode())
    return total.hexdigest()[:12]


def refuse_others(variant: Variant, answers: Answers, env: Env) -> None:
    """Raises UnsafeModelError (40) if files on disk are not those that the catalog pins: its revision, its checksums.

    A file is read once; its checksum is remembered as long as it does not change.
    """
    repo = variant.repo or ""
    there = hub.recorded_revision(repo, env.environ) if repo else None
    hint = f"cclocal rm {repo}    then start it again"
    if variant.revision and there and there != variant.revision:
        words = f"{repo} is at revision {there} on this disk; the catalog pins {variant.revision}."
        raise UnsafeModelError(words, hint=hint)
    for name, wanted in variant.sha256.items():
        path = hub.cached(repo, (name,), env.environ).get(name)
        if path is None:
            continue
        found = answers.of(answers.key(path.resolve(), "sha256"), partial(hub.sha256_of, path))
        if found != wanted.lower():
            words = f"{name} of {repo} is another file than the one that the catalog pins."
            raise UnsafeModelError(words, cause=[f"sha256 {found}", f"pinned {wanted.lower()}"], hint=hint)
