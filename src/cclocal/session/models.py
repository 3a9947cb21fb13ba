"""What is done without a session: the menu, listing what is on disk, removing it, fetching ahead."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from cclocal.checks import results as proofs
from cclocal.errors import UsageError
from cclocal.memory.fit import Fit
from cclocal.models import hub
from cclocal.models.catalog import Catalog, Model, Variant
from cclocal.models.headers import local_tag
from cclocal.models.storage import WARM, Stored, check_removable, choose, free_bytes, remove, stored
from cclocal.paths import Folders
from cclocal.planning.plan import is_lean, proof_name
from cclocal.session.plan import Wishes, plan_catalog, plan_one
from cclocal.ui import console as ui
from cclocal.ui import memory_view as memory_ui
from cclocal.ui import menu as picker

_DAY_S = 86400
TITLE = "cclocal: which model?    ● on disk  ○ not yet"


# -- the menu ---------------------------------------------------------------------------------------------------


def menu(shelf: Catalog, folders: Folders, environ: Mapping[str, str], backend: str | None = None) -> str:
    """Ask which model, of what `backend` serves if one was asked for.

    Raises UsageError off a terminal, KeyboardInterrupt if the user quits.
    """
    if not ui.can_ask() or environ.get("TERM") in ("dumb", None):
        return ui.pick(shelf)
    while True:
        rows = _rows(shelf, Wishes(backend=backend), folders, environ)
        action, id_ = picker.pick(rows, TITLE)
        if action == "start":
            return id_
        if action == "manage":
            manage(shelf, folders, environ)
        if action == "list":
            show_stored(shelf, folders, environ, as_json=False)
            _wait()
        if action == "plan" and id_:
            memory_ui.show_one(plan_one(shelf, id_, Wishes(backend=backend), folders, environ), as_json=False)
            _wait()


def _wait() -> None:
    ui.console().input("\n[dim]Enter goes back to the menu[/] ")


def _rows(shelf: Catalog, wishes: Wishes, folders: Folders, environ: Mapping[str, str]) -> list[picker.Row]:
    plans = {row.id: row for row in plan_catalog(shelf, wishes, folders, environ)}
    here = {id_ for id_, row in plans.items() if row.variant and _is_here(row.variant, folders, environ)}
    return menu_rows(shelf, plans, here, proofs.known(folders))


def menu_rows(
    shelf: Catalog, plans: Mapping[str, memory_ui.Row], here: Set[str], proven: Mapping[str, dict[str, Any]]
) -> list[picker.Row]:
    """The menu: every model by its plan, and which are `here` by their ids."""
    best = recommended(shelf, {id_: row.fit for id_, row in plans.items()})
    rows = []
    for model in shelf.models.values():
        plan = plans.get(model.id)
        variant, fit = (plan and plan.variant) or model.variants[0], plan and plan.fit
        note = f"{_badge(model, variant, proven)}{'recommended here: ' if model.id == best else ''}{model.note}"
        size = "built here" if variant.builtin else ui.human_size(variant.size_bytes)
        verdict = fit.verdict if fit else "unknown"
        mark = "●" if model.id in here else "○"
        rows.append(picker.Row(model.id, model.name, mark, size, variant.backend, verdict, note))
    return sorted(rows, key=lambda row: row.id != best)


def _is_here(variant: Variant, folders: Folders, environ: Mapping[str, str]) -> bool:
    """Whether every file that a start would use is on this disk."""
    if variant.builtin:
        return True
    if variant.tag:
        return local_tag(variant.tag, environ) is not None
    if variant.path:
        return (folders.config / Path(variant.path).expanduser()).exists()
    return bool(variant.files) and len(hub.cached_files(variant.repo or "", variant.hub_files, environ)) == len(
        variant.hub_files
    )


def _badge(model: Model, variant: Variant, proven: Mapping[str, dict[str, Any]]) -> str:
    """What the newest check of a model said."""
    about = f"{proof_name(model, variant)} | {variant.backend} |"
    outcomes = [row.get("works") for name, row in proven.items() if name.startswith(about) and not is_lean(name)]
    return "" if not outcomes else "✓ proven here: " if outcomes[-1] else "✗ failed its check here: "


def recommended(shelf: Catalog, fits: Mapping[str, Fit | None]) -> str:
    """The model to begin with: the first of the catalog's recommended ones that is at ease on this machine's GPU.

    On a processor alone every model is slow, and the catalog's default is as large as makes sense.
    """
    for id_ in shelf.recommended:
        fit = fits.get(id_)
        if fit and fit.verdict == "roomy" and fit.budget and fit.budget.memory != "host":
            return id_
    return shelf.default


# -- what is on disk --------------------------------------------------------------------------------------------


def show_stored(shelf: Catalog, folders: Folders, environ: Mapping[str, str], *, as_json: bool) -> None:
    """Every model on this disk, for people or for scripts."""
    rows = stored(shelf, folders, environ)
    total = sum(row.size_bytes for row in rows)
    free, disk = free_bytes(hub.cache_folder(environ))
    if as_json:
        told = {"models": [row.as_json() for row in rows], "total_bytes": total, "free_bytes": free, "disk_bytes": disk}
        print(json.dumps(told, indent=2))
        return
    screen = ui.output()
    if rows:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in ("model", "in", "size", "start it with", "last used"):
            table.add_column(name, justify="right" if name == "size" else "left", overflow="fold")
        for row in rows:
            dead = f" ({ui.human_size(row.incomplete_bytes)} of it unfinished)" if row.incomplete_bytes else ""
            started = row.flag or (f"--model {row.name}" if row.kind == "hub" else "")
            where = row.kind if row.backend in ("", row.kind) else f"{row.kind}, {row.backend}"
            cells = (row.name, where, ui.human_size(row.size_bytes) + dead, started, _when(row.last_used_s))
            # a path may look like markup
            table.add_row(*map(Text, cells))
        screen.print(table)
    count = sum(row.kind != WARM for row in rows)
    models = f"{count} model{'s' if count != 1 else ''}"
    words = f"{models}, {ui.human_size(total)}; {ui.human_size(free)} of {ui.human_size(disk)} are free."
    screen.print(words if rows else f"No model is on this disk. {words.split('; ')[1]}", style="dim", markup=False)


def _when(seconds: float) -> str:
    if not seconds:
        return ""
    days = int((time.time() - seconds) // _DAY_S)
    return "today" if days <= 0 else "yesterday" if days == 1 else f"{days} days ago"


# -- removing ---------------------------------------------------------------------------------------------------


def manage(shelf: Catalog, folders: Folders, environ: Mapping[str, str]) -> None:
    """Tick what to remove, and confirm."""
    rows = [row for row in stored(shelf, folders, environ) if row.kind != "file"]
    if not rows:
        ui.say("No model is on this disk.")
        return
    shown = [
        picker.Row(f"{row.kind} {row.name}", row.name, "", ui.human_size(row.size_bytes), row.kind, note=row.flag or "")
        for row in rows
    ]
    try:
        ticked = picker.tick(shown, "Which models should go?")
    except KeyboardInterrupt:
        return
    chosen = [row for row in rows if f"{row.kind} {row.name}" in ticked]
    if chosen and ui.confirm(f"Remove {_named(chosen)}?", default=False):
        _remove(chosen, environ)


def remove_named(
    names: Sequence[str],
    shelf: Catalog,
    folders: Folders,
    environ: Mapping[str, str],
    *,
    yes: bool,
    dry_run: bool,
) -> None:
    """Remove models by name. Raises UsageError for a wrong name, for one in use, or without anybody to confirm."""
    if not names:
        if not ui.can_ask():
            raise UsageError("Which model? There is no terminal to ask on.", hint="cclocal --rm NAME… --yes")
        manage(shelf, folders, environ)
        return
    chosen = choose(names, stored(shelf, folders, environ), shelf)
    if dry_run:
        print(f"Would remove {_named(chosen)}.")
        return
    if not yes and not ui.can_ask():
        raise UsageError("There is no terminal to confirm on.", hint="--yes removes without asking")
    if yes or ui.confirm(f"Remove {_named(chosen)}?", default=False):
        _remove(chosen, environ)


def _named(rows: Sequence[Stored]) -> str:
    total = ui.human_size(sum(row.size_bytes for row in rows))
    return f"{', '.join(row.name for row in rows)} ({total})" if rows else "nothing"


def _remove(rows: Sequence[Stored], environ: Mapping[str, str]) -> None:
    for row in rows:
        # all or none: what is refused is refused before anything is gone
        check_removable(row, environ)
    for row in rows:
        with ui.busy(f"Removing {row.name}"):
            remove(row, environ)
        ui.say(f"Removed {row.name}, {ui.human_size(row.size_bytes)}.")
