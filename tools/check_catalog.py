"""Ask the hub whether what models.toml names is still there: python tools/check_catalog.py [MODELS.TOML]

A line for each repository, file and size that is not as the catalog says; exit status 1 if there is one. A size may be
off by 1 % where its source says that it is rounded. HF_ENDPOINT names another hub.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from cclocal.discovery.look import rules
from cclocal.errors import CclocalError
from cclocal.models.catalog import Variant
from cclocal.models.catalog_file import load
from cclocal.models.repo_files import ask_hub, listed_bytes, with_file_names
from cclocal.paths import Env

ROUNDED = 0.01


def faults(source: Path, env: Env) -> Iterator[str]:
    """What the hub says otherwise."""
    for model in load(source, rules()).models.values():
        repos = {variant.repo for variant in model.variants if variant.repo}
        gone = set()
        for repo in sorted(repos):
            try:
                ask_hub(repo, env)
            except CclocalError as error:
                gone.add(repo)
                yield f"{model.id}: {error.message}"
        for variant in with_file_names(model, env).variants:
            if variant.repo and variant.repo not in gone:
                yield from (f"{model.id}, {variant.quant}: {fault}" for fault in _faults_of(variant, env))


def _faults_of(variant: Variant, env: Env) -> Iterator[str]:
    repo = variant.repo or ""
    if not variant.files:
        yield f"{repo} has no such file"
        return
    sizes = {file: listed_bytes(repo, file, env) for file in variant.files}
    if missing := [file for file, size in sizes.items() if not size]:
        yield f"{repo} has no {', '.join(missing)}"
    elif variant.size_bytes:
        there, said = sum(sizes.values()), variant.size_bytes
        # an MLX model's size is that of the whole repository, with its tokenizer
        is_near = variant.is_folder or "rounded" in (variant.size_source or "")
        if abs(there - said) > said * (ROUNDED if is_near else 0):
            yield f"{there:,} bytes, not {said:,}"


def main() -> int:
    """Print the faults."""
    here = Path(__file__).parents[1] / "models.toml"
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else here
    found = list(faults(source, Env.of(os.environ)))
    print("\n".join(found) or "The hub has all of it.")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
