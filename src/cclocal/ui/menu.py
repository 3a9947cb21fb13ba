"""The menu of `cclocal` alone, and the list to tick of `cclocal --rm`: by keys, drawn on stderr.

prompt_toolkit reads the keys and repaints; this module has the list.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prompt_toolkit.application import Application, get_app
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import create_input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import Layout, Window
from prompt_toolkit.layout.controls import FormattedTextControl
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.styles import Style

_STYLE = Style.from_dict(
    {"cursor": "bold reverse", "dim": "ansibrightblack", "good": "ansigreen", "warn": "ansiyellow", "bad": "ansired"}
)
_FITS = {"roomy": ("fits", "good"), "tight": ("tight", "warn"), "too_big": ("too big", "bad"), "unknown": ("?", "dim")}
_HELP = "Enter start · / filter · d plan · l list · m manage · q quit"
#: Below this width only name and verdict are shown.
_NARROW = 60


@dataclass(frozen=True, slots=True)
class MenuRow:
    """One line of the menu. mark: ● on disk, ○ not; verdict: does it fit this machine?"""

    id: str
    name: str
    mark: str
    size: str
    backend: str = ""
    verdict: str = ""
    note: str = ""


@dataclass(slots=True)
class _List:
    rows: Sequence[MenuRow]
    title: str
    help: str
    many: bool = False
    at: int = 0
    filter: str = ""
    number: str = ""
    filtering: bool = False
    ticked: set[str] = field(default_factory=set)

    @property
    def shown(self) -> list[MenuRow]:
        wanted = self.filter.lower()
        return [row for row in self.rows if wanted in f"{row.id} {row.name} {row.note}".lower()]

    @property
    def current(self) -> MenuRow | None:
        return self.shown[min(self.at, len(self.shown) - 1)] if self.shown else None

    def move(self, to: int) -> None:
        if str(to + 1) != self.number:
            self.number = ""
        self.at = max(0, min(to, len(self.shown) - 1))

    def type_number(self, digit: str) -> None:
        """Go to the row of that number; a second digit makes it larger, if there is such a row."""
        typed = f"{self.number}{digit}"
        self.number = typed if 0 < int(typed) <= len(self.shown) else digit
        self.move(int(self.number) - 1)

    def fragments(self) -> StyleAndTextTuples:
        size = get_app().output.get_size()
        width, room = size.columns, max(1, size.rows - 6)
        out: StyleAndTextTuples = [("bold", f"{self.title[: width - 1]}\n")]
        first = max(0, min(self.at - room // 2, len(self.shown) - room))
        longest = max((len(row.name) for row in self.rows), default=0)
        for number, row in enumerate(self.shown[first : first + room], first):
            out += self._line(number, row, width, min(longest, 34))
        if not self.shown:
            out.append(("class:dim", "  nothing matches\n"))
        note = self.current.note if self.current else ""
        out.append(("class:dim", f"  {note[: max(0, width - 4)]}\n"))
        keys = self.help if width >= _NARROW else " ".join(part.split()[0] for part in self.help.split(" · "))
        line = f"  /{self.filter}" if self.filtering or self.filter else f"  {keys}"
        out.append(("class:dim", line[: width - 1]))
        return out

    def _line(self, number: int, row: MenuRow, width: int, longest: int) -> StyleAndTextTuples:
        here = number == self.at
        pointer = "❯" if here else " "
        tick = ("[x] " if row.id in self.ticked else "[ ] ") if self.many else f"{row.mark} "
        words, style = _FITS.get(row.verdict, ("", ""))
        if width < _NARROW:
            room = max(1, width - 9)
            name = f"{pointer}{tick}{row.name}"[:room]
            return [("class:cursor" if here else "", f"{name:<{room}}"), (f"class:{style}", f"{words:>8}\n")]
        text = f"{pointer} {number + 1:>2} {tick}{row.name[:longest]:<{longest}} {row.size:>9}  {row.backend:<13}"
        return [("class:cursor" if here else "", text[: width - 9]), (f"class:{style}", f"{words:>8}\n")]


def pick(rows: Sequence[MenuRow], title: str) -> tuple[str, str]:
    """(what to do, with which row): "start", "manage", "list" or "plan". Raises KeyboardInterrupt on q, Esc, Ctrl-C."""
    shown = _List(rows, title, _HELP)
    return _run(shown, {"m": "manage", "l": "list", "d": "plan"})


def picture(rows: Sequence[MenuRow], title: str) -> StyleAndTextTuples:
    """The menu as it is drawn on a terminal of 80 columns, for the docs."""
    return _List(rows, title, _HELP).fragments()


def tick(rows: Sequence[MenuRow], title: str) -> list[str]:
    """The ids of the rows that were ticked with Space. Raises KeyboardInterrupt on q, Esc, Ctrl-C."""
    shown = _List(rows, title, "Space tick · a all · Enter remove · q quit", many=True)
    _run(shown, {})
    return [row.id for row in rows if row.id in shown.ticked]


def _run(shown: _List, actions: dict[str, str]) -> tuple[str, str]:
    keys = KeyBindings()
    typing = Condition(lambda: shown.filtering)

    def on(*names: str, when: Any = ~typing) -> Callable[[Callable[[KeyPressEvent], None]], None]:
        def bind(act: Callable[[KeyPressEvent], None]) -> None:
            for name in names:
                keys.add(name, filter=when, eager=True)(act)

        return bind

    on("up", "k")(lambda event: shown.move(shown.at - 1))
    on("down", "j")(lambda event: shown.move(shown.at + 1))
    on("up", when=typing)(lambda event: shown.move(shown.at - 1))
    on("down", when=typing)(lambda event: shown.move(shown.at + 1))
    on("home", "g")(lambda event: shown.move(0))
    on("end", "G")(lambda event: shown.move(len(shown.rows)))
    on("pageup")(lambda event: shown.move(shown.at - 10))
    on("pagedown")(lambda event: shown.move(shown.at + 10))
    for digit in "0123456789":
        on(digit)(lambda event: shown.type_number(event.data))

    def start_typing(event: KeyPressEvent) -> None:
        shown.filtering, shown.at = True, 0

    def stop_typing(event: KeyPressEvent) -> None:
        shown.filtering = False

    def clear(event: KeyPressEvent) -> None:
        shown.filtering, shown.filter, shown.at = False, "", 0

    def typed(event: KeyPressEvent) -> None:
        if event.data.isprintable():
            shown.filter, shown.at = shown.filter + event.data, 0

    def rub_out(event: KeyPressEvent) -> None:
        shown.filter = shown.filter[:-1]

    on("/")(start_typing)
    on("escape", when=typing)(clear)
    on("backspace", when=typing)(rub_out)
    keys.add(Keys.Any, filter=typing)(typed)

    def quit_it(event: KeyPressEvent) -> None:
        event.app.exit(exception=KeyboardInterrupt)

    on("q")(quit_it)
    on("escape")(lambda event: clear(event) if shown.filter else quit_it(event))
    on("c-c", "c-d", when=True)(quit_it)

    def enter(event: KeyPressEvent) -> None:
        if shown.filtering and shown.many:
            stop_typing(event)
        elif shown.current:
            event.app.exit(result=("start", shown.current.id))

    on("enter", when=True)(enter)
    if shown.many:

        def tick_one(event: KeyPressEvent) -> None:
            if shown.current:
                shown.ticked ^= {shown.current.id}
                shown.move(shown.at + 1)

        def tick_all(event: KeyPressEvent) -> None:
            every = {row.id for row in shown.shown}
            shown.ticked = set() if every <= shown.ticked else shown.ticked | every

        on("space", "x")(tick_one)
        on("a")(tick_all)
    for key, action in actions.items():

        def act(event: KeyPressEvent, action: str = action) -> None:
            event.app.exit(result=(action, shown.current.id if shown.current else ""))

        on(key)(act)
    output = Vt100_Output.from_pty(sys.stderr)
    # the cursor's position is not needed, and not every terminal answers
    output.enable_cpr = False
    app: Application[tuple[str, str]] = Application(
        layout=Layout(Window(FormattedTextControl(shown.fragments, show_cursor=False), wrap_lines=False)),
        key_bindings=keys,
        style=_STYLE,
        erase_when_done=True,
        input=create_input(sys.stdin),
        output=output,
        color_depth=ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None,
    )
    # Esc alone is a key; a sequence that begins with it arrives at once on a local terminal
    app.ttimeoutlen = 0.05
    return app.run()
