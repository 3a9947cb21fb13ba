"""`cclocal attach`: the agent on a server that runs already."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from cclocal.cli.options import Call, if_typed, takes
from cclocal.settings import Settings, options

EXAMPLES = (
    ("cclocal attach 8132", "on the server that listens there (also: cclocal 8132)"),
    ("cclocal attach 8132 -- --continue", "continue this folder's last conversation"),
)


def _complete_port(incomplete: str) -> list[str]:
    import os

    from cclocal.paths import Env
    from cclocal.server.registry import running

    return [session.port for session in running(Env.of(os.environ)) if session.port.startswith(incomplete)]


@takes(*(name for name, (_, option) in options().items() if option.scope in ("agent", "window")))
def attach(
    settings: Settings,
    call: Call,
    port: Annotated[
        int, typer.Argument(help="A port of this machine.", show_default=False, autocompletion=_complete_port)
    ],
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Model to use, if the server has several.")
    ] = None,
) -> None:
    """Run the agent on a running server (also: cclocal PORT), started by --server or otherwise; it is not stopped."""
    from cclocal.session.attach import attach as story
    from cclocal.session.serve import os_errors_in_words

    settings = replace(if_typed(settings, "ctx"), model=model)
    with os_errors_in_words(call.env):
        story(port, settings, call.env)
