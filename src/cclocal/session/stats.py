"""`cclocal stats`: what each turn of a session cost, from its server's log."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from cclocal.backends import BACKENDS
from cclocal.errors import UsageError
from cclocal.paths import Env
from cclocal.server.keeper import LOG_WAS_CUT
from cclocal.server.logs import newest_first, session_of
from cclocal.server.registry import running
from cclocal.turns import Now, Turn, turns
from cclocal.ui.console import output, print_json
from cclocal.ui.tables import plain_table
from cclocal.units import count, seconds

#: Fewer tokens read by cclocal itself are the question whether the server answers.
_LEAST_AHEAD_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Stats:
    """The turns of one session, oldest first, the prompt that was read before them, and the reply being made now.

    `is_cut`: the log was too long, so that its first turns are gone.
    """

    session: str
    turns: tuple[Turn, ...]
    ahead: Turn | None
    now: Now | None
    others: tuple[str, ...]
    is_cut: bool


def of(session: str | None, env: Env) -> Stats:
    """Of the session named, or the newest. Raises UsageError if there is none."""
    folders = env.folders
    if not folders.newest_log.exists():
        raise UsageError("No sessions yet.", hint="cclocal --tiny")
    path = folders.log_of(session) if session else folders.newest_log.resolve()
    known = [session_of(log) for log in reversed(newest_first(env))]
    if session and session not in known:
        raise UsageError(f"There is no log of a session “{session}”.", hint=f"cclocal stats [{' | '.join(known)}]")
    text = path.read_text("utf-8", "replace")
    every, now = turns(text, tuple(backend.LOG_READER for backend in BACKENDS.values() if backend.LOG_READER))
    ahead = [turn for turn in every if turn.is_ours and (turn.read_tokens or 0) >= _LEAST_AHEAD_TOKENS]
    name = session_of(path)
    return Stats(
        session=name,
        turns=tuple(turn for turn in every if not turn.is_ours),
        ahead=ahead[-1] if ahead else None,
        # a server that was killed never logged the end of its last reply
        now=now if any(record.id == name for record in running(env)) else None,
        others=tuple(other for other in known if other != name),
        is_cut=text.startswith(LOG_WAS_CUT),
    )


def show(stats: Stats, *, as_json: bool = False) -> None:
    """A table for people, or JSON: plain numbers, null where the engine does not report it."""
    if as_json:
        report = {
            "session": stats.session,
            "ahead": stats.ahead and _as_json(stats.ahead),
            "turns": [_as_json(turn) for turn in stats.turns],
            "now": stats.now and {"prompt_tokens": stats.now.prompt_tokens, "place_tokens": stats.now.place_tokens},
        }
        print_json(report)
        return
    out = output()
    if stats.turns:
        out.print(_table(stats.turns))
    notes = []
    if stats.ahead and stats.ahead.first_s:
        notes.append(f"Read before the first turn: {count(stats.ahead.read_tokens)} in {seconds(stats.ahead.first_s)}.")
    if stats.now:
        notes.append(f"Being answered now: a prompt of {count(stats.now.prompt_tokens)}.")
    elif not stats.turns:
        notes.append("No turn yet.")
    if stats.is_cut:
        notes.append("The log was too long: its first turns are gone.")
    has_counts = any(turn.prompt_tokens is not None for turn in stats.turns)
    if stats.turns and not has_counts:
        notes.append("This engine reports only how long a reply took.")
    what = f"Tokens of session {stats.session}; kept: in the KV cache already; first word: measured by the server."
    notes.append(what if has_counts else f"Session {stats.session}.")
    if stats.others:
        notes.append(f"Others: cclocal stats {' | '.join(stats.others)}")
    out.print(Text("\n" * bool(stats.turns) + "\n".join(notes), style="dim"))


def _table(rows: tuple[Turn, ...]) -> Table:
    """Only the columns of which the engine reports something."""
    columns = (
        ("prompt", [count(turn.prompt_tokens) for turn in rows]),
        ("kept", [count(turn.kept_tokens) for turn in rows]),
        ("read", [count(turn.read_tokens) for turn in rows]),
        ("read/s", [count(turn.read_per_s) for turn in rows]),
        ("first word", [seconds(turn.first_s) for turn in rows]),
        ("written", [count(turn.written_tokens) for turn in rows]),
        ("written/s", [count(turn.write_per_s) for turn in rows]),
        ("whole", [seconds(turn.whole_s) for turn in rows]),
    )
    reported = [(heading, cells) for heading, cells in columns if set(cells) != {count(None)}]
    headings = ("turn", *(heading for heading, _ in reported))
    table = plain_table(*headings, right=headings, no_wrap=headings)
    for number in range(len(rows)):
        table.add_row(str(number + 1), *(cells[number] for _, cells in reported))
    return table


def _as_json(turn: Turn) -> dict[str, float | None]:
    row = {**turn._asdict(), "read_per_s": turn.read_per_s, "write_per_s": turn.write_per_s}
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}
