"""How many tokens a picture may have: what the projector makes of it, what the engine takes, what a user waits for."""

from __future__ import annotations

from dataclasses import replace

from cclocal.facts import Engine, Facts
from cclocal.memory.footprint import DEFAULT_UBATCH_TOKENS
from cclocal.models.catalog import Model, Variant

#: On a processor a picture is scaled down to what is read in so many seconds; encoding a token takes about as long as
#: reading it (for 27 layers of 1,152 beside 3 billion active weights).
_PICTURE_S, _STEPS = 60, 2
#: Where the speed of reading was not measured; Qwen's own advice for finding places in a picture is no less.
_UNMEASURED_TOKENS = 1024
#: With fewer, text in a picture cannot be read.
_LEAST_TOKENS = 256


def with_limit(model: Model, variant: Variant, engine: Engine, facts: Facts) -> tuple[Variant, str | None]:
    """(the variant with the most tokens of a picture, or None for the projector's own; a note if it is a processor's).

    What the user or the catalog says goes before a processor's limit. Where a picture must be read in one micro-batch,
    that is as large as a picture, unless the user or the catalog says how large it is; then a picture is no larger:
    llama.cpp would end at it, or scale it down by itself.
    """
    projector = facts.projectors.get(variant.mmproj or "")
    if projector is None or projector.side_px or not projector.most_tokens:
        return variant, None
    most, note = min(variant.picture_tokens or projector.most_tokens, projector.most_tokens), None
    if variant.picture_tokens is None and engine.on_processor:
        read_per_s = facts.read_per_s.get(model.id)
        reached = int(read_per_s * _PICTURE_S / _STEPS) if read_per_s else _UNMEASURED_TOKENS
        # in coarse steps: a conversation that goes on with another limit would read its pictures again
        limit = 1 << max(reached, _LEAST_TOKENS).bit_length() - 1
        if limit < most:
            seconds = f", as {limit:,} take about {limit * _STEPS / read_per_s:.0f} s to read" if read_per_s else ""
            note = f"On a processor a picture is scaled down to {limit:,} tokens{seconds} (--picture-tokens {most})."
            most = limit
    if projector.at_once:
        ubatch = variant.ubatch_tokens or max(most, DEFAULT_UBATCH_TOKENS)
        most, variant = min(most, ubatch), replace(variant, ubatch_tokens=ubatch)
    return replace(variant, picture_tokens=most if most < projector.most_tokens else None), note
