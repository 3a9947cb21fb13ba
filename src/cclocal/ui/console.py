"""What the user sees: the plan, tables, progress, questions, errors. Everything for people goes to stderr, what a
script may want to stdout, so that an agent's own output is never mixed with ours.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cclocal.backends.llama_server import spec as llama_server
from cclocal.errors import CclocalError, UsageError
from cclocal.models.catalog import Catalog
from cclocal.planning.plan import Plan
from cclocal.server.readiness import Waiting

#: Off a terminal, one line per so many seconds instead of a line that moves.
QUIET_STEP_S = 10.0


def console() -> Console:
    """Where people read: stderr."""
    return Console(stderr=True, highlight=False, emoji=False)


def output() -> Console:
    """Where results go: stdout, unwrapped if it is not a terminal."""
    return Console(highlight=False, emoji=False, soft_wrap=not sys.stdout.isatty())


def say(text: str, style: str = "") -> None:
    """One line for the user."""
    console().print(escape(text), style=style, soft_wrap=True)


def show_error(error: CclocalError) -> None:
    """An error as four things: what happened, the cause's own words, one thing to try, where the log is."""
    screen = console()
    screen.print(f"[bold red]✗[/] {escape(error.message)}", soft_wrap=True)
    for line in error.cause:
        screen.print(f"    {escape(line)}", style="dim", soft_wrap=True)
    if error.hint:
        screen.print(f"  Try:  {escape(error.hint)}", soft_wrap=True)
    if error.log:
        screen.print(f"  Log:  {escape(error.log)}", soft_wrap=True)


# -- the plan ---------------------------------------------------------------------------------------------------


def show_plan(plan: Plan, environ: Mapping[str, str]) -> None:
    """Print the plan for people."""
    screen = output()
    for line in plan_lines(plan, environ):
        style = "" if line.startswith(" ") or not line else "bold"
        screen.print(line, style=style, soft_wrap=True, markup=False)


def plan_lines(plan: Plan, environ: Mapping[str, str]) -> Iterator[str]:
    """The plan as plain lines; headings start at the margin."""
    form = {
        "binary": "a llama-server program",
        "wheel": "inside the xllamacpp package",
        "ollama": "a daemon of its own",
        "ollama-running": "the one that runs already",
        "vllm-mlx": "in its own environment",
    }[plan.engine.form]
    # how much was free when it was asked is no news any more
    devices = ", ".join(device.split(" (")[0] for device in plan.engine.devices) or "CPU only"
    # these do not tell what they compute on
    where = f", {devices}" if plan.backend == llama_server.NAME else ""
    yield "Model"
    yield f"  {plan.model.name} ({plan.model.id}), {plan.variant.quant}"
    yield f"  fetch: {plan.fetch.in_words}"
    yield "Engine"
    yield f"  {plan.backend}, {form}, version {plan.engine.version}{where}"
    yield "Context"
    yield f"  {plan.context_tokens:,} tokens, replies of at most {plan.out_tokens:,}"
    yield f"  memory: {plan.memory}"
    if plan.wired_limit_mib:
        yield f"  the wired limit is raised to {plan.wired_limit_mib:,} MiB for the session"
    yield "Server"
    yield from _command_lines(plan.server.argv)
    yield "Agent"
    yield from _command_lines(plan.session.argv)
    yield "  with these variables set:"
    yield from (f"    {name}={quoted(value)}" for name, value in plan.session.env.items())
    yield from _wrapped("  handed on:", sorted(plan.session.kept(environ)))
    yield from _wrapped("  removed:", plan.session.removed(environ))
    if plan.sources:
        yield "Where each setting came from"
        yield from (f"  {name}: {source}" for name, source in sorted(plan.sources.items()))
    if plan.notes:
        yield "Notes"
        yield from (f"  {note}" for note in plan.notes)


def _command_lines(argv: tuple[str, ...]) -> Iterator[str]:
    """A command, one flag with its values a line. Placeholders stay readable."""
    line = "  "
    for word in argv:
        shown = quoted(word)
        if word.startswith("--") and line.strip():
            yield f"{line.rstrip()} \\"
            line = "    "
        line += f"{shown} "
    yield line.rstrip()


def quoted(word: str) -> str:
    """A word as one would type it; placeholders such as <free port> need no quotes."""
    return word if shlex.quote(re.sub(r"<[^<>]*>", "x", word)) == re.sub(r"<[^<>]*>", "x", word) else shlex.quote(word)


def _wrapped(head: str, names: Iterable[str]) -> Iterator[str]:
    import textwrap

    text = " ".join(names) or "nothing"
    yield from textwrap.wrap(
        f"{head} {text}",
        110,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
        initial_indent="  ",
    )


# -- the catalog ------------------------------------------------------------------------------------------------


