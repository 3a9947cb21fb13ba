"""`cclocal list`, `fetch` and `rm`: the models on this disk."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from cclocal.cli.options import Call, Json, complete_model, takes
from cclocal.settings import Settings

LIST_EXAMPLES = (
    ("cclocal --list", "every model that cclocal can see"),
    ("cclocal list gemma --json", "one of them, for scripts"),
)
FETCH_EXAMPLES = (
    ("cclocal --fetch gemma coder", "download now, start later"),
    ("cclocal fetch owner/name:Q8_0", "any model of the hub"),
)
RM_EXAMPLES = (
    ("cclocal --rm coder", "remove one, after a question"),
    ("cclocal rm all --dry-run", "what would be removed"),
)


def _complete_stored(incomplete: str) -> list[str]:
    import os

    from cclocal.discovery.look import load_catalog
    from cclocal.paths import Env
    from cclocal.session.models import stored

    rows = stored(load_catalog(), Env.of(os.environ))
    flags = [(row.flag or "").split(" ")[0].removeprefix("--") for row in rows]
    words = dict.fromkeys([*(flag for flag in flags if flag and flag != "model"), *(row.name for row in rows), "all"])
    return [word for word in words if word.startswith(incomplete)]


@takes()
def list_(
    settings: Settings,
    call: Call,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]…", help="Only these.", autocompletion=_complete_stored)
    ] = None,
    as_json: Json = False,
) -> None:
    """The models on this disk (also: cclocal --list): the hub's cache, Ollama's store, files you used."""
    from cclocal.discovery.look import load_catalog
    from cclocal.session.models import show_stored

    show_stored(load_catalog(call.user_file), call.env, as_json=as_json, names=names or ())


@takes()
def rm(
    settings: Settings,
    call: Call,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]…",
            help="Model flags or repositories; “all” for everything cclocal downloaded.",
            autocompletion=_complete_stored,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove models from this disk (also: cclocal --rm). Without a name: a list to tick."""
    from cclocal.discovery.look import load_catalog
    from cclocal.session.models import remove_named

    remove_named(names or (), load_catalog(call.user_file), call.env, yes=yes, dry_run=dry_run)


@takes("quant", "backend")
def fetch(
    settings: Settings,
    call: Call,
    names: Annotated[list[str], typer.Argument(metavar="MODEL…", autocompletion=complete_model)],
) -> None:
    """Download models and exit (also: cclocal --fetch); a launch needs no network then."""
    from cclocal.discovery.look import load_catalog
    from cclocal.errors import InterruptedByUser
    from cclocal.session.steps import fetch_only, prepare

    catalog = load_catalog(call.user_file)
    settings = replace(settings, server=True, mem_check=False)
    try:
        for name in names:
            fetch_only(prepare(replace(settings, model=name), catalog, call.env))
    except KeyboardInterrupt:
        raise InterruptedByUser("Interrupted; finished files are kept.") from None
