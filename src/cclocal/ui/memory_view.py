"""The memory plan on the screen: one model's table and chart, the whole catalog, and the question what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cclocal.errors import UserQuit
from cclocal.memory.fit import Fit, fit
from cclocal.memory.footprint import CELLS
from cclocal.memory.projector import SCREENSHOT_PX, Projector
from cclocal.memory.remedies import Remedy, replace_context
from cclocal.models.catalog import Variant
from cclocal.planning.plan import Plan
from cclocal.ui.console import console, output, print_json
from cclocal.ui.tables import plain_table
from cclocal.units import GIB, memory_size

#: How wide the bars of the chart may be.
_CHART_WIDTH = 44
#: Below this width only what matters most is shown, and numbers are never cut.
_WIDE = 70


# -- one model --------------------------------------------------------------------------------------------------


def fit_table(name: str, found: Fit, width: int) -> Table:
    """One model's memory, part by part; without remarks on a narrow screen."""
    parts, config, budget = found.footprint, found.config, found.budget
    table = plain_table("part", "size", "remark", right=("size",), no_wrap=("size",))
    table.show_header, table.columns[-1].style = False, "dim"

    def row(part: str, size: str, remark: str = "", style: str = "") -> None:
        # as Text, because names come from files and drivers and may look like markup
        table.add_row(Text(part), Text(size, style=style), Text(remark))

    table.add_row(Text(name, style="bold"), "", Text(found.shape.architecture))
    row("weights", memory_size(parts.weights_bytes), _where_weights_are(found))
    kv_type = "bf16" if found.shape.form == "mlx" else config.kv_type
    conversations = "one conversation" if config.slots == 1 else f"{config.slots} conversations"
    split = f", for {conversations}" if config.slots > 1 else ""
    row("KV cache", memory_size(parts.kv_bytes), f"{config.context_tokens:,} tokens of {kv_type}{split}")
    if parts.state_bytes:
        row("state", memory_size(parts.state_bytes), f"of recurrent layers, {conversations}")
    row("compute", memory_size(parts.compute_bytes), _batch(found))
    if config.projector:
        row("pictures", memory_size(parts.vision_bytes), _pictures(config.projector))
    if parts.other_bytes:
        row("other", memory_size(parts.other_bytes), "prompt cache")
    bound = "an upper bound: this architecture is not known" if found.shape.bound else ""
    row("need", memory_size(parts.need_bytes), bound)
    if budget is None:
        row("budget", "?", "what this machine has for it is unknown")
    else:
        row("budget", memory_size(budget.size_bytes), budget.source)
        style = {"roomy": "green", "tight": "yellow", "too_big": "red"}.get(found.verdict, "")
        row("left over", memory_size(found.left_bytes or 0), found.verdict.replace("_", " "), style)
        if parts.host_bytes:
            has = f"of {memory_size(budget.host_bytes)}" if budget.host_bytes is not None else ""
            row("in host memory", memory_size(parts.host_bytes), has)
        native = found.shape.native_context_tokens
        own = f"the model's own is {native:,}" if native else "the file does not give the model's own"
        row("largest context", f"{found.max_context_tokens:,}", own)
    if width < _WIDE:
        table.columns.pop()
    return table


def _batch(found: Fit) -> str:
    config = found.config
    text = f"micro-batch {config.ubatch_tokens}"
    if found.shape.form == "mlx":
        text = f"prefill step {config.prefill_step_tokens}: its attention scores" if found.shape.score_heads else ""
    learned = found.config.correction_bytes
    return text + (f", corrected by {memory_size(learned)} after an earlier start" if learned else "")


def _pictures(projector: Projector) -> str:
    """What a picture takes: its projector, and in the context."""
    if not projector.most_tokens:
        return "the projector; its buffers are not known"
    bound = "" if projector.is_known else "at most; "
    width, height = SCREENSHOT_PX
    shot, most = projector.tokens(width, height), projector.most_tokens
    return f"{bound}{width}×{height} costs {shot:,} tokens, the largest {most:,}"


def _where_weights_are(found: Fit) -> str:
    if found.config.cpu_moe_layers:
        return f"experts of {found.config.cpu_moe_layers} layers stay in host memory"
    if found.config.gpu_layers is not None:
        return f"{found.config.gpu_layers} layers on the GPU"
    return ""