def show_models(catalog: Catalog, *, as_json: bool) -> None:
    """The catalog, for people or for scripts."""
    if as_json:
        rows = [
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
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    output().print(_models_table(catalog))


def _models_table(catalog: Catalog, *, numbered: bool = False) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in (*(("#",) if numbered else ()), "flag", "model", "size", "context", "note"):
        table.add_column(name, justify="right" if name in ("#", "size", "context") else "left", no_wrap=name != "note")
    for number, model in enumerate(catalog.models.values(), 1):
        variant = model.variants[0]
        size = human_size(variant.size_bytes)
        table.add_row(
            *((str(number),) if numbered else ()),
            f"--{model.id}",
            model.name,
            size,
            f"{model.served_context_tokens // 1024}k of {model.native_context_tokens // 1024}k",
            escape(model.note),
        )
    return table


def human_size(size_bytes: int | None) -> str:
    """A size as people say it: decimal units, as hubs and disks count."""
    if size_bytes is None:
        return "?"
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"


def pick(catalog: Catalog) -> str:
    """Ask which model, by number or name. Raises UsageError off a terminal."""
    if not can_ask():
        raise UsageError(
            "Which model? There is no terminal to ask on.",
            hint=f"cclocal --{catalog.default}    or --model NAME; cclocal --list-models shows them",
        )
    screen = console()
    screen.print(_models_table(catalog, numbered=True))
    names = list(catalog.models)
    while True:
        answer = screen.input(
            f"Which one? [1-{len(names)}, Enter = {catalog.default}, q = quit] ", markup=False
        ).strip()
        if not answer:
            return catalog.default
        if answer in ("q", "Q"):
            raise KeyboardInterrupt
        if answer.isdigit() and 1 <= int(answer) <= len(names):
            return names[int(answer) - 1]
        try:
            return catalog.find(answer).id
        except UsageError as error:
            screen.print(escape(error.message), style="yellow")


def can_ask() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str, *, default: bool = True) -> bool:
    """Yes or no; Enter = `default`."""
    choices = "[Y/n]" if default else "[y/N]"
    answer = console().input(f"{question} {choices} ", markup=False).strip().lower()
    return answer in ("y", "yes") or (default and not answer)


# -- progress ---------------------------------------------------------------------------------------------------


@contextmanager
def busy(text: str) -> Iterator[None]:
    """A spinner while something takes its time; nothing off a terminal."""
    screen = console()
    if not screen.is_terminal or screen.is_dumb_terminal:
        yield
        return
    with screen.status(escape(text)):
        yield


class WaitLine:
    """The live line while the server loads: phase, seconds, and what the server's own log says."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.screen = console()
        self.live = self.screen.is_terminal and not self.screen.is_dumb_terminal
        self.said = time.monotonic()

    @contextmanager
    def shown(self) -> Iterator[WaitLine]:
        if not self.live:
            yield self
            return
        with self.screen.status(f"{self.name}: starting") as self.status:
            yield self

    def __call__(self, now: Waiting) -> None:
        seconds = f"{now.seconds:.0f} s"
        if self.live:
            room = max(10, self.screen.width - len(self.name) - len(now.phase) - 16)
            self.status.update(f"{self.name}: {now.phase}… {seconds}  [dim]{escape(now.log_line[:room])}[/]")
        elif time.monotonic() - self.said > QUIET_STEP_S:
            self.said = time.monotonic()
            self.screen.print(f"{self.name}: {now.phase}… {seconds}")


@contextmanager
def download_bar(name: str) -> Iterator[type]:
    """One progress bar for a whole download. Yields what hub.fetch calls with (total, finished) bytes."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    screen = console()
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=screen,
        transient=False,
    )

    class Bar:
        def __init__(self, total_bytes: int, finished_bytes: int) -> None:
            # not before there is something to show: an empty bar is an empty line
            progress.start()
            self.total, self.received, self.said = total_bytes, finished_bytes, time.monotonic()
            self.task = progress.add_task(f"Downloading {name}", total=total_bytes, completed=finished_bytes)

        @staticmethod
        def note(text: str) -> None:
            progress.console.print(escape(text), soft_wrap=True)

        def expect(self, total_bytes: int) -> None:
            """More is to come than was known."""
            self.total = total_bytes
            progress.update(self.task, total=total_bytes)

        def advance(self, received_bytes: int) -> None:
            self.received += received_bytes
            progress.advance(self.task, received_bytes)
            if not screen.is_terminal and time.monotonic() - self.said > QUIET_STEP_S:
                self.said = time.monotonic()
                screen.print(f"Downloading {name}: {self.received / 1e9:.2f} of {self.total / 1e9:.2f} GB")

    try:
        yield Bar
    finally:
        if progress.tasks:
            progress.stop()
