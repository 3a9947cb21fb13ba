"""Reads a model's header from the hub: a few megabytes show whether the download would fit."""

from __future__ import annotations

import json
from fnmatch import fnmatch

from cclocal.memory.gguf import read_header
from cclocal.memory.mlx import shape_of_config
from cclocal.memory.shape import shape_of
from cclocal.models import hub, tags
from cclocal.models.catalog import CONFIG, Variant
from cclocal.models.headers import MLX_WEIGHTS, ModelHeader, joined, plain_config
from cclocal.models.repo_files import listed_bytes
from cclocal.paths import Env


def peek(variant: Variant, env: Env) -> ModelHeader:
    """The header of a variant whose files are named, from the hub or from Ollama's registry.

    Raises HubError and its like, UsageError for a model that must not be used, BadHeaderError.
    """
    repo = variant.repo or ""
    if variant.tag:
        return tags.peek(variant.tag, env.environ)
    if variant.is_folder:
        config = plain_config(hub.peek(repo, CONFIG, json.loads))
        weights = sum(
            listed_bytes(repo, file, env) for file in variant.files if fnmatch(file, MLX_WEIGHTS) and "/" not in file
        )
        return ModelHeader(repo, shape_of_config(config, weights), "config.json and the file sizes on the hub")
    header = joined([hub.peek(repo, file, read_header) for file in variant.files])
    return ModelHeader(repo, shape_of(header), "the header on the hub")
