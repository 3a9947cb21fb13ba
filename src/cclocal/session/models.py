"""What is done without a session: the menu, the list of what is on disk, removing from it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from cclocal import tiny
from cclocal.agents import AGENTS
from cclocal.backends import BACKENDS, runtime_of
from cclocal.checks import results
from cclocal.discovery.look import look
from cclocal.discovery.speeds import written
from cclocal.errors import UsageError, UserQuit
from cclocal.facts import Facts
from cclocal.memory.fit import Fit
from cclocal.models import hub, tags
from cclocal.models.catalog import Catalog, Variant
from cclocal.models.resolve import sources
from cclocal.models.storage import BUILT, SAVED_PROMPTS, Stored, free_bytes, remove_saved, users_of
from cclocal.models.storage import stored as stored_outside_backends
from cclocal.paths import Env, read_table
from cclocal.planning.choose import choose_agent
from cclocal.server.registry import running
from cclocal.session.plan import plan_catalog, plan_one
from cclocal.settings import Settings
from cclocal.ui import memory_view, menu, tables
from cclocal.ui.console import busy, can_ask, confirm, plain, say
from cclocal.units import file_size, window

TITLE = "cclocal: which model?    ● on disk  ○ not yet    "


# -- the menu ---------------------------------------------------------------------------------------------------


def choose(catalog: Catalog, settings: Settings, facts: Facts) -> tuple[Settings, Facts]:
    """Ask which model, and for which agent: the settings with the answers, and what was seen for them.

    Raises UsageError where there is no terminal for a menu, UserQuit if the user quits.
    """
    env = facts.env
    if not can_ask() or env.environ.get("TERM") in ("dumb", None):
        raise UsageError(
            f"Which model? There is {'no terminal to ask on' if not can_ask() else 'no menu on this terminal'}.",
            hint=f"cclocal --{catalog.default}    or --model NAME; cclocal --list-models shows them",
        )
    id_ = str(read_table(env.folders.last_model).get("model", ""))
    while True:
        plans = {row.id: row for row in plan_catalog(catalog, settings, facts)}
        on_disk = {id_ for id_, row in plans.items() if row.variant and _is_here(row.variant, env)}
        rows = menu_rows(catalog, plans, on_disk, results.known(env), written(env))
        action, id_ = menu.pick(rows, TITLE + _agent_words(settings, facts), id_)
        if action == "start":
            return settings.changed({"model": id_}, "menu"), facts
        if action == "agent":
            names = [*AGENTS]
            following = names[(names.index(choose_agent(settings).NAME) + 1) % len(names)]
            settings = settings.changed({"agent": following}, "menu")
            facts = look(env, settings, catalog)
        elif action == "manage":
            manage(catalog, env)
        elif action in ("list", "help") or id_:
            if action == "list":
                show_stored(catalog, env, as_json=False)
            elif action == "help":
                say(f"\n{menu.EXPLAINED}")
            else:
                memory_view.show_one(plan_one(catalog, id_, settings, facts), as_json=False)
            menu.any_key("any key goes back to the menu")


def _agent_words(settings: Settings, facts: Facts) -> str:
    return f"for {choose_agent(settings).TITLE}{'' if facts.agent else ' (not installed)'}"


def menu_rows(
    catalog: Catalog,
    plans: Mapping[str, memory_view.FitRow],
    here: Set[str],
    known: Mapping[str, dict[str, Any]],
    speeds: Mapping[str, float],
) -> list[menu.MenuRow]:
    """The rows of the menu: every model by its plan.

    `here`: the ids of those on disk; `known`: results of checks; `speeds`: tokens written per second.
    """
    # the first recommended one that fits this machine's GPU with room to spare; on a processor alone every model is
    # slow, and the catalog's default is the largest that makes sense
    fits = [id_ for id_ in catalog.recommended if _is_roomy_on_gpu(plans[id_].fit)]
    best = fits[0] if fits else catalog.default
    rows = []
    for model in catalog.models.values():
        fit, variant = plans[model.id].fit, plans[model.id].variant or model.variants[0]
        # the newest check with the full prompt
        about = results.subject(model, variant)
        outcomes = [row.get("works") for key, row in known.items() if key.startswith(about) and not row.get("lean")]
        badge = "" if not outcomes else "✓ proven here: " if outcomes[-1] else "✗ failed its check here: "
        note = f"{badge}{'recommended here: ' if model.id == best else ''}{model.note}"
        size = "built here" if variant.builtin else file_size(variant.size_bytes)
        verdict = fit.verdict if fit else "unknown"
        mark = "●" if model.id in here else "○"
        context = window(fit.config.context_tokens if fit else model.served_context_tokens)
        speed = f"{speeds[model.id]:.0f}/s" if model.id in speeds else ""
        columns = (mark, size, variant.backend, verdict, note, context, speed, bool(variant.mmproj))
        rows.append(menu.MenuRow(model.id, model.name, *columns))
    return sorted(rows, key=lambda row: row.id != best)


def _is_roomy_on_gpu(fit: Fit | None) -> bool:
    return bool(fit and fit.verdict == "roomy" and fit.budget and fit.budget.memory != "host")


def _is_here(variant: Variant, env: Env) -> bool:
    """Whether every file that a start would use is on this disk."""
    if variant.builtin:
        return True
    if variant.tag:
        return tags.in_store(variant.tag, env.environ) is not None
    if variant.path:
        return (env.folders.config / Path(variant.path).expanduser()).exists()
    here = hub.cached(variant.repo or "", variant.hub_files, env.environ)
    return bool(variant.files) and len(here) == len(variant.hub_files)


# -- what is on disk --------------------------------------------------------------------------------------------


def stored(catalog: Catalog, env: Env) -> list[Stored]:
    """Every model that cclocal can see, the largest first."""
    rows = [*stored_outside_backends(catalog, env), *_built(catalog, env)]
    for name in BACKENDS:
        rows += runtime_of(name).stored(catalog, env)
    return sorted(rows, key=lambda row: -row.size_bytes)


def _built(catalog: Catalog, env: Env) -> Iterator[Stored]:
    """The tiny models, in each form that was built."""
    usual = catalog.rules.serving("gguf")
    for id_, form, path in tiny.built(env.folders.cache):
        backend = catalog.rules.serving(form)
        with contextlib.suppress(OSError):
            files = [*path.iterdir()] if path.is_dir() else [path]
            size, last_s = sum(file.stat().st_size for file in files), max(file.stat().st_mtime for file in files)
            name, start = str(id_), f"--{id_}"
            if backend != usual:
                name, start = f"{name}-{form}", f"{start} --backend {backend}"
            yield Stored(BUILT, name, size, start, last_s, path=str(path), is_ours=True, backend=backend)


def show_stored(catalog: Catalog, env: Env, *, as_json: bool, names: Sequence[str] = ()) -> None:
    """What is on this disk, or of it what `names` mean, for people or for scripts."""
    rows = stored(catalog, env)
    rows = select(names, rows, catalog, env) if names else rows
    tables.show_stored(rows, *free_bytes(hub.cache(env.environ)), as_json=as_json)


def select(names: Iterable[str], rows: list[Stored], catalog: Catalog, env: Env) -> list[Stored]:
    """The rows that are meant by names; "all" is every model of the hub that is the catalog's or was started here.

    Raises UsageError for a name that means no row.
    """
    chosen: list[Stored] = []
    for name in names:
        if name == "all":
            chosen += [row for row in rows if row.kind == "hub" and (row.flag or row.is_ours)]
            continue
        found = [row for row in rows if row.name == name]
        if not found:
            with contextlib.suppress(UsageError):
                named = sources(catalog, name, env)
                found = [row for row in rows if row.name in named or row.path in named]
        if not found:
            known = ", ".join(row.name for row in rows[:8])
            there = f" What is: {known}." if known else ""
            raise UsageError(f"{name} is not on this disk.{there}", hint="cclocal --list")
        chosen += found
    return list(dict.fromkeys(chosen))


# -- removing ---------------------------------------------------------------------------------------------------


def manage(catalog: Catalog, env: Env) -> None:
    """Tick what to remove, and confirm."""
    rows = {f"{row.where} {row.name}": row for row in stored(catalog, env) if row.kind != "file"}
    if not rows:
        say("No model is on this disk.")
        return
    shown = [
        menu.MenuRow(id_, row.name, "", file_size(row.size_bytes), row.where, note=row.flag or "")
        for id_, row in rows.items()
    ]
    try:
        chosen = [rows[id_] for id_ in menu.tick(shown, "Which models do you want to remove?")]
    except (KeyboardInterrupt, UserQuit):
        return
    if chosen:
        _remove(chosen, env, yes=False)


def remove_named(names: Sequence[str], catalog: Catalog, env: Env, *, yes: bool, dry_run: bool) -> None:
    """Remove models by name. Raises UsageError for a wrong name, one in use, or without a terminal to confirm on."""
    if not names:
        if not can_ask():
            raise UsageError("Which model? There is no terminal to ask on.", hint="cclocal --rm NAME… --yes")
        manage(catalog, env)
        return
    chosen = select(names, stored(catalog, env), catalog, env)
    if dry_run:
        print(plain(f"Would remove {_in_words(chosen)}."))
        return
    if not yes and not can_ask():
        raise UsageError("There is no terminal to confirm on.", hint="--yes removes without asking")
    _remove(chosen, env, yes=yes)


def _in_words(rows: Sequence[Stored]) -> str:
    total = file_size(sum(row.size_bytes for row in rows))
    return f"{', '.join(row.name for row in rows)} ({total})" if rows else "nothing"


def _remove(rows: Sequence[Stored], env: Env, *, yes: bool) -> None:
    """Remove models through their own stores. Raises UsageError if something of one is left."""
    if not yes and not confirm(f"Remove {_in_words(rows)}?", default=False):
        return
    for row in rows:
        # all or none: what is refused is refused before anything is removed
        _check_removable(row, env)
    for row in rows:
        left = Path(row.path)
        with busy(f"Removing {row.name}"):
            if row.kind == SAVED_PROMPTS:
                remove_saved(row)
            elif row.kind == BUILT and left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            elif row.kind == BUILT:
                left.unlink(missing_ok=True)
            elif row.kind == "backend":
                runtime_of(row.backend).remove(row, env)
            else:
                hub.remove(row.name, env.environ)
        rest = left.rglob("*") if left.is_dir() and row.kind != SAVED_PROMPTS else ()
        if left.is_file() or any(path.lstat().st_size > 4096 for path in rest):
            why = "its store did not remove all of it"
            raise UsageError(f"{row.name} is still there: {why}.", hint=f"look at {row.path}")
        say(f"Removed {row.name}, {file_size(row.size_bytes)}.")


def _check_removable(row: Stored, env: Env) -> None:
    """Raises UsageError if a model is in use, or if it is a file of the user's own."""
    if row.kind == "file":
        raise UsageError(f"{row.path} is your own file; cclocal does not remove it.")
    users = runtime_of(row.backend).users_of(row, env) if row.kind == "backend" else users_of(Path(row.path))
    users = users or _sessions_with(row, env)
    if users:
        raise UsageError(f"{row.name} is in use by {', '.join(users)}.")


def _sessions_with(row: Stored, env: Env) -> list[str]:
    """The running sessions that recorded a file of this row: macOS shows no memory maps of other processes."""
    root = os.path.realpath(row.path)
    return [
        f"your session of {session.model} (port {session.port})"
        for session in running(env)
        for file in session.facts.get("files", ())
        if Path(os.path.realpath(str(file))).is_relative_to(root) or Path(str(file)).is_relative_to(row.path)
    ]
