"""`cclocal stats`: what each turn of a session cost, from its server's log."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table
from rich.text import Text

from cclocal.backends import BACKENDS
from cclocal.errors import UsageError
from cclocal.paths import Env
from cclocal.server.keeper import LOG_WAS_CUT
from cclocal.server.registry import log_named, newest_first, running, session_of
from cclocal.session.serve import os_errors_in_words
from cclocal.turns import Turn, conversation, model, news, turns
from cclocal.ui.console import output, print_json, say
from cclocal.ui.page import session_page
from cclocal.ui.tables import plain_table
from cclocal.units import count, seconds

#: Fewer tokens read by cclocal itself are the question whether the server answers.
_LEAST_AHEAD_TOKENS = 256


def show(session: str | None, env: Env, *, as_json: bool, as_html: bool) -> None:
    """The turns of the session named, or of the newest: a table for people, JSON with plain numbers, or a page.

    A number that the engine does not report is null. Raises UsageError if there is no such session, FolderError if the
    page cannot be written into the working directory.
    """
    folders = env.folders
    if not folders.newest_log.exists():
        raise UsageError("No sessions yet.", hint="cclocal --tiny")
    path = log_named(session, "cclocal stats", env) if session else folders.newest_log.resolve()
    text, name = path.read_text("utf-8", "replace"), session_of(path)
    every, now = turns(text, tuple(backend.LOG_READER for backend in BACKENDS.values() if backend.LOG_READER))
    if not any(record.folder.name == name for record in running(env)):
        # a server that was killed never logged the end of its last reply
        now = None
    rows = [turn for turn in every if not turn.is_ours]
    # the prompt that was read before them
    ours = [turn for turn in every if turn.is_ours and (turn.read_tokens or 0) >= _LEAST_AHEAD_TOKENS]
    ahead = ours[-1] if ours else None
    if as_json or as_html:
        report = {
            "session": name,
            "model": model(text) or None,
            "conversation": conversation(text) or None,
            "ahead": ahead and _as_json(ahead),
            "turns": [_as_json(turn) for turn in rows],
            "news": news(text),
            "now": now and {"prompt_tokens": now.prompt_tokens, "place_tokens": now.place_tokens},
        }
        if as_html:
            _write_page(f"cclocal-{name}.html", session_page(report), env)
        else:
            print_json(report)
        return
    out = output()
    if rows:
        out.print(_table(rows))
    notes = news(text)
    if ahead and ahead.first_s:
        notes.append(f"Read before the first turn: {count(ahead.read_tokens)} in {seconds(ahead.first_s)}.")
    if now:
        notes.append(f"Being answered now: a prompt of {count(now.prompt_tokens)}.")
    elif not rows:
        notes.append("No turn yet.")
    if text.startswith(LOG_WAS_CUT):
        notes.append("The log was too long: its first turns are gone.")
    has_counts = any(turn.prompt_tokens is not None for turn in rows)
    if rows and not has_counts:
        notes.append("This engine reports only how long a reply took.")
    about = f"{name} of {model(text)}" if model(text) else name
    what = f"Tokens of session {about}; kept: in the KV cache already; first word: measured by the server."
    notes.append(what if has_counts else f"Session {about}.")
    if id_ := conversation(text):
        notes.append(f"The agent's id of the conversation: {id_}")
    if others := [other for log in reversed(newest_first(env)) if (other := session_of(log)) != name]:
        notes.append(f"Others: cclocal stats {' | '.join(others)}")
    out.print(Text("\n" * bool(rows) + "\n".join(notes), style="dim"))


def _write_page(file: str, page: str, env: Env) -> None:
    with os_errors_in_words(env):
        Path(file).write_text(page, "utf-8")
    print(file)
    say("To look at it, open it in a browser: it needs no network.", "dim")


def _table(rows: list[Turn]) -> Table:
    """Only the columns of which the engine reports something."""
    columns = (
        ("prompt", [count(turn.prompt_tokens) for turn in rows]),
        ("kept", [count(turn.kept_tokens) for turn in rows]),
        ("read", [count(turn.read_tokens) for turn in rows]),
        ("read/s", [count(turn.read_per_s) for turn in rows]),
        ("first word", [seconds(turn.first_s) for turn in rows]),
        ("written", [count(turn.written_tokens) for turn in rows]),
        ("written/s", [count(turn.write_per_s) for turn in rows]),
        ("a step", [f"{turn.per_step:.1f}" if turn.per_step else count(None) for turn in rows]),
        ("whole", [seconds(turn.whole_s) for turn in rows]),
    )
    reported = [(heading, cells) for heading, cells in columns if set(cells) != {count(None)}]
    headings = ("turn", *(heading for heading, _ in reported))
    table = plain_table(*headings, right=headings, no_wrap=headings)
    for number in range(len(rows)):
        table.add_row(str(number + 1), *(cells[number] for _, cells in reported))
    return table


def _as_json(turn: Turn) -> dict[str, float | None]:
    speeds = {"read_per_s": turn.read_per_s, "write_per_s": turn.write_per_s, "per_step": turn.per_step}
    row = {**turn._asdict(), **speeds}
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}