def chart(found: Fit, least_tokens: int) -> Iterator[str]:
    """Need against context, as bars with a line for the budget; from the smallest window that the agent works with."""
    native = found.shape.native_context_tokens or found.config.context_tokens
    last = native // CELLS * CELLS or CELLS
    # the first power of two that a launch would not refuse
    first = 1 << (max(least_tokens, 4096) - 1).bit_length()
    doubled = (first * 2**power for power in range(20))
    contexts = [*(tokens for tokens in doubled if tokens < last), last]
    needs = [(tokens, replace_context(found, tokens)) for tokens in contexts]
    budget = found.budget.size_bytes if found.budget else 0
    most = max([budget, *(one.footprint.need_bytes for _, one in needs)]) or 1
    line = round(budget / most * _CHART_WIDTH)
    for tokens, one in needs:
        size = round(one.footprint.need_bytes / most * _CHART_WIDTH)
        bar = f"{'█' * size:<{_CHART_WIDTH + 1}}"
        if found.budget:
            bar = f"{bar[:line]}│{bar[line + 1 :]}"
        words = {"too_big": "too big", "tight": "tight"}.get(one.verdict, "")
        yield f"{tokens:>9,}  {bar}  {memory_size(one.footprint.need_bytes):>9} {words}".rstrip()
    if found.budget:
        yield f"{'tokens':>9}  {' ' * line}│ budget {memory_size(budget)}"


@dataclass(frozen=True, slots=True)
class FitRow:
    """One model: its fit, if its shape is known, where that was read, and the variant that a launch would use."""

    id: str
    name: str
    fit: Fit | None
    source: str = ""
    remedies: tuple[Remedy, ...] = ()
    variant: Variant | None = None
    #: the smallest window with which the agent works
    least_tokens: int = CELLS
    #: tokens written per second, in its last session on this machine
    write_per_s: float | None = None


def row_as_json(row: FitRow) -> dict[str, Any]:
    if row.fit is None:
        return {"model": row.id, "verdict": "unknown"}
    remedies = [remedy.as_json() for remedy in row.remedies]
    return {
        "model": row.id,
        **row.fit.as_json(),
        "shape_source": row.source,
        "remedies": remedies,
        "write_per_s": row.write_per_s,
    }


def show_one(row: FitRow, *, as_json: bool) -> None:
    """One model in full."""
    if as_json:
        print_json(row_as_json(row))
        return
    assert row.fit is not None
    screen = output()
    screen.print(fit_table(row.name, row.fit, screen.width))
    screen.print(f"read from {row.source}", style="dim", markup=False)
    if row.write_per_s:
        screen.print(f"wrote {row.write_per_s:.0f} tokens/s in its last session here", markup=False)
    screen.print()
    for line in chart(row.fit, row.least_tokens):
        screen.print(line, markup=False, soft_wrap=True)
    if row.fit.verdict in ("tight", "too_big") and row.remedies:
        screen.print("\nWhat would help")
        for remedy in row.remedies:
            screen.print(f"  {_remedy_line(remedy)}", markup=False)


def show_all(rows: Sequence[FitRow], *, as_json: bool) -> None:
    """The whole catalog on this machine (or the one asked about)."""
    if as_json:
        print_json([{**row_as_json(row), **_largest(row)} for row in rows])
        return
    screen = output()
    columns = ("model", "context", "needs", "verdict", "largest, f16", "q8_0")
    shown = columns if screen.width >= _WIDE else ("model", "verdict", "largest, f16")
    table = plain_table(*shown, right=[name for name in columns if name not in ("model", "verdict")])
    for row in rows:
        cells = dict.fromkeys(columns, "?")
        cells["model"] = f"--{row.id}"
        if row.fit:
            largest = _largest(row)
            cells |= {
                "context": f"{row.fit.config.context_tokens:,}",
                "needs": memory_size(row.fit.footprint.need_bytes),
                "verdict": row.fit.verdict.replace("_", " "),
                "largest, f16": _tokens(largest["max_context_tokens_f16"]),
                "q8_0": _tokens(largest["max_context_tokens_q8_0"]),
            }
        table.add_row(*(Text(cells[name]) for name in shown))
    screen.print(table)
    if budget := next((row.fit.budget for row in rows if row.fit and row.fit.budget), None):
        screen.print(f"\nBudget: {memory_size(budget.size_bytes)}: {budget.source}", markup=False, style="dim")
    if any(row.fit is None for row in rows):
        words = "?: not known before the header of its file is read; cclocal plan MODEL asks the hub for it"
        screen.print(words, markup=False, style="dim")


