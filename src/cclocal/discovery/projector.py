"""A vision model's projector: from its file, from the hub's answers, or by its published dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cclocal.facts import Facts
from cclocal.memory.projector import Projector, published_projector, unread_projector
from cclocal.models.catalog import Model, Variant
from cclocal.models.headers import of_projector
from cclocal.models.repo_files import listed_bytes


def look_at_projector(model: Model, variant: Variant, facts: Facts) -> Mapping[str, Projector]:
    """The projector of a variant by its name, as far as it is known. Raises UsageError if its file is damaged."""
    name, repo = variant.mmproj, variant.repo or ""
    if not name:
        return {}
    path = Path(name) if variant.path else facts.cached.get((repo, name))
    if path and path.is_file():
        found = of_projector(path)
        return {name: found or unread_projector(path.stat().st_size)}
    size, published = listed_bytes(repo, name, facts.env), published_projector(model.shape)
    if published:
        return {name: replace(published, weights_bytes=size or published.weights_bytes)}
    return {name: unread_projector(size)} if size else {}
