"""`cclocal prompt`: where the bytes and tokens of the agent's first request go."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from cclocal.cli.options import Call, Json, takes
from cclocal.settings import Settings

if TYPE_CHECKING:
    from cclocal.prompt_cache.breakdown import Breakdown

EXAMPLES = (
    ("cclocal prompt", "of a session on a terminal"),
    ("cclocal prompt --lean -- -p", "of print mode, with the short prompt"),
)


@takes("agent", "lean")
def prompt(settings: Settings, call: Call, as_json: Json = False) -> None:
    """Where the bytes and tokens of the agent's first request go, against a plain launch; “-- -p” for print mode."""
    from cclocal.prompt_cache.breakdown import break_down
    from cclocal.ui.console import busy

    with busy("Starting the agent twice, as cclocal starts it and plain"):
        found = break_down(settings, call.env)
    _show(found, as_json=as_json)


def _show(breakdown: Breakdown, *, as_json: bool = False) -> None:
    """Print a table, or JSON for scripts."""
    from rich.text import Text

    from cclocal.ui.console import output, print_json
    from cclocal.ui.tables import plain_table

    blocks = sorted(breakdown.blocks, key=lambda block: (-block.bytes, -block.plain_bytes))
    if as_json:
        report = {"agent": breakdown.agent, "counted_by": breakdown.counted_by, "blocks": [asdict(b) for b in blocks]}
        print_json(report)
        return
    mine = [block for block in blocks if block.bytes]
    left_out = [block for block in blocks if not block.bytes]
    headings = ("block", "bytes", "tokens", "plain, bytes", "fixed")
    table = plain_table(*headings, right=headings[1:], no_wrap=headings)
    for block in mine:
        sizes = map(_size, (block.bytes, block.tokens, block.plain_bytes))
        table.add_row(block.name, *sizes, "yes" if block.same else "no")
    if left_out:
        table.add_row(
            f"{len(left_out)} other tools", "—", "—", _size(sum(b.plain_bytes for b in left_out)), style="dim"
        )
    total = [sum(getattr(block, name) for block in blocks) for name in ("bytes", "tokens", "plain_bytes")]
    table.add_row("together", *map(_size, total), style="bold")
    out = output()
    out.print(table)
    notes = [
        f"The first request of {breakdown.agent} without your prompt, compared with a launch without cclocal.",
        f"Tokens: {breakdown.counted_by}'s."
        if breakdown.counted_by
        else "Tokens: estimated as bytes / 4; a running server of cclocal's would count them.",
        "fixed: the same bytes in every session and folder.",
    ]
    if not total[2]:
        notes.append("The plain launch sent no request within its time limit.")
    out.print(Text("\n" + "\n".join(notes), style="dim"))


def _size(number: int) -> str:
    return f"{number:,}" if number else "—"
