"""The commands about models: what is on this disk, removing, downloading, what one needs in memory."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Annotated

from typer import Argument, Option

from cclocal.cli.options import WITHOUT_A_SESSION, Call, Json, complete_model, takes
from cclocal.errors import InterruptedByUser, UsageError
from cclocal.paths import Env
from cclocal.settings import options

_Planned = Argument(
    metavar="[MODEL]",
    help=f"{options()['model'][1].help} Without one: the whole catalog.",
    show_default=False,
    autocompletion=complete_model,
)


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


def _gib(text: str) -> int:
    """A machine's memory. Raises UsageError."""
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 10**6):
        raise UsageError(f"--ram takes a whole number of GB, such as 32; “{text[:40]}” is not one.")
    return int(text)


@takes(*WITHOUT_A_SESSION)
def plan(
    call: Call,
    # not “model”: a lasting default of that name must not hide the catalog
    word: Annotated[str | None, _Planned] = None,
    ram: Annotated[
        int | None, Option("--ram", metavar="GB", parser=_gib, help="Plan for a machine with this much memory.")
    ] = None,
    macos: Annotated[
        str | None, Option("--macos", metavar="VERSION", help="Plan for a Mac with this version, such as 26.")
    ] = None,
    gpus: Annotated[
        str,
        Option("--gpus", metavar="NxGB,…", help="Plan for vLLM on these GPUs, a group a machine: 2x24,1x80."),
    ] = "",
    nodes: Annotated[str, Option("--nodes", metavar="ADDRESS,…", help="The addresses of these machines.")] = "",
    last: Annotated[
        bool, Option("--last", help="The last start: what was planned, what the engine allocated.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What a model needs in memory, and how much context fits. Starts and downloads nothing."""
    from cclocal.discovery.look import last_start
    from cclocal.discovery.speeds import written
    from cclocal.session.plan import look_at_machine, plan_catalog, plan_cluster, plan_one
    from cclocal.ui import cluster_view, memory_view

    if last:
        report = last_start(call.env)
        if report is None:
            raise UsageError("No start has been measured yet.")
        memory_view.show_last(report, as_json=as_json)
        return
    catalog = call.catalog()
    facts = look_at_machine(catalog, call.settings, call.env, ram, macos)
    if gpus or nodes:
        if not (word and gpus):
            raise UsageError("--gpus and --nodes plan one model.", hint="cclocal plan MODEL --gpus 2x24,1x80")
        cluster_view.show(plan_cluster(catalog, word, call.settings, facts, gpus, nodes), as_json=as_json)
    elif word is None:
        memory_view.show_all(plan_catalog(catalog, call.settings, facts), as_json=as_json)
    else:
        # of another machine nothing was measured
        speeds = {} if ram or macos else written(call.env)
        row = plan_one(catalog, word, call.settings, facts)
        memory_view.show_one(replace(row, write_per_s=speeds.get(row.id) or speeds.get(word)), as_json=as_json)
