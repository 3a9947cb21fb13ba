"""Tables of models: the catalog, and what is on disk."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from cclocal.models.catalog import Catalog
from cclocal.models.storage import SAVED_PROMPTS, Stored
from cclocal.ui.console import output, print_json
from cclocal.units import file_size, window

_DAY_S = 86400


def plain_table(*columns: str, right: Sequence[str] = (), no_wrap: Sequence[str] = ()) -> Table:
    """A table without lines; the columns in `right` are numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=name in no_wrap, overflow="fold")
    return table


def show_catalog(catalog: Catalog, *, as_json: bool) -> None:
    """The catalog, for people or for scripts."""
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
                    "default": m.id == catalog.default,
                    "variants": [
                        {"backend": v.backend, "quant": v.quant, "repo": v.repo, "size_bytes": v.size_bytes}
                        for v in m.variants
                    ],
                }
                for m in catalog.models.values()
            ]
        )
        return
    columns = ("flag", "model", "size", "context", "note")
    table = plain_table(*columns, right=("size", "context"), no_wrap=columns[:-1])
    for model in catalog.models.values():
        context = f"{window(model.served_context_tokens)} of {window(model.native_context_tokens)}"
        size = file_size(model.variants[0].size_bytes)
        table.add_row(f"--{model.id}", model.name, size, context, Text(model.note))
    output().print(table)


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
        start = row.flag or (f"--model {row.name}" if row.kind == "hub" else "")
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