def _largest(row: FitRow) -> dict[str, int | None]:
    largest: dict[str, int | None] = {}
    for kv_type in ("f16", "q8_0"):
        most = row.fit and fit(row.fit.shape, replace(row.fit.config, kv_type=kv_type), row.fit.budget)
        largest[f"max_context_tokens_{kv_type}"] = most.max_context_tokens if most else None
    return largest


def _tokens(tokens: int | None) -> str:
    return "?" if tokens is None else f"{tokens:,}" if tokens else "none"


def show_last(report: dict[str, Any], *, as_json: bool) -> None:
    """The last start: what was planned, and what the engine allocated."""
    if as_json:
        print_json(report)
        return
    plan, real = report["plan"], report["allocated"]
    columns = (report["model"], "planned", "allocated", "difference")
    table = plain_table(*columns, right=columns[1:], no_wrap=columns)
    for name, key in (("weights", "weights"), ("KV cache", "kv"), ("state", "state"), ("compute", "compute")):
        planned, allocated = plan[f"{key}_bytes"], real[f"{key}_bytes"]
        table.add_row(name, memory_size(planned), memory_size(allocated), memory_size(allocated - planned))
    screen = output()
    screen.print(table)
    line = f"{plan['context_tokens']:,} tokens on {report['engine']}; log: {report['log']}"
    screen.print(line, markup=False, style="dim")


# -- the question -----------------------------------------------------------------------------------------------


def _remedy_line(remedy: Remedy) -> str:
    served = remedy.fit.config.context_tokens
    context = "" if f"{served:,}" in remedy.words else f": context {served:,}"
    left = remedy.fit.left_bytes or 0
    return f"{remedy.words}{context}" + (f", {memory_size(left)} left" if left >= GIB / 10 else "")


def ask(name: str, plan: Plan, servers: Sequence[tuple[str, int, int]]) -> Remedy | None:
    """Ask what to do about a model that does not fit, or hardly. Returns a remedy, or None to go on as requested.

    Raises UserQuit if the user quits.
    """
    requested = plan.requested or plan.fit
    assert requested is not None
    screen = console()
    listed = {str(number): remedy for number, remedy in enumerate(plan.remedies, 1)}
    verdict = {"too_big": "Too big", "tight": "Tight memory"}.get(requested.verdict, "Memory")
    screen.print(f"[yellow]⚠ {verdict}[/]" if requested.verdict != "roomy" else verdict)
    screen.print(fit_table(name, requested, screen.width))
    for server, pid, held in servers:
        screen.print(Text(f"{server} (pid {pid}) is running and holds {memory_size(held)}", style="yellow"))
    # a bare Enter never selects another model, which may have to be downloaded
    best = next((key for key, remedy in listed.items() if remedy.name != "smaller"), "")
    default = best or ("c" if requested.fits else "q")
    lines = {key: _remedy_line(remedy) for key, remedy in listed.items()}
    risk = " (risky)" if requested.verdict == "too_big" else ""
    lines |= {"c": f"continue unchanged{risk}", "q": "quit"}
    keys = (*listed, "c", "q")
    for key, words in lines.items():
        mark = "   (recommended)" if key == best else ""
        screen.print(f"  {key}) {words}{mark}", style="bold" if key == best else "", markup=False)
    if plan.limit_words and not {"raise", "both"} & {remedy.name for remedy in plan.remedies}:
        screen.print(f"  {plan.limit_words}", style="dim", markup=False)
    while True:
        prompt = f"Choose [{'/'.join(keys)}] (Enter = {default}): "
        typed = screen.input(prompt, markup=False)
        answer = "".join(filter(str.isprintable, typed)).strip().lower() or ("q" if "\x1b" in typed else default)
        if answer == "q":
            raise UserQuit(130)
        if answer in (*listed, "c"):
            return listed.get(answer)
        screen.print(f"{escape(answer)} is not one of the choices.", style="yellow")
