"""`cclocal check`: whether a model drives the agent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import typer

from cclocal.cli.options import WITHOUT_A_SESSION, Call, Json, takes
from cclocal.settings import Settings

EXAMPLES = (
    ("cclocal check gemma", "real requests, real tool calls, a real file"),
    ("cclocal check gemma --kv q8_0 --json", "as it would be started with these options"),
)


@takes(*WITHOUT_A_SESSION, model_argument=True)
def check(settings: Settings, call: Call, as_json: Json = False) -> None:
    """Prove that a model drives the agent: real requests, real tool calls, a real file. Exit 0 only if it does."""
    from cclocal.discovery.look import load_catalog
    from cclocal.models.resolve import canonical
    from cclocal.session.check import check as story
    from cclocal.session.serve import os_errors_in_words
    from cclocal.ui.console import output, print_json

    catalog = load_catalog(call.user_file)
    # the check works in a folder of its own
    program = settings.llama_server
    settings = replace(
        settings,
        model=canonical(catalog, settings.model or catalog.default),
        llama_server=str(Path(program).expanduser().absolute()) if program and "/" in program else program,
    )
    with os_errors_in_words(call.env):
        plan, report = story(settings, catalog, call.env, show=not as_json)
    if as_json:
        print_json(report)
    else:
        verdict = "can drive the agent." if report["works"] else "cannot be relied on: see what failed."
        output().print(f"\n{plan.model.name} on {plan.variant.backend} {verdict}", style="bold", markup=False)
    if not report["works"]:
        raise typer.Exit(1)
