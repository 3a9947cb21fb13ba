"""`cclocal stats` and `logs`: what a session did, what its server says."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cclocal.cli.options import Call, Json, takes
from cclocal.settings import Settings

STATS_EXAMPLES = (
    ("cclocal stats", "the newest session"),
    ("cclocal stats 5be0c1d2 --json", "another one, for scripts"),
)
LOGS_EXAMPLES = (
    ("cclocal logs", "the newest server's log"),
    ("cclocal logs -f", "follow it"),
)


def _complete_session(incomplete: str) -> list[str]:
    import os

    from cclocal.paths import Env
    from cclocal.server.registry import newest_first, session_of

    found = [session_of(log) for log in newest_first(Env.of(os.environ))]
    return [name for name in found if name.startswith(incomplete)]


@takes()
def stats(
    settings: Settings,
    call: Call,
    session: Annotated[
        str | None,
        typer.Argument(help="Session id; default: the newest.", show_default=False, autocompletion=_complete_session),
    ] = None,
    as_json: Json = False,
) -> None:
    """What each turn of a session cost: tokens read, kept and written; seconds to the first word."""
    from cclocal.session.stats import show

    show(session, call.env, as_json=as_json)


@takes()
def logs(
    settings: Settings,
    call: Call,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow the log.")] = False,
) -> None:
    """What the newest model server says."""
    from cclocal.server.registry import read_log

    for piece in read_log(call.env, follow=follow):
        sys.stdout.write(piece)
        sys.stdout.flush()
