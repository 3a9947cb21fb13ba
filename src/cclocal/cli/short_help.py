"""The page of `cclocal -h`: one screen. `cclocal --help` has everything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cclocal.config_file import COMMANDS
from cclocal.settings import options

#: (what to type, what it does)
EXAMPLES = (
    ("cclocal", "choose a model from a menu"),
    ("cclocal --gemma", "Claude Code on Gemma 4"),
    ("cclocal --gemma -- --continue", "continue the last conversation"),
    ("cclocal --tiny -- -p 'Create the file a.txt'", "no download: see it work"),
    ("cclocal plan", "which models fit this machine"),
    ("cclocal --list; cclocal --rm coder", "what is on this disk; remove it"),
)
_COLUMN = 39


def page(models: Mapping[str, tuple[str, tuple[str, ...]]], *, color: bool) -> str:
    """The page. `models`: id → (a line about it, its flags)."""

    def bold(text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if color else text

    shown = [
        (f"{option.declarations[0].split('/')[0]} {option.metavar.split('|')[0]}", option.short)
        for _, option in options().values()
        if option.short
    ]
    flags = [f"{flag.strip():<20} {words}" for flag, words in (*shown, ("--dry-run", "show the plan"))]
    names = [f"--{id_:<12} {text.partition(':')[0]}" for id_, (text, _) in models.items()]
    return "\n".join(
        (
            "Usage: cclocal [OPTIONS] [-- ARGUMENTS OF THE AGENT]",
            "A coding agent on a model on your own machine: tools execute, nothing is sent.",
            *(f"  {command:<45} {words}" for command, words in EXAMPLES),
            bold("Options"),
            *_in_columns(flags),
            bold("Models"),
            *_in_columns(names),
            f"Commands: {' '.join(COMMANDS)} (cclocal plan -h)",
            f"{bold('cclocal --help')} for everything",
        )
    )


def _in_columns(cells: Sequence[str]) -> Iterator[str]:
    """The cells in two columns, down the first and then down the second."""
    half = -(-len(cells) // 2)
    for left, right in zip(cells[:half], [*cells[half:], ""], strict=False):
        yield f"  {left[: _COLUMN - 1]:<{_COLUMN}}{right[:_COLUMN]}".rstrip()
