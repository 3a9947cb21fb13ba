"""What is printed for people and for scripts: the catalog, the models on this disk, a plan."""

from __future__ import annotations

import re
import shlex
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from cclocal.checks.tuning import TASKS, Trial, judged
from cclocal.models.catalog import Catalog, Model
from cclocal.models.storage import SAVED_PROMPTS, Stored
from cclocal.planning.plan import Plan
from cclocal.turns import Turn
from cclocal.ui.console import EYE, output, print_json
from cclocal.units import count, file_size, window

_DAY_S = 86400
#: From this width on the catalog has a column of names.
_WIDE = 120
_OF_SERVER = "it reads its engine and the model, and writes its log and the kept prompts"
_STATES = {"ok": ("✓", "green"), "info": ("·", "dim"), "note": ("!", "yellow"), "problem": ("✗", "red")}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `cclocal doctor` found. A problem would stop a launch; a note may matter. hint: what to type."""

    about: str
    state: Literal["ok", "info", "note", "problem"]
    text: str
    hint: str = ""


def show_finding(found: Finding, before: str) -> None:
    """One finding, on lines of its own. `before`: what the finding before it was about, which is not repeated."""
    sign, style = _STATES[found.state]
    screen = output()
    about = "" if found.about == before else found.about
    table = Table.grid(padding=(0, 1))
    for width in (8, 1):
        table.add_column(width=width)
    table.add_column(ratio=1, overflow="fold")
    table.add_row(Text(about, style="bold"), Text(sign, style=style), Text(found.text))
    if found.hint:
        table.add_row("", "", Text(found.hint, style="dim"))
    screen.print(table)


def plain_table(*columns: str, right: Sequence[str] = (), no_wrap: Sequence[str] = ()) -> Table:
    """A table without lines; the columns in `right` are numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=name in no_wrap, overflow="fold")
    return table


def show_catalog(catalog: Catalog, speeds: Mapping[str, float], *, as_json: bool) -> None:
    """The catalog, for people or for scripts. `speeds`: tokens written per second, of models that ran here."""
    if as_json:
        print_json(
            [
                {
                    "id": m.id,
                    "flags": [f"--{flag}" for flag in (m.id, *m.flags)],
                    "name": m.name,
                    "note": m.note,
                    "context_tokens": m.served_context_tokens,
                    "native_context_tokens": m.native_context_tokens,
                    "out_tokens": m.out_tokens,
                    "port": m.port,
                    "write_per_s": speeds.get(m.id) and round(speeds[m.id], 1),
                    "default": m.id == catalog.default,
                    "sees": _sees(m),
                    "variants": [
                        {"backend": v.backend, "quant": v.quant, "repo": v.repo, "size_bytes": v.size_bytes}
                        for v in m.variants
                    ],
                }
                for m in catalog.models.values()
            ]
        )
        return
    columns = ("flag", "model", "size", "context", "sees", "note")
    screen = output()
    # the note begins with the model's name where there is no room for a column of names
    is_wide = screen.width >= _WIDE
    shown = [name for name in columns if is_wide or name != "model"]
    table = plain_table(*shown, right=("size", "context"), no_wrap=shown[:-1])
    for model in catalog.models.values():
        context = f"{window(model.served_context_tokens)} of {window(model.native_context_tokens)}"
        size = file_size(model.variants[0].size_bytes)
        here = f"{speeds[model.id]:.0f} tokens/s here: " if model.id in speeds else ""
        name = (model.name,) if is_wide else ()
        note = f"{here}{model.note}" if is_wide else f"{model.name}: {here}{model.note}"
        table.add_row(f"--{model.id}", *name, size, context, EYE if _sees(model) else "", Text(note))
    screen.print(table)


def _sees(model: Model) -> bool:
    """Whether a variant of the model sees pictures."""
    return any(variant.mmproj for variant in model.variants)


