"""Progress of what takes longer than a second: the load of a model, a download."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.markup import escape

from cclocal.server.readiness import Waiting
from cclocal.ui.console import console
from cclocal.units import file_size

#: Off a terminal, seconds between two lines of progress.
QUIET_STEP_S = 10.0


class WaitLine:
    """The live line while a server loads: phase, seconds, the last line of its log."""

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
    """One progress bar for a whole download. Yields what is called with (total, finished) bytes to start it."""
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
            # not earlier, because an empty bar is an empty line
            progress.start()
            self.total, self.received, self.said = total_bytes, finished_bytes, time.monotonic()
            self.task = progress.add_task(f"Downloading {name}", total=total_bytes, completed=finished_bytes)

        @staticmethod
        def note(text: str) -> None:
            progress.console.print(escape(text), soft_wrap=True)

        def expect(self, total_bytes: int) -> None:
            """More has to be downloaded than was known."""
            self.total = total_bytes
            progress.update(self.task, total=total_bytes)

        def advance(self, received_bytes: int) -> None:
            self.received += received_bytes
            progress.advance(self.task, received_bytes)
            if not screen.is_terminal and time.monotonic() - self.said > QUIET_STEP_S:
                self.said = time.monotonic()
                screen.print(f"Downloading {name}: {file_size(self.received)} of {file_size(self.total)}")

    try:
        yield Bar
    finally:
        if progress.tasks:
            progress.stop()
