"""The commands about the models on this disk: what is there, removing, downloading."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Annotated

from typer import Argument, Option

from cclocal.cli.options import Call, Json, complete_model, takes
from cclocal.errors import InterruptedByUser
from cclocal.paths import Env


def _stored() -> list[str]:
    from cclocal.discovery.look import load_catalog
    from cclocal.session.models import stored

    rows = stored(load_catalog(), Env.of(os.environ))
    flags = [(row.flag or "").split(" ")[0].removeprefix("--") for row in rows]
    return list(dict.fromkeys([*(flag for flag in flags if flag not in ("", "model")), *(r.name for r in rows), "all"]))


@takes()
def list_(
    call: Call,
    names: Annotated[list[str] | None, Argument(metavar="[NAME]…", help="Only these.", autocompletion=_stored)] = None,
    as_json: Json = False,
) -> None:
    """The models on this disk (also: cclocal --list): the hub's cache, Ollama's store, files you used."""
    from cclocal.session.models import show_stored

    show_stored(call.catalog(), call.env, as_json=as_json, names=names or ())


@takes()
def rm(
    call: Call,
    names: Annotated[
        list[str] | None,
        Argument(
            metavar="[NAME]…",
            help="Model flags or repositories; “all” for everything cclocal downloaded.",
            autocompletion=_stored,
        ),
    ] = None,
    yes: Annotated[bool, Option("--yes", "-y", help="Without asking.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove models from this disk (also: cclocal --rm). Without a name: a list to tick."""
    from cclocal.session.models import remove_named

    remove_named(names or (), call.catalog(), call.env, yes=yes, dry_run=dry_run)


@takes("quant", "backend")
def fetch(call: Call, names: Annotated[list[str], Argument(metavar="MODEL…", autocompletion=complete_model)]) -> None:
    """Download models and exit (also: cclocal --fetch); a launch needs no network then."""
    from cclocal.discovery.look import look
    from cclocal.session.steps import fetch_only, prepare

    settings, catalog = replace(call.settings, server=True, mem_check=False), call.catalog()
    facts = look(call.env, settings, catalog)
    try:
        for name in names:
            fetch_only(prepare(replace(settings, model=name), catalog, facts))
    except KeyboardInterrupt:
        raise InterruptedByUser("Interrupted; finished files are kept.") from None