def show_stored(rows: Sequence[Stored], free_bytes: int, disk_bytes: int, *, as_json: bool) -> None:
    """What is on disk, for people or for scripts."""
    total = sum(row.size_bytes for row in rows)
    if as_json:
        models = [row.as_json() for row in rows]
        print_json({"models": models, "total_bytes": total, "free_bytes": free_bytes, "disk_bytes": disk_bytes})
        return
    screen = output()
    free = f"{file_size(free_bytes)} of {file_size(disk_bytes)} are free."
    if not rows:
        screen.print(f"No model is on this disk. {free}", style="dim", markup=False)
        return
    table = plain_table("model", "in", "size", "start it with", "last used", right=("size",))
    for row in rows:
        unfinished = f" ({file_size(row.incomplete_bytes)} of it unfinished)" if row.incomplete_bytes else ""
        start = row.flag or (f"cclocal {row.name}" if row.kind == "hub" else "")
        start = "made again when needed" if row.kind == SAVED_PROMPTS else start
        where = row.where if row.backend in ("", row.where) else f"{row.where}, {row.backend}"
        cells = (row.name, where, file_size(row.size_bytes) + unfinished, start, _when(row.last_used_s))
        # as Text, because a path may look like markup
        table.add_row(*map(Text, cells))
    screen.print(table)
    count = sum(row.kind != SAVED_PROMPTS for row in rows)
    screen.print(f"{count} model{'s' if count != 1 else ''}, {file_size(total)}; {free}", style="dim", markup=False)


