"""`cclocal`: a launch, the menu, and looking without starting."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from cclocal import __version__
from cclocal.cli.options import Call, if_typed, takes, typed
from cclocal.errors import UsageError
from cclocal.settings import Settings, options

LOOK = "Look without starting"


@takes(*options())
def launch(
    settings: Settings,
    call: Call,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", rich_help_panel=LOOK, help="Show what would run, and why.")
    ] = False,
    list_models: Annotated[bool, typer.Option("--list-models", rich_help_panel=LOOK, help="Show the catalog.")] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", rich_help_panel=LOOK, help="With --dry-run or --list-models: for scripts."),
    ] = False,
    version: Annotated[bool, typer.Option("--version", rich_help_panel=LOOK, help="The version.")] = False,
    invoked: str | None = None,
    **model_flags: bool,
) -> None:
    """A coding agent on a model on your own machine: one command, tools that execute, nothing sent anywhere."""
    settings = _with_model(settings, call, model_flags)
    if invoked:
        _refuse_before_a_command(settings, invoked)
        return
    if version:
        print(f"cclocal {__version__}")
        return
    if list_models:
        from cclocal.discovery.look import load_catalog
        from cclocal.ui.tables import show_catalog

        show_catalog(load_catalog(call.user_file), as_json=as_json)
        return
    if as_json and not dry_run:
        raise UsageError("--json goes with --dry-run or --list-models.")
    if settings.url and not _starts_a_server(settings, any(model_flags.values()), dry_run):
        from cclocal.session.attach import attach_url
        from cclocal.session.serve import os_errors_in_words

        with os_errors_in_words(call.env):
            attach_url(if_typed(settings, "model", "ctx"), call.env)
    if (settings.key_env or settings.insecure_http) and not settings.url:
        raise UsageError("--key-env and --insecure-http go with --url.")
    _launch(settings, call, dry_run=dry_run, as_json=as_json)


def _with_model(settings: Settings, call: Call, model_flags: dict[str, bool]) -> Settings:
    """The settings with the model that a flag names: it beats a lasting default, but two on one line are a mistake."""
    named = [call.model_flags[name.removeprefix("model_")] for name, is_on in model_flags.items() if is_on]
    given = [f"--{id_}" for id_ in named]
    if settings.model and settings.sources.get("model") == "command line":
        given.append(f"--model {settings.model}")
    if len(given) > 1:
        raise UsageError(f"Choose one model: {' or '.join(given)}.")
    return settings.changed({"model": named[0]}, "command line") if named else settings


def _refuse_before_a_command(settings: Settings, command: str) -> None:
    """Raises UsageError for an option of a launch before another command, where it would do nothing."""
    flags = [flag for scope in ("server", "agent", "window", "") for flag in typed(settings, scope)]
    if flags:
        hint = f"cclocal {command} -h"
        raise UsageError(f"{flags[0]} is an option of a launch and does nothing for “{command}”.", hint=hint)


def _starts_a_server(settings: Settings, is_model_flag: bool, dry_run: bool) -> bool:
    """Whether a server is started although an address is given: only if the address comes from CCLOCAL_URL.

    Raises UsageError for a typed address with options about a server that is started.
    """
    flags = typed(settings, "server") + (["--dry-run"] if dry_run else [])
    if settings.sources.get("url") == "command line":
        if flags:
            raise UsageError(f"--url uses a server that runs already, so {flags[0]} does nothing.")
        return False
    if flags or is_model_flag:
        from cclocal.ui.console import say

        reason = "a model was named" if is_model_flag else f"{flags[0]} is for a server that cclocal starts"
        say(f"CCLOCAL_URL is set but not used: {reason}.", "dim")
        return True
    return False


def _launch(settings: Settings, call: Call, *, dry_run: bool, as_json: bool) -> None:
    from cclocal.discovery.look import load_catalog
    from cclocal.models.resolve import canonical
    from cclocal.session import launch as story
    from cclocal.session.serve import os_errors_in_words
    from cclocal.ui.console import can_ask

    env, catalog = call.env, load_catalog(call.user_file)
    settings = replace(settings, model=settings.model and canonical(catalog, settings.model))
    if settings.model is None:
        if settings.server or settings.safe or dry_run:
            settings = settings.changed({"model": catalog.default}, "catalog")
        else:
            from cclocal.session.models import choose

            settings = settings.changed({"model": choose(catalog, settings, env)}, "menu")
    if dry_run:
        from cclocal.session.steps import prepare
        from cclocal.ui.console import print_json
        from cclocal.ui.plan_view import plan_json, show_plan

        plan = prepare(settings, catalog, env).plan()
        if as_json:
            print_json(plan_json(plan, env.environ))
        else:
            show_plan(plan, env.environ)
        return
    if settings.safe and not can_ask():
        raise UsageError("--safe asks first, and there is no terminal to ask on.", hint="--no-safe")
    with os_errors_in_words(env):
        _use_a_running_server(settings, call)
        if settings.server:
            story.run_server(settings, catalog, env)
        else:
            story.launch(settings, catalog, env)


def _use_a_running_server(settings: Settings, call: Call) -> None:
    """Attach to the server of this model that `--server` holds in another terminal, unless options ask for another."""
    if typed(settings, "server") or typed(settings, "window"):
        return
    from cclocal.session import attach
    from cclocal.ui.console import say

    name = settings.model or ""
    port = attach.port_of(name, call.env)
    if port is not None:
        say(f"{name} is served in another terminal already, on port {port}: using that.")
        attach.attach(port, replace(settings, model=name, ctx=None), call.env)
