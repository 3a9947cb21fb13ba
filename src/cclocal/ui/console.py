"""The terminal: what people read goes to stderr, results go to stdout, so that scripts get results only."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.segment import Segment

from cclocal.turns import without_keys
from cclocal.units import file_size

if TYPE_CHECKING:
    from rich.status import Status

    from cclocal.errors import CclocalError
    from cclocal.server.readiness import Waiting

#: Of a model that sees pictures.
EYE = "👁"
#: Off a terminal, seconds between two lines of progress.
_QUIET_STEP_S = 10.0
#: Seconds until a phase that goes on is said again there.
_AGAIN_S = 60.0
#: What engines begin a line of their logs with: the time and the level.
_LOG_HEAD = re.compile(r"^[\d.:,/ -]+ (?:[IWEDT]|INFO|WARNING|ERROR)[: -]+")


def plain(text: str) -> str:
    """A text without keys, and without control characters, which could steer the terminal.

    It may come from a file, a server or a hub.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in without_keys(text))


class _Plain(RenderHook):
    """Takes control characters out of everything that a console prints; rich's own are no text."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_PlainText(renderable) for renderable in renderables]


@dataclass(frozen=True, slots=True)
class _PlainText:
    renderable: ConsoleRenderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self.renderable)


def _plain(console: Console) -> Console:
    console.push_render_hook(_Plain())
    return console


def console() -> Console:
    """Where people read: stderr."""
    return _plain(Console(stderr=True, highlight=False, emoji=False))


def output() -> Console:
    """Where results go: stdout, unwrapped if it is not a terminal."""
    return _plain(Console(highlight=False, emoji=False, soft_wrap=not sys.stdout.isatty()))


def say(text: str, style: str = "") -> None:
    """One line for the user, broken between words only where it is read on a terminal."""
    screen = console()
    screen.print(escape(text), style=style, soft_wrap=not screen.is_terminal)


@cache
def say_once(text: str, style: str = "") -> None:
    """The same, but only once in this process: a calibration starts several servers."""
    say(text, style)


def print_json(data: Any) -> None:
    """A result for scripts."""
    print(plain(json.dumps(data, indent=2, ensure_ascii=False)))


def show_error(error: CclocalError) -> None:
    """An error in four parts: what happened, the cause in the tool's own words, one thing to try, where the log is."""
    screen = console()
    screen.print(f"[bold red]✗[/] {escape(error.message)}", soft_wrap=not screen.is_terminal)
    for line in error.cause:
        screen.print(f"    {escape(line)}", style="dim", soft_wrap=True)
    if error.hint:
        screen.print(f"  Try:  {escape(error.hint)}", soft_wrap=True)
    if error.log:
        screen.print(f"  Log:  {escape(error.log)}", soft_wrap=True)


def can_ask() -> bool:
    """Whether there is a terminal to ask on."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str, *, default: bool = True) -> bool:
    """Yes or no; Enter = `default`."""
    choices = "[Y/n]" if default else "[y/N]"
    answer = console().input(f"{question} {choices} ", markup=False).strip().lower()
    return answer in ("y", "yes") or (default and not answer)


# -- progress of what takes longer than a second; rich's live lines are silent off a terminal


def busy(text: str) -> Status:
    """A spinner while something takes long."""
    return console().status(escape(text))


class WaitLine:
    """The live line while a server loads, shown in `with line.status`: phase, seconds, the last line of its log."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.screen = console()
        self.status = self.screen.status(f"{name}: starting")
        self.said, self.phase = time.monotonic(), ""

    def __call__(self, now: Waiting) -> None:
        from rich.text import Text

        said = f"{self.name}: {now.phase}… {now.seconds:.0f} s"
        if self.screen.is_terminal and not self.screen.is_dumb_terminal:
            # one line, without what the spinner takes
            room = self.screen.width - 3
            line, rest = Text(said), Text("  " + _LOG_HEAD.sub("", now.log_line), "dim")
            if (left := room - line.cell_len) > 8:
                rest.truncate(left, overflow="ellipsis")
                line.append_text(rest)
            line.truncate(max(1, room), overflow="ellipsis")
            self.status.update(line)
        elif time.monotonic() - self.said > (_AGAIN_S if now.phase == self.phase else _QUIET_STEP_S):
            self.said, self.phase = time.monotonic(), now.phase
            self.screen.print(said, soft_wrap=True)


@contextmanager
def download_bar(name: str) -> Iterator[type]:
    """One progress bar for a whole download. Yields what is called with (total, finished) bytes to start it."""
    from rich import progress as bars

    screen = console()
    columns = (bars.BarColumn(), bars.DownloadColumn(), bars.TransferSpeedColumn(), bars.TimeRemainingColumn())
    progress = bars.Progress("{task.description}", *columns, console=screen)

    class Bar:
        def __init__(self, total_bytes: int, finished_bytes: int) -> None:
            # not earlier, because an empty bar is an empty line
            progress.start()
            self.total, self.received, self.said = total_bytes, finished_bytes, time.monotonic()
            self.task = progress.add_task(f"Downloading {name}", total=total_bytes, completed=finished_bytes)

        @staticmethod
        def note(text: str) -> None:
            screen.print(escape(text), soft_wrap=True)

        def expect(self, total_bytes: int) -> None:
            """More has to be downloaded than was known."""
            self.total = total_bytes
            progress.update(self.task, total=total_bytes)

        def advance(self, received_bytes: int) -> None:
            self.received += received_bytes
            progress.advance(self.task, received_bytes)
            if not screen.is_terminal and time.monotonic() - self.said > _QUIET_STEP_S:
                self.said = time.monotonic()
                screen.print(f"Downloading {name}: {file_size(self.received)} of {file_size(self.total)}")

    try:
        yield Bar
    finally:
        if progress.tasks:
            progress.stop()
