"""Records a terminal as it is looked at: its screens and when each was there, as a picture or a film in SVG.

pyte is the terminal. What a program writes becomes a screen of characters, of which only changes are kept.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pexpect
import pyte

#: A pause is shown no longer than this, and a change that is followed by another one within `_STEP_S` is left out.
_LONGEST_S, _STEP_S = 1.2, 0.1
#: How long the last screen stays.
_END_S = 4.0
_CHAR, _LINE, _SIZE, _MARGIN = 8.4, 18, 14, 14
_BACK, _TEXT = "#1e1e2e", "#e4e4ef"
_COLOURS = {
    "black": "#45475a",
    "red": "#f38ba8",
    "green": "#a6e3a1",
    "brown": "#f9e2af",
    "blue": "#89b4fa",
    "magenta": "#cba6f7",
    "cyan": "#94e2d5",
    "white": "#e4e4ef",
    "brightblack": "#7f849c",
    "brightred": "#f38ba8",
    "brightgreen": "#a6e3a1",
    "brightbrown": "#f9e2af",
    "brightblue": "#89b4fa",
    "brightmagenta": "#cba6f7",
    "brightcyan": "#94e2d5",
    "brightwhite": "#ffffff",
}
#: What pyte would print: the keyboard protocols of newer terminals.
_UNKNOWN = re.compile(r"\x1b\[[<=>?][\d;]*[um]")
#: (text, colour, background, bold) of characters that look the same.
Run = tuple[str, str, str, bool]
Row = tuple[Run, ...]


@dataclass(frozen=True)
class Frame:
    """One screen, and the second at which it was there first."""

    at_s: float
    rows: tuple[Row, ...]

    @property
    def lines(self) -> list[str]:
        return ["".join(run[0] for run in row).rstrip() for row in self.rows]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Terminal:
    """What pexpect reads becomes screens: `child.logfile_read = Terminal(24, 80)`."""

    def __init__(self, rows: int, columns: int) -> None:
        self.screen = pyte.Screen(columns, rows)
        self.stream = pyte.Stream(self.screen)
        self.began_s = time.monotonic()
        self.frames: list[Frame] = []

    def write(self, data: str) -> None:
        self.stream.feed(_UNKNOWN.sub("", data))
        now = Frame(time.monotonic() - self.began_s, tuple(self._row(y) for y in range(self.screen.lines)))
        if not self.frames or now.rows != self.frames[-1].rows:
            self.frames.append(now)

    def flush(self) -> None:
        pass

    @property
    def shown(self) -> str:
        """Every screen so far."""
        return "\n".join(frame.text for frame in self.frames)

    def wait_for(self, child: pexpect.spawn, words: str, limit_s: float = 120.0) -> None:  # type: ignore[type-arg]
        """Read on until a text is on the screen, of which a program may have written only what changed."""
        deadline = time.monotonic() + limit_s
        while not self.frames or words not in self.frames[-1].text:
            assert time.monotonic() < deadline, f"{words} never came:\n{self.frames[-1].text if self.frames else ''}"
            child.expect([pexpect.TIMEOUT, pexpect.EOF], timeout=0.2)

    def _row(self, y: int) -> Row:
        row = self.screen.buffer[y]
        cells = [row[x] for x in range(self.screen.columns)]

        def look(cell: Any) -> tuple[str, str, bool]:
            fore, back = _colour(cell.fg, _TEXT), _colour(cell.bg, "")
            return (back or _BACK, fore, cell.bold) if cell.reverse else (fore, back, cell.bold)

        return tuple(("".join(cell.data for cell in run), *key) for key, run in groupby(cells, key=look))


def _colour(name: str, default: str) -> str:
    return default if name == "default" else _COLOURS.get(name, f"#{name}")


def picture(frame: Frame) -> str:
    """One screen as SVG."""
    rows = [row for row, line in zip(frame.rows, frame.lines, strict=True)]
    while rows and not "".join(run[0] for run in rows[-1]).strip():
        rows.pop()
    return _svg(rows, "".join(_text(y, row) for y, row in enumerate(rows)))


def film(frames: Sequence[Frame]) -> str:
    """All screens as one SVG that plays for ever. A row is drawn once for each time that it changes."""
    frames = [one for one, then in zip(frames, [*frames[1:], None], strict=True) if not _is_passing(one, then)]
    starts, now = [0.0], 0.0
    for one, then in pairwise(frames):
        now += min(then.at_s - one.at_s, _LONGEST_S)
        starts.append(now)
    whole_s = now + _END_S
    parts = []
    for y in range(len(frames[0].rows)):
        shown = [
            (key, [at for at, _ in group])
            for key, group in groupby(
                zip(starts, [frame.rows[y] for frame in frames], strict=True), key=lambda pair: pair[1]
            )
        ]
        ends = [times[0] for _, times in shown[1:]] + [whole_s]
        for (row, times), end in zip(shown, ends, strict=True):
            if drawn := _text(y, row):
                parts.append(f"<g>{drawn}{_between(times[0], end, whole_s)}</g>")
    return _svg(frames[0].rows, "".join(parts))


def _is_passing(one: Frame, then: Frame | None) -> bool:
    return then is not None and then.at_s - one.at_s < _STEP_S


def _between(start_s: float, end_s: float, whole_s: float) -> str:
    """Shows its group between two times of a film of that length."""
    if start_s == 0 and end_s == whole_s:
        return ""
    steps = [(0.0, int(start_s == 0)), (start_s / whole_s, 1), (end_s / whole_s, 0)]
    steps = [step for i, step in enumerate(steps) if i == 0 or 0 < step[0] < 1]
    values, times = ";".join(str(value) for _, value in steps), ";".join(f"{at:.5f}" for at, _ in steps)
    return (
        f'<animate attributeName="opacity" values="{values}" keyTimes="{times}" dur="{whole_s:.2f}s" '
        f'calcMode="discrete" repeatCount="indefinite"/>'
    )


def _text(y: int, row: Row) -> str:
    """One row's backgrounds and text."""
    out, x = [], 0
    top = _MARGIN + y * _LINE
    for text, fore, back, bold in row:
        left = _MARGIN + x * _CHAR
        if back and back != _BACK:
            out.append(
                f'<rect x="{left:.1f}" y="{top}" width="{len(text) * _CHAR:.1f}" height="{_LINE}" fill="{back}"/>'
            )
        if shown := text.strip():
            begin = left + (len(text) - len(text.lstrip())) * _CHAR
            weight = ' font-weight="bold"' if bold else ""
            out.append(
                f'<text x="{begin:.1f}" y="{top + _SIZE - 1}" textLength="{len(shown) * _CHAR:.1f}" '
                f'fill="{fore}"{weight}>{escape(shown)}</text>'
            )
        x += len(text)
    return "".join(out)


