"""What is on disk of a model, and what its header says: facts for a plan. Nothing is downloaded, nothing is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cclocal import tiny
from cclocal.facts import Facts
from cclocal.memory.config import shape_of_config
from cclocal.memory.gguf import read_header
from cclocal.memory.known import published_shape
from cclocal.memory.shape import Shape, shape_of
from cclocal.models import hub_cache, tags
from cclocal.models.catalog import CONFIG, Model, Variant
from cclocal.models.headers import of_folder, of_gguf
from cclocal.models.repo_files import listed_bytes
from cclocal.paths import Env
from cclocal.planning.choose import choose_variant, model_path
from cclocal.settings import Settings


def look_at_model(facts: Facts, model: Model, settings: Settings) -> Facts:
    """The facts with what is on disk of the variant that would be used. Raises UsageError if a file is damaged."""
    return look_at_variant(facts, model, choose_variant(model, settings, facts)[0])


def look_at_variant(facts: Facts, model: Model, variant: Variant) -> Facts:
    """The same for a variant that is chosen already."""
    cached = _cached(variant, facts.env)
    there = replace(facts, cached=cached)
    shape = _shape(model, variant, there)
    projector = _projector_bytes(variant, cached, facts.env) if variant.mmproj else 0
    return facts.with_files(
        cached,
        {model_path(variant, there): shape} if shape else {},
        {variant.mmproj: projector} if variant.mmproj and projector else {},
    )


def _cached(variant: Variant, env: Env) -> dict[tuple[str, str], Path]:
    if variant.builtin:
        built = tiny.path_of(variant.form == "mlx", env.folders.cache)
        file = built / CONFIG if variant.is_folder else built
        return {("", variant.builtin): file} if file.exists() else {}
    repo = variant.repo or ""
    here = hub_cache.files(repo, variant.hub_files, env.environ) if repo else {}
    return {(repo, file): path for file, path in here.items()}


def _projector_bytes(variant: Variant, cached: Mapping[tuple[str, str], Path], env: Env) -> int:
    """A projector's size in bytes: that of the file, else the one the hub reported."""
    name, repo = variant.mmproj or "", variant.repo or ""
    path = Path(name) if variant.path else cached.get((repo, name))
    return path.stat().st_size if path and path.is_file() else listed_bytes(repo, name, env)


def _shape(model: Model, variant: Variant, facts: Facts) -> Shape | None:
    """A variant's shape: from its files once they are all here, else from its published dimensions."""
    files = [(variant.repo or "", file) for file in variant.files]
    # the first of several parts says nothing of the others
    if variant.path or (files and all(file in facts.cached for file in files)):
        path = Path(model_path(variant, facts))
        header = of_folder(path) if variant.is_folder else of_gguf(path)
        return header.shape if header else None
    if variant.tag:
        header = tags.in_store(variant.tag, facts.env.environ)
        return header.shape if header else None
    if variant.builtin:
        return _built_shape(variant, facts)
    return published_shape(model.shape, variant.shape_form, variant.size_bytes)


def _built_shape(variant: Variant, facts: Facts) -> Shape | None:
    """Of the model that comes with cclocal: from the unpacked file, or else from the packed one."""
    if variant.is_folder:
        files = tiny.mlx_files()
        return shape_of_config(json.loads(files[CONFIG]), len(files["model.safetensors"]))
    built = facts.cached.get(("", variant.builtin or ""))
    header = of_gguf(built) if built else None
    return header.shape if header else shape_of(read_header(tiny.gguf()))
