"""The terminal: what people read goes to stderr, results go to stdout, so that scripts get results only."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from cclocal.errors import CclocalError


def console() -> Console:
    """Where people read: stderr."""
    return Console(stderr=True, highlight=False, emoji=False)


def output() -> Console:
    """Where results go: stdout, unwrapped if it is not a terminal."""
    return Console(highlight=False, emoji=False, soft_wrap=not sys.stdout.isatty())


def say(text: str, style: str = "") -> None:
    """One line for the user."""
    console().print(escape(text), style=style, soft_wrap=True)


def print_json(data: Any) -> None:
    """A result for scripts."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


def show_error(error: CclocalError) -> None:
    """An error in four parts: what happened, the cause in the tool's own words, one thing to try, where the log is."""
    screen = console()
    screen.print(f"[bold red]✗[/] {escape(error.message)}", soft_wrap=True)
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


@contextmanager
def busy(text: str) -> Iterator[None]:
    """A spinner while something takes long; nothing off a terminal."""
    screen = console()
    if not screen.is_terminal or screen.is_dumb_terminal:
        yield
        return
    with screen.status(escape(text)):
        yield