def _when(seconds: float) -> str:
    """A time in seconds since the epoch, in days before now."""
    if not seconds:
        return ""
    days = int((time.time() - seconds) // _DAY_S)
    return "today" if days <= 0 else "yesterday" if days == 1 else f"{days} days ago"


# -- the trials of a calibration

_TRIAL = "{:<14}{:>24}  {:>24}"


def show_tuning(trials: Sequence[Trial]) -> None:
    """The newest trial, below the headings if it is the first."""
    screen = output()
    if len(trials) == 1:
        line = _TRIAL.format("speculation", *(f"{task}, tokens/s" for task in TASKS))
        screen.print(f"\n{line}", style="bold", markup=False)
    trial = judged(trials)[-1]
    cells = []
    for task in TASKS:
        turn = trial.replies[task][1] if task in trial.replies else Turn()
        step = f" ({turn.per_step:.1f} a step)" if turn.per_step else ""
        cells.append(f"{count(turn.write_per_s)}{step}")
    screen.print(_TRIAL.format(trial.kind, *cells) + (f"  {trial.why}" if trial.why else ""), markup=False)


# -- a plan


def show_plan(plan: Plan, environ: Mapping[str, str], *, as_json: bool = False) -> None:
    """Print a plan, for people or for scripts."""
    if as_json:
        print_json(plan_json(plan, environ))
        return
    screen = output()
    for line in plan_lines(plan, environ):
        style = "" if line.startswith(" ") or not line else "bold"
        screen.print(line, style=style, soft_wrap=True, markup=False)


def plan_lines(plan: Plan, environ: Mapping[str, str]) -> Iterator[str]:
    """A plan as plain lines; headings start at the margin."""
    engine = plan.engine
    where = f", {', '.join(engine.device_names) or 'CPU only'}" if engine.uses == "listed" else ""
    server, _ = plan.server_command(plan.shown)
    agent, _ = plan.agent_command(plan.shown)
    if plan.notes:
        yield "Notes"
        yield from (f"  {note}" for note in plan.notes)
    yield "Model"
    yield f"  {plan.model.name} ({plan.model.id}), {plan.variant.quant}"
    yield f"  fetch: {plan.fetch.in_words}"
    yield "Engine"
    yield f"  {plan.variant.backend}, {engine.title}, version {engine.version}{where}"
    yield "Context"
    slots, each = plan.variant.slots, plan.session.context_tokens
    split = f": {slots} conversations of {each:,} each" if slots > 1 else ""
    yield f"  {plan.context_tokens:,} tokens{split}, replies of at most {plan.out_tokens:,}"
    yield f"  memory: {plan.memory}"
    if plan.wired_limit_mib:
        yield f"  the wired limit is raised to {plan.wired_limit_mib:,} MiB for the session"
    yield "Server"
    yield from _command_lines(server.argv)
    network = "the network, for its workers" if engine.workers else "no network"
    yield f"  sandbox: {f'{network}; {_OF_SERVER}' if engine.sandbox else 'none'}"
    yield f"  reached by the agent at {plan.agent_endpoint(plan.shown).url}, through the session's relay"
    for other in plan.others:
        yield f"Server after /model {other.name}"
        yield from _command_lines(other.server_command(plan.shown)[0].argv)
        yield f"  memory: {other.memory}"
    if not plan.settings.server:
        yield "Agent"
        yield f"  sandbox: {plan.session.level}"
        yield from _command_lines(agent.argv)
        yield "  with these variables set:"
        yield from (f"    {name}={quoted(value)}" for name, value in agent.env.items())
        yield from _wrapped("  handed on:", sorted(agent.kept(environ)))
        yield from _wrapped("  removed:", agent.removed(environ))
    if plan.sources:
        yield "Where each setting came from"
        yield from (f"  {name}: {source}" for name, source in sorted(plan.sources.items()))


def _command_lines(argv: tuple[str, ...]) -> Iterator[str]:
    """A command, one flag with its values per line. Placeholders stay readable."""
    line = "  "
    for word in argv:
        if word.startswith("--") and line.strip():
            yield f"{line.rstrip()} \\"
            line = "    "
        line += f"{quoted(word)} "
    yield line.rstrip()


def quoted(word: str) -> str:
    """A word quoted for a shell; text in angle brackets such as <free port> needs no quotes."""
    bare = re.sub(r"<[^<>]*>", "x", word)
    return word if shlex.quote(bare) == bare else shlex.quote(word)


def _wrapped(head: str, names: Iterable[str]) -> list[str]:
    text = f"{head} {' '.join(names) or 'nothing'}"
    return textwrap.wrap(
        text, 110, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def plan_json(plan: Plan, environ: Mapping[str, str]) -> dict[str, Any]:
    """A plan for scripts. Values of the caller's own variables are left out, their names are not."""
    server, server_files = plan.server_command(plan.shown)
    agent, agent_files = plan.agent_command(plan.shown)
    fetch, engine = plan.fetch, plan.engine
    help_is_needed = plan.requested or (plan.fit and plan.fit.verdict != "roomy")
    return {
        "model": {"id": plan.model.id, "name": plan.model.name, "variant": plan.variant.quant},
        "backend": {"name": plan.variant.backend, "form": engine.form, "version": engine.version},
        "fetch": {
            "repo": fetch.repo,
            "files": list(fetch.files),
            "size_bytes": fetch.size_bytes,
            "builtin": fetch.builtin,
            "tag": fetch.tag or None,
        },
        "context_tokens": plan.context_tokens,
        "slots": plan.variant.slots,
        "slot_tokens": plan.session.context_tokens,
        "out_tokens": plan.out_tokens,
        "memory": plan.fit.as_json() if plan.fit else None,
        "wired_limit_mib": plan.wired_limit_mib,
        "remedies": [remedy.as_json() for remedy in plan.remedies if help_is_needed],
        "server": {"sandbox": bool(engine.sandbox), "argv": list(server.argv), "env": dict(server.env)},
        "others": [
            {
                "model": other.name,
                "memory": other.fit.as_json() if other.fit else None,
                "argv": list(other.server_command(plan.shown)[0].argv),
            }
            for other in plan.others
        ],
        "port": plan.port,
        "agent": {
            "name": plan.agent,
            "sandbox": plan.session.level,
            "argv": list(agent.argv),
            "env": dict(agent.env),
            "kept": sorted(agent.kept(environ)),
            "removed": list(agent.removed(environ)),
        },
        "files": {plan.shown.file(name): content for name, content in {**server_files, **agent_files}.items()},
        "notes": list(plan.notes),
        "sources": dict(plan.sources),
    }
