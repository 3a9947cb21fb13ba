"""The commands about sessions: those that run, their turns, their logs."""

from __future__ import annotations

import os
import sys
from typing import Annotated

from typer import Argument, Option

from cclocal.cli.options import Call, Json, takes
from cclocal.paths import Env

# -- completion: Typer keeps what begins as the word that is being typed


def complete_port() -> list[str]:
    """The ports of the sessions that run."""
    from cclocal.server.registry import running

    return [session.port for session in running(Env.of(os.environ))]


def _sessions() -> list[str]:
    from cclocal.server.registry import newest_first, session_of

    return [session_of(log) for log in newest_first(Env.of(os.environ))]


#: The session that a command is about.
_Session = Annotated[
    str | None,
    Argument(metavar="ID", help="Default: the newest session.", show_default=False, autocompletion=_sessions),
]


@takes()
def ps(call: Call, as_json: Json = False) -> None:
    """What runs: sessions and servers, with their ports, memory and folders."""
    from cclocal.session.running import show

    show(call.env, as_json=as_json)


@takes()
def stop(
    call: Call,
    port: Annotated[
        int | None,
        Argument(metavar="PORT", help="Default: the only one.", show_default=False, autocompletion=complete_port),
    ] = None,
) -> None:
    """End a server that --server started, as Ctrl-C in its terminal does."""
    from cclocal.session.running import stop as story

    story(port, call.env)


@takes()
def stats(
    call: Call,
    session: _Session = None,
    as_json: Json = False,
    as_html: Annotated[bool, Option("--html", help="Write a page with charts: one file, no network.")] = False,
) -> None:
    """What each turn of a session cost: tokens read, kept and written; seconds to the first word."""
    from cclocal.session.stats import show

    show(session, call.env, as_json=as_json, as_html=as_html)


@takes()
def update(call: Call, as_json: Json = False) -> None:
    """What is newer than here: of cclocal, its engine and the agents. Asks the registries; installs nothing."""
    from cclocal.session.update import show

    show(call.env, as_json=as_json)


@takes()
def logs(
    call: Call,
    session: _Session = None,
    lines: Annotated[
        int | None, Option("--lines", "-n", metavar="N", min=0, help="Only its last N lines.", show_default=False)
    ] = None,
    follow: Annotated[bool, Option("--follow", "-f", help="Follow the log.")] = False,
) -> None:
    """What the model server of a session says."""
    from cclocal.server.registry import read_log
    from cclocal.turns import without_keys
    from cclocal.ui.console import plain

    for piece in read_log(call.env, session, lines=lines, follow=follow):
        # a file or a pipe gets control characters too, but no keys
        sys.stdout.write(plain(piece) if sys.stdout.isatty() else without_keys(piece))
        sys.stdout.flush()
