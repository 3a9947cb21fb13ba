"""`cclocal attach`: the agent on a server that runs already."""

from __future__ import annotations

from typing import Annotated

import typer

from cclocal.cli.options import Call, takes
from cclocal.settings import Settings

EXAMPLES = (
    ("cclocal attach 8132", "on the server that listens there (also: cclocal 8132)"),
    ("cclocal attach 8132 -- --continue", "continue this folder's last conversation"),
)


def _complete_port(incomplete: str) -> list[str]:
    import os

    from cclocal.paths import Env
    from cclocal.server.registry import running

    return [session.port for session in running(Env.of(os.environ)) if session.port.startswith(incomplete)]


@takes("agent", "out_tokens", "pass_env", "no_tools", "lean")
def attach(
    settings: Settings,
    call: Call,
    port: Annotated[
        int, typer.Argument(help="A port of this machine.", show_default=False, autocompletion=_complete_port)
    ],
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Model to use, if the server has several.")
    ] = None,
    ctx: Annotated[
        int | None,
        typer.Option("--ctx", metavar="TOKENS", min=1, help="Context window, if the server does not report it."),
    ] = None,
) -> None:
    """The agent on a server that runs already (also: cclocal PORT): one of --server, or any other. It keeps running."""
    from cclocal.session.attach import attach as story
    from cclocal.session.serve import os_errors_in_words

    settings = settings.changed({"model": model, "ctx": ctx}, "command line")
    with os_errors_in_words(call.env):
        story(port, settings, call.env)
