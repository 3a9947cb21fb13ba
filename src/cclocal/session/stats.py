"""`cclocal stats`: what each turn of a session cost, from its server's log."""

from __future__ import annotations

import json
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from cclocal.agents.claude.status_line import Now, Turn, turns
from cclocal.errors import UsageError
from cclocal.paths import Folders
from cclocal.server.keeper import LOG_WAS_CUT
from cclocal.server.logs import newest_first, session_of
from cclocal.ui import console as ui

#: Stands where the engine does not tell.
_UNTOLD = "—"
#: Less than this, read ahead, is the question whether the server answers.
_LEAST_AHEAD_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Stats:
    """The turns of one session, oldest first, the prompt that was read before them, and what is being done now.

    `is_cut`: the log was too long, so that its first turns are gone.
    """

    session: str
    turns: tuple[Turn, ...]
    ahead: Turn | None
    now: Now | None
    others: tuple[str, ...]
    is_cut: bool


def of(session: str | None, folders: Folders) -> Stats:
    """Of the session named, or the newest. Raises UsageError if there is none."""
    if not folders.newest_log.exists():
        raise UsageError("There was no session yet.", hint="cclocal --tiny")
    path = folders.log_of(session) if session else folders.newest_log.resolve()
    known = [session_of(log) for log in reversed(newest_first(folders))]
    if session and session not in known:
        raise UsageError(f"There is no log of a session “{session}”.", hint=f"cclocal stats [{' | '.join(known)}]")
    text = path.read_text("utf-8", "replace")
    every, now = turns(text)
    ahead = [turn for turn in every if turn.is_ours and (turn.read_tokens or 0) >= _LEAST_AHEAD_TOKENS]
    name = session_of(path)
    return Stats(
        session=name,
        turns=tuple(turn for turn in every if not turn.is_ours),
        ahead=ahead[-1] if ahead else None,
        now=now,
        others=tuple(other for other in known if other != name),
        is_cut=text.startswith(LOG_WAS_CUT),
    )


def show(stats: Stats, *, as_json: bool = False) -> None:
    """A table for people, or JSON: numbers as they are, null where the engine does not tell."""
    if as_json:
        told = {
            "session": stats.session,
            "ahead": stats.ahead and _as_json(stats.ahead),
            "turns": [_as_json(turn) for turn in stats.turns],
            "now": stats.now and {"prompt_tokens": stats.now.prompt_tokens, "place_tokens": stats.now.place_tokens},
        }
        print(json.dumps(told, indent=1))
        return
    out = ui.output()
    if stats.turns:
        out.print(_table(stats.turns))
    notes = []
    if stats.ahead and stats.ahead.first_s:
        notes.append(
            f"Read before the first turn: {_count(stats.ahead.read_tokens)} in {_seconds(stats.ahead.first_s)}."
        )
    if stats.now:
        notes.append(f"Being answered now: a prompt of {_count(stats.now.prompt_tokens)}.")
    elif not stats.turns:
        notes.append("No turn yet.")
    if stats.is_cut:
        notes.append("The log was too long: its first turns are gone.")
    counts = any(turn.prompt_tokens is not None for turn in stats.turns)
    if stats.turns and not counts:
        notes.append("This engine tells only how long a reply took.")
    what = f"Tokens of session {stats.session}; kept: in the KV cache already; first word: as the server measured it."
    notes.append(what if counts else f"Session {stats.session}.")
    if stats.others:
        notes.append(f"Others: cclocal stats {' | '.join(stats.others)}")
    out.print(Text("\n" * bool(stats.turns) + "\n".join(notes), style="dim"))


def _table(rows: tuple[Turn, ...]) -> Table:
    """Only the columns that the engine tells something of."""
    columns = (
        ("prompt", [_count(turn.prompt_tokens) for turn in rows]),
        ("kept", [_count(turn.kept_tokens) for turn in rows]),
        ("read", [_count(turn.read_tokens) for turn in rows]),
        ("read/s", [_count(turn.read_per_s) for turn in rows]),
        ("first word", [_seconds(turn.first_s) for turn in rows]),
        ("written", [_count(turn.written_tokens) for turn in rows]),
        ("written/s", [_count(turn.write_per_s) for turn in rows]),
        ("whole", [_seconds(turn.whole_s) for turn in rows]),
    )
    told = [(heading, cells) for heading, cells in columns if set(cells) != {_UNTOLD}]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("turn", *(heading for heading, _ in told)):
        table.add_column(heading, justify="right", no_wrap=True)
    for number in range(len(rows)):
        table.add_row(str(number + 1), *(cells[number] for _, cells in told))
    return table


def _as_json(turn: Turn) -> dict[str, float | None]:
    told = {**turn._asdict(), "read_per_s": turn.read_per_s, "write_per_s": turn.write_per_s}
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in told.items()}


def _count(number: float | None) -> str:
    return _UNTOLD if number is None else f"{number:,.0f}"


def _seconds(number: float | None) -> str:
    return _UNTOLD if number is None else f"{number:,.{1 if number >= 1 else 2}f} s"
