"""`cclocal check`: whether a model drives the agent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import typer

from cclocal.cli.options import Call, Json, takes
from cclocal.settings import Settings, options

EXAMPLES = (
    ("cclocal check gemma", "real requests, real tool calls, a real file"),
    ("cclocal check gemma --kv q8_0 --json", "as it would be started with these options"),
)
#: What a launch takes, without what is not about a server and an agent that are started here.
_LEFT_OUT = ("server", "url", "key_env", "insecure_http", "yes", "cold", "no_tools", "safe")
_TAKEN = tuple(name for name in options() if name not in _LEFT_OUT)


@takes(*_TAKEN, model_argument=True)
def check(settings: Settings, call: Call, as_json: Json = False) -> None:
    """Prove that a model drives the agent: real requests, real tool calls, a real file. Exit 0 only if it does."""
    from cclocal.discovery.look import load_catalog
    from cclocal.session.check import check as story
    from cclocal.session.serve import os_errors_in_words
    from cclocal.ui.console import output, print_json

    catalog = load_catalog(call.user_file)
    word = settings.model or catalog.default
    # the check works in a folder of its own
    settings = replace(settings, model=_absolute(word, word in catalog.names))
    if settings.llama_server and "/" in settings.llama_server:
        settings = replace(settings, llama_server=_absolute(settings.llama_server, False))
    with os_errors_in_words(call.env):
        report = story(settings, catalog, call.env, show=not as_json)
    if as_json:
        print_json(report.as_json())
    else:
        verdict = "can drive the agent." if report.works else "cannot be relied on: see what failed."
        output().print(
            f"\n{report.plan.model.name} on {report.plan.variant.backend} {verdict}", style="bold", markup=False
        )
    if not report.works:
        raise typer.Exit(1)


def _absolute(word: str, is_known: bool) -> str:
    """A path that does not depend on the working folder; a word that is no path stays."""
    path = Path(word).expanduser()
    try:
        return str(path.absolute()) if not is_known and path.exists() else word
    except OSError:
        return word
