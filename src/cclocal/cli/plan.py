"""`cclocal plan`: what a model needs in memory, and how much context fits."""

from __future__ import annotations

from typing import Annotated

import typer

from cclocal.cli.options import WITHOUT_A_SESSION, Call, Json, complete_model, takes
from cclocal.errors import UsageError
from cclocal.settings import Settings, options

EXAMPLES = (
    ("cclocal plan", "the whole catalog on this machine"),
    ("cclocal plan gemma --ram 24 --macos 26", "one model on another machine"),
)


@takes(*(name for name in WITHOUT_A_SESSION if name != "model"))
def plan(
    settings: Settings,
    call: Call,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            show_default=False,
            autocompletion=complete_model,
            help=f"{options()['model'][1].help} Without one: the whole catalog.",
        ),
    ] = None,
    ram: Annotated[
        int | None, typer.Option("--ram", metavar="GB", min=1, help="Plan for a machine with this much memory.")
    ] = None,
    macos: Annotated[
        str | None, typer.Option("--macos", metavar="VERSION", help="Plan for a Mac with this version, such as 26.")
    ] = None,
    last: Annotated[
        bool, typer.Option("--last", help="The last start: what was planned, what the engine allocated.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What a model needs in memory, and how much context fits. Starts and downloads nothing."""
    from cclocal.discovery.look import last_start, load_catalog
    from cclocal.session.plan import OtherMachine, plan_catalog, plan_one
    from cclocal.ui import memory_view

    if last:
        report = last_start(call.env)
        if report is None:
            raise UsageError("No start has been measured yet.")
        memory_view.show_last(report, as_json=as_json)
        return
    catalog, other = load_catalog(call.user_file), OtherMachine(ram, macos)
    if model is None:
        memory_view.show_all(plan_catalog(catalog, settings, other, call.env), as_json=as_json)
    else:
        memory_view.show_one(plan_one(catalog, model, settings, other, call.env), as_json=as_json)
