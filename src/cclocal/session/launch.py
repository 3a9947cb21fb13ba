"""The story of a launch, top to bottom: look → plan → fetch → serve → exec. (Then the keeper watches.)"""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import replace
from typing import NoReturn

from cclocal.agents import AGENTS
from cclocal.backends import BACKENDS, runtime_of
from cclocal.discovery.look import look
from cclocal.facts import Facts
from cclocal.models.catalog import Catalog
from cclocal.paths import Env
from cclocal.planning.choose import check_agent
from cclocal.planning.plan import Plan
from cclocal.server.registry import check_proc, end_abandoned
from cclocal.server.start import Server
from cclocal.session import also, sandbox
from cclocal.session.install import prepare_with_what_is_missing
from cclocal.session.serve import (
    become,
    confirm_after_failed_check,
    lay_out_config,
    say_if_unverified,
    start,
)
from cclocal.session.servers import settle_port
from cclocal.session.steps import (
    fetch,
    hold_raised_limit,
    look_at_hub,
    raise_limit,
    refuse_toolless,
    refuse_unsafe,
    settle_memory,
)
from cclocal.settings import Settings
from cclocal.ui.console import say, say_once
from cclocal.ui.tables import show_plan
from cclocal.units import how_it_ended

#: A variable: the session belongs to a connection from another machine (session/tunnel.py).
HELD = "CCLOCAL_HELD"
#: What was seen, and on a Mac the descriptor that keeps a limit raised by another session.
Seen = tuple[Facts, int | None]


def survey(settings: Settings, catalog: Catalog, env: Env) -> Seen:
    """Look once, at the machine, its engines and the agent, after what killed sessions left there was ended."""
    check_proc()
    for session in end_abandoned(env):
        say(f"Cleaned up after a session whose keeper was killed ({session.model}, port {session.port}).", "yellow")
    for name in BACKENDS:
        runtime_of(name).clean_up(env)
    limit = hold_raised_limit(env)
    return look(env, settings, catalog), limit


def launch(settings: Settings, catalog: Catalog, seen: Seen) -> NoReturn:
    """Serve a model, and become the agent."""
    plan, server, facts = serve(settings, catalog, seen)
    become(plan.session, plan.agent_command(server.binding), server, plan.settings, facts)


def run_server(settings: Settings, catalog: Catalog, seen: Seen) -> None:
    """Serve until Ctrl-C. Raises ServerDiedError if the server ends first."""
    # `cclocal stop` ends it as Ctrl-C does
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    key = _held() if seen[0].env.environ.get(HELD) else ""
    plan, server, _ = serve(settings, catalog, seen, key)
    endpoint = plan.agent_endpoint(server.binding)
    slots, each = plan.variant.slots, plan.session.context_tokens
    several = f", for {slots} conversations at once of {each:,} tokens each" if slots > 1 else ""
    say(f"{plan.model.name} answers on {endpoint.url}{several}. In another terminal, in the folder to work in:\n")
    print(f"cclocal attach {endpoint.port}", flush=True)
    say("\nArguments for the agent go after “--”. For a plain agent, an editor or a script:\n")
    say(f'eval "$(cclocal env {endpoint.port})"')
    say("\nCtrl-C here ends the server.")
    try:
        while server.poll(timeout_s=3600) is None:
            for text in server.news:
                say(text, "yellow")
            server.news.clear()
    except KeyboardInterrupt:
        say("\nEnding the server.")
        server.end()
        return
    error = server.died(f"The server stopped ({how_it_ended(server.exit_status or 0)}).")
    server.end()
    raise error


def _held() -> str:
    """The key that another machine sends on our standard input; we end with that."""
    key = sys.stdin.readline().strip()

    def end() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end, daemon=True).start()
    return key


def serve(settings: Settings, catalog: Catalog, seen: Seen, key: str = "") -> tuple[Plan, Server, Facts]:
    """Plan, fetch and start, until the server has shown that it answers. If anything fails, nothing is left.

    key: of the session; empty = a random one.
    Returns the facts too: something may have been installed.
    """
    facts, limit = seen
    now = prepare_with_what_is_missing(settings, catalog, facts)
    facts, env = now.facts, facts.env
    if not settings.server:
        is_harmless = not settings.also and any(variant.builtin for variant in now.model.variants)
        settings = sandbox.settle(settings, facts, is_harmless=is_harmless)
        sandbox.confirm_folder(settings, facts)
        now = replace(now, settings=settings)
    now, others = also.with_others(now)
    plan = also.whole_plan(now, others)
    if settings.safe:
        show_plan(plan, env.environ)
    if not settings.server:
        check_agent(AGENTS[plan.agent], now.facts, settings)
        say_if_unverified(AGENTS[plan.agent], now.facts.agent, env)
        # what cannot be sandboxed is refused before the model is loaded
        sandbox.sandbox_of(plan.session, plan.agent_command(plan.shown), plan.shown, settings, now.facts)
    now = replace(now, settings=settle_port(now.settings, plan.port, env))
    confirm_after_failed_check(plan)
    now = look_at_hub(now)
    refuse_toolless(now)
    now = settle_memory(now, safe=settings.safe)
    if now.settings.model != settings.model:
        # another model was chosen there
        confirm_after_failed_check(now.plan())
    now, limit = raise_limit(now, limit)
    now, others = also.share_window(now, [look_at_hub(other) for other in others])
    is_known = now.plan().fit is not None
    now, others = fetch(now), tuple(map(also.fetch_safely, others))
    if not is_known:
        # without a header there was nothing to ask about before the file was here; the answer may be another model
        now = fetch(settle_memory(now, safe=False))
    refuse_unsafe(now)
    refuse_toolless(now)
    plan = also.whole_plan(now, others)
    for note in plan.notes:
        say_once(note, "yellow")
    lay_out_config(AGENTS[plan.agent].config_dir(plan.session))
    return plan, start(plan, env, limit, key), facts
