"""The other models of a session (--also): planned like the first one, with its context window, and fetched with it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

from cclocal.backends import BACKENDS
from cclocal.errors import UsageError
from cclocal.planning.plan import Plan
from cclocal.session.steps import Launch, fetch, refuse_toolless, refuse_unfitting, refuse_unsafe
from cclocal.ui.console import say


def with_others(now: Launch) -> tuple[Launch, tuple[Launch, ...]]:
    """What is launched beside the first model. Raises UsageError for one that cannot take turns with it."""
    plan = now.plan()
    if not now.settings.also:
        return now, ()
    if "tag" in BACKENDS[plan.variant.backend].FORMS:
        words = f"{plan.variant.backend} has models of its own, and changes between them itself: /model lists them."
        raise UsageError(f"--also cannot be used here: {words}{now.settings.origin('also')}")
    # these were given for the first one
    ours = replace(now.settings, also=(), quant=None, parser=None, backend=plan.variant.backend, safe=False)
    others = [replace(now, settings=replace(ours, model=word)).with_model_files() for word in now.settings.also]
    names = [plan.name, *(other.plan().name for other in others)]
    if len(set(names)) < len(names):
        words = f"--also {shlex.join(now.settings.also)}: each model of a session has a name of its own, and here they"
        raise UsageError(f"{words} are {', '.join(names)}.{now.settings.origin('also')}")
    return now, tuple(others)


def share_window(now: Launch, others: Sequence[Launch]) -> tuple[Launch, tuple[Launch, ...]]:
    """The first model and the others with one context window, the largest that each of them can have.

    The agent believes in one window. Raises DoesNotFitError or UsageError if that is too small or was typed and does
    not fit.
    """
    if not others:
        return now, ()
    plans = [one.plan() for one in (now, *others)]
    window, name = min((plan.context_tokens, plan.model.name) for plan in plans)
    if window < plans[0].context_tokens:
        say(f"The context window is {window:,} tokens, because {name} can have no more.", "yellow")
    changed = [
        replace(one, settings=one.settings.changed({"ctx": window}, "--also: one window for all"))
        for one in (now, *others)
    ]
    for one in changed[1:]:
        refuse_unfitting(one.plan())
    return changed[0], tuple(changed[1:])


def fetch_safely(one: Launch) -> Launch:
    """With its files on disk. Raises UnsafeModelError (40) for files that could run code, UsageError without tools."""
    there = fetch(one)
    refuse_unsafe(there)
    refuse_toolless(there)
    return there


def whole_plan(now: Launch, others: Sequence[Launch]) -> Plan:
    """The plan of the session with all its models."""
    return now.plan().with_others([other.plan() for other in others])