def _svg(rows: Sequence[Row], inside: str) -> str:
    columns = sum(len(run[0]) for run in rows[0])
    width, height = 2 * _MARGIN + columns * _CHAR, 2 * _MARGIN + len(rows) * _LINE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" '
        f'height="{height}"><rect width="100%" height="100%" rx="8" fill="{_BACK}"/>'
        f'<g font-family="ui-monospace, Menlo, monospace" font-size="{_SIZE}" style="white-space:pre">'
        f"{inside}</g></svg>\n"
    )


class Shell:
    """A user's shell on such a terminal, in which somebody types."""

    def __init__(self, rows: int, columns: int, env: dict[str, str], cwd: Path) -> None:
        self.terminal = Terminal(rows, columns)
        self.child: pexpect.spawn = pexpect.spawn(  # type: ignore[type-arg]
            "/bin/bash",
            ["--norc", "--noprofile", "-i"],
            env={**env, "PS1": "$ ", "BASH_SILENCE_DEPRECATION_WARNING": "1"},
            cwd=str(cwd),
            encoding="utf-8",
            timeout=120,
            dimensions=(rows, columns),
        )
        self.child.logfile_read = self.terminal
        self.child.expect_exact("$ ")

    def type(self, words: str, then: str) -> None:
        """Type a line as a person does, and read until a text is there."""
        for character in words:
            self.child.send(character)
            self.child.expect([pexpect.TIMEOUT], timeout=0.03)
        self.child.send("\r")
        self.child.expect(then)

    def look(self, seconds: float) -> None:
        """Go on reading for a while."""
        self.child.expect([pexpect.TIMEOUT, pexpect.EOF], timeout=seconds)

    @property
    def frames(self) -> list[Frame]:
        return self.terminal.frames
