"""The story of a calibration: the same two tasks with each kind of speculation; the fastest is used from then on."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

from cclocal import http
from cclocal.backends import runtime_of
from cclocal.checks import tuning
from cclocal.checks.tuning import TASKS, Trial
from cclocal.errors import ServerDiedError, UsageError
from cclocal.models.catalog import Catalog
from cclocal.planning.plan import Plan
from cclocal.server.start import Server
from cclocal.session.launch import Seen, serve
from cclocal.settings import OFF, Settings
from cclocal.turns import Turn
from cclocal.ui.console import busy
from cclocal.ui.tables import show_tuning

_REQUEST_LIMIT_S = 30.0


def tune(settings: Settings, catalog: Catalog, seen: Seen, *, show: bool) -> tuple[Plan, dict[str, Any]]:
    """(what was served, the kind of speculation that is the fastest and every trial, for scripts). It is remembered.

    Each kind has a server of its own: an engine is told when it starts. Raises UsageError if the engine has none, or if
    nothing can be measured.
    """
    settings = replace(settings, cold=True, yes=True)
    plan, trial = _trial(settings, OFF, catalog, seen, most_tokens=0, show=show)
    if not plan.speculations:
        words = f"No kind of speculation can be used for {plan.model.name} on {plan.engine.title}."
        raise UsageError(words, hint="cclocal check without --tune")
    if words := tuning.judged([trial])[0].why:
        raise UsageError(f"The speed of {plan.model.name} cannot be measured: {words}.")
    if show:
        show_tuning([trial])
    most = max(turn.written_tokens or 0 for _, turn in trial.replies.values())
    trials = [trial]
    for kind in plan.speculations:
        try:
            trials.append(_trial(settings, kind, catalog, seen, most_tokens=most, show=show)[1])
        except ServerDiedError as error:
            last = error.cause[-1] if error.cause else error.message
            trials.append(Trial(kind, {}, f"the server did not start: {last}"))
        if show:
            show_tuning(trials)
    best, found = tuning.fastest(trials), tuning.rows(trials)
    tuning.keep(plan.tuning_key, best, found, seen[0].env)
    report = {
        "model": plan.model.id,
        "backend": plan.variant.backend,
        "engine": f"{plan.engine.form} {plan.engine.version}",
        "speculation": {"kind": best, "trials": found},
    }
    return plan, report


def _trial(
    settings: Settings, kind: str, catalog: Catalog, seen: Seen, *, most_tokens: int, show: bool
) -> tuple[Plan, Trial]:
    """(what was served, the replies with one kind). `most_tokens` of a reply; 0 = by the model's speed.

    Raises ServerDiedError if the engine does not start with it.
    """
    plan, server, _ = serve(settings.changed({"speculate": kind}, "calibration"), catalog, seen)
    try:
        with busy(f"measuring --speculate {kind}") if show else contextlib.nullcontext():
            return plan, Trial(kind, _replies(plan, server, most_tokens))
    finally:
        server.end()


def _replies(plan: Plan, server: Server, most_tokens: int) -> dict[str, tuple[str, Turn]]:
    runtime, endpoint = runtime_of(plan.variant.backend), plan.endpoint(server.binding)
    found = {}
    with http.client(endpoint.url, endpoint.key, limit_s=_REQUEST_LIMIT_S) as client:
        for task, messages in TASKS.items():
            prompt = runtime.prompt_tokens(client, {"messages": messages})
            if not most_tokens:
                most_tokens = tuning.tokens_for(runtime.write(client, prompt, tuning.FIRST_TOKENS)[1])
            found[task] = runtime.write(client, prompt, most_tokens)
    return found
