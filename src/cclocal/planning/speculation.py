"""Which kinds of speculation could be used for a plan, and which one is. Pure."""

from __future__ import annotations

from dataclasses import replace

from cclocal.backends import Backend
from cclocal.errors import UsageError
from cclocal.facts import Engine
from cclocal.memory.shape import Shape
from cclocal.models.catalog import Model, Variant
from cclocal.settings import MTP, Settings, Speculation


def kinds(backend: Backend, engine: Engine, variant: Variant, shape: Shape | None) -> tuple[Speculation, ...]:
    """The kinds of speculation that could be used. Beside a projector MTP was not tried, so only on request there."""
    has_head = bool(shape and shape.draft_layers) and not variant.mmproj
    return tuple(
        kind
        for kind in backend.SPECULATIONS
        if (has_head or kind != MTP) and not backend.unsupported(engine, replace(variant, speculate=kind))
    )


def choose(
    model: Model, variant: Variant, settings: Settings, fastest: Speculation | None, shape: Shape | None
) -> tuple[Variant, bool]:
    """(the variant with the kind of speculation asked for, else the fastest one by measurement; whether it is that).

    Raises UsageError for MTP, if that was asked for, on a model without a head for it.
    """
    is_tuned = False
    if fastest and settings.speculate is None and not (fastest == MTP and variant.mmproj):
        variant, is_tuned = replace(variant, speculate=fastest), True
    if variant.speculate == MTP and shape and not shape.draft_layers:
        if settings.speculate == MTP:
            raise UsageError(
                f"{model.name} has no head for multi-token prediction (MTP).{settings.origin('speculate')}",
                hint="--speculate ngram-simple",
            )
        variant = replace(variant, speculate="off")
    return variant, is_tuned
