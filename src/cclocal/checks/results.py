"""What checks showed on this machine, by model, engine and settings: the marks in the menu, the question at a start."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from cclocal.facts import Engine
from cclocal.models.catalog import Model, Variant
from cclocal.paths import Env, read_rows, write_private

#: Results that are kept; the oldest go first.
_KEPT = 100


def subject(model: Model, variant: Variant) -> str:
    """Which model a result is about: by its source, because another model may have the same name."""
    return f"{variant.source or model.id} {variant.quant} | {variant.backend} |"


def key(model: Model, variant: Variant, engine: Engine, agent: str, *, lean: bool) -> str:
    """What a result holds for: this model on this version of the engine with this KV cache, for this agent's prompt."""
    about = f"{subject(model, variant)} {engine.form} {engine.version} | {variant.kv_type} | {agent}"
    return f"{about} lean" if lean else about


def known(env: Env) -> Mapping[str, dict[str, Any]]:
    """Every result there is, by its key."""
    return read_rows(env.folders.state / "proofs.json")


def keep(name: str, report: Mapping[str, Any], env: Env) -> None:
    """Remember the outcome of a check: whether the agent `works`, row by row, and what was served."""
    kept = dict(list(known(env).items())[-_KEPT:])
    kept.pop(name, None)
    write_private(env.folders.state / "proofs.json", json.dumps({**kept, name: {"at_s": time.time(), **report}}))
