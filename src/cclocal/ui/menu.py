"""The menu of `cclocal` alone, and the list to tick of `cclocal --rm`: by keys, drawn on stderr.

prompt_toolkit reads the keys and repaints; this module has the list.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from prompt_toolkit.application import Application, get_app
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.input import create_input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout import Layout, Window
from prompt_toolkit.layout.controls import FormattedTextControl
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.styles import Style

from cclocal.errors import UserQuit
from cclocal.ui.console import EYE

_STYLE = Style.from_dict(
    {"cursor": "bold reverse", "dim": "ansibrightblack", "good": "ansigreen", "warn": "ansiyellow", "bad": "ansired"}
)
_FITS = {"roomy": ("fits", "good"), "tight": ("tight", "warn"), "too_big": ("too big", "bad"), "unknown": ("?", "dim")}
HELP = "Enter start · / filter · a agent · d plan · l list · m manage · ? help · q end"
#: What `?` shows.
EXPLAINED = """●  on this disk      ○  not yet
👁  sees pictures
✓  proven: it passed cclocal check on this machine
fits, tight, too big: in this machine's memory, with the context shown
?  not known before its header is read
42/s  tokens written per second in its last session here

Enter   start it; what is missing is downloaded first
        (cclocal NAME starts it without this menu)
/       show only what matches
a       the next agent: Claude Code, Codex, pi
d       its plan: memory, context, what would help
l       what is on this disk
m       remove from this disk
q, Esc  leave
1 to 99, arrows, j and k, Page Up and Down, Home and End move the cursor"""
#: What moves in the list, and by how many rows; letters only while no filter is typed.
_STEPS = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -10, "pagedown": 10}
_STEPS |= {"home": -(10**6), "g": -(10**6), "end": 10**6, "G": 10**6}
#: Below the first width only name and verdict are shown, from the second on the backend and the measured speed too.
_NARROW, _WIDE = 76, 100
#: The columns of a row beside its name and its backend.
_FIXED = 55


@dataclass(frozen=True, slots=True)
class MenuRow:
    """One line of the menu. mark: ● on disk, ○ not; context, speed: in words; verdict: does it fit? sees: pictures."""

    id: str
    name: str
    mark: str
    size: str
    backend: str = ""
    verdict: str = ""
    note: str = ""
    context: str = ""
    speed: str = ""
    sees: bool = False


@dataclass(slots=True)
class Menu:
    """The list and what was done with it: the row, the filter, the ticks."""

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

    def press(self, key: str, text: str) -> None:
        """Do what a key means; `text` is what it types."""
        if key in _STEPS and (len(key) > 1 or not self.filtering):
            self.move(self.at + _STEPS[key])
        elif key == Keys.Escape:
            self.filtering, self.filter, self.at = False, "", 0
        elif self.filtering and key == Keys.Backspace:
            self.filter = self.filter[:-1]
        elif self.filtering and text.isprintable():
            self.filter, self.at = self.filter + text, 0
        elif self.filtering:
            return
        elif key == "/":
            self.filtering, self.at = True, 0
        elif key.isdecimal():
            # a second digit makes the number larger, if there is such a row
            typed = f"{self.number}{key}"
            self.number = typed if 0 < int(typed) <= len(self.shown) else key
            self.move(int(self.number) - 1)
        elif self.many and key in (" ", "x") and self.current:
            self.ticked ^= {self.current.id}
            self.move(self.at + 1)
        elif self.many and key == "a":
            every = {row.id for row in self.shown}
            self.ticked = set() if every <= self.ticked else self.ticked | every

    def fragments(self) -> StyleAndTextTuples:
        size = get_app().output.get_size()
        width, room = size.columns, max(1, size.rows - 6)
        out: StyleAndTextTuples = [("bold", f"{self.title[: width - 1]}\n")]
        first = max(0, min(self.at - room // 2, len(self.shown) - room))
        longest = max((len(row.name) for row in self.rows), default=0)
        for number, row in enumerate(self.shown[first : first + room], first):
            room = width - _FIXED - (21 if width >= _WIDE else 0)
            out += self._line(number, row, width, max(1, min(longest, 34, room)))
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
        text = f"{pointer} {number + 1:>2} {tick}{row.name[:longest]:<{longest}} {row.size:>10} "
        text += f"{EYE if row.sees else ' '} "
        text += f"{row.backend:<13} {row.speed:>6} " if width >= _WIDE and row.backend else ""
        text += f"{row.id[:18]:<18}{row.context:>5} " if row.context else ""
        return [("class:cursor" if here else "", text[: width - 9]), (f"class:{style}", f"{words:>8}\n")]


def pick(rows: Sequence[MenuRow], title: str, at: str = "") -> tuple[str, str]:
    """(what to do, with which row): "start", "agent", "manage", "list", "plan" or "help". `at`: the row to begin on.

    Raises UserQuit on q and Esc, KeyboardInterrupt on Ctrl-C.
    """
    first = next((number for number, row in enumerate(rows) if row.id == at), 0)
    actions = {"a": "agent", "m": "manage", "l": "list", "d": "plan", "?": "help", "h": "help"}
    return _run(Menu(rows, title, HELP, at=first), actions)


def any_key(words: str) -> None:
    """Wait for any key. Raises KeyboardInterrupt on Ctrl-C."""
    keys = KeyBindings()

    @keys.add(Keys.Any)
    def press(event: KeyPressEvent) -> None:
        is_interrupt = event.key_sequence[0].key == Keys.ControlC
        event.app.exit(**({"exception": KeyboardInterrupt} if is_interrupt else {"result": ("", "")}))

    _application(FormattedTextControl([("class:dim", words)], show_cursor=False), keys).run()


def tick(rows: Sequence[MenuRow], title: str) -> list[str]:
    """The ids of the rows that were ticked with Space. Raises UserQuit on q and Esc, KeyboardInterrupt on Ctrl-C."""
    shown = Menu(rows, title, "Space tick · a all · Enter remove · q quit", many=True)
    _run(shown, {})
    return [row.id for row in rows if row.id in shown.ticked]


def _run(shown: Menu, actions: dict[str, str]) -> tuple[str, str]:
    keys = KeyBindings()

    @keys.add(Keys.Any)
    def press(event: KeyPressEvent) -> None:
        key, current = event.key_sequence[0].key, shown.current
        is_quit = not shown.filtering and (key == "q" or (key == Keys.Escape and not shown.filter))
        if is_quit:
            event.app.exit(exception=UserQuit)
        elif key in (Keys.ControlC, Keys.ControlD):
            event.app.exit(exception=KeyboardInterrupt)
        elif key == Keys.Enter and shown.filtering and shown.many:
            shown.filtering = False
        elif key == Keys.Enter and current:
            event.app.exit(result=("start", current.id))
        elif not shown.filtering and key in actions:
            event.app.exit(result=(actions[key], current.id if current else ""))
        else:
            shown.press(key, event.data)

    return _application(FormattedTextControl(shown.fragments, show_cursor=False), keys).run()


def _application(control: FormattedTextControl, keys: KeyBindings) -> Application[tuple[str, str]]:
    output = Vt100_Output.from_pty(sys.stderr)
    # the cursor's position is not needed, and not every terminal answers
    output.enable_cpr = False
    app: Application[tuple[str, str]] = Application(
        layout=Layout(Window(control, wrap_lines=False)),
        key_bindings=keys,
        style=_STYLE,
        erase_when_done=True,
        input=create_input(sys.stdin),
        output=output,
        color_depth=ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None,
    )
    # Esc alone is a key; a sequence that begins with it arrives at once on a local terminal
    app.ttimeoutlen = 0.05
    return app
