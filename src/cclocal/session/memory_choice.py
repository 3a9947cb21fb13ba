"""Steps of a launch that are about memory: the question if a model does not fit, and a Mac's raised limit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cclocal.discovery.hardware import resident_servers
from cclocal.errors import DoesNotFitError
from cclocal.paths import Env
from cclocal.planning.plan import Plan
from cclocal.server import wired_limit
from cclocal.server.wired_limit import Tools
from cclocal.session.fetch import look_at_hub
from cclocal.session.serve import check_port
from cclocal.ui import memory_view
from cclocal.ui.console import can_ask, confirm, say
from cclocal.units import memory_size

if TYPE_CHECKING:
    from cclocal.session.launch import Launch


def settle_memory(now: Launch, *, safe: bool) -> Launch:
    """Say what the plan needs, and ask what to do if that is too much or hardly fits (if `safe`, in any case).

    The answer is a change of the settings, or another model. Raises DoesNotFitError if nothing fits and there is no
    terminal to ask on, KeyboardInterrupt if the user quits.
    """
    plan = now.plan()
    requested = plan.requested or plan.fit
    if not now.settings.mem_check or requested is None:
        if now.settings.mem_check and not plan.fetch.repo:
            say(f"{plan.model.name}: the memory that it needs is unknown.", "yellow")
        if safe and not confirm("Start it?"):
            raise KeyboardInterrupt
        return now
    if requested.verdict in ("roomy", "unknown") and not safe:
        say(f"{plan.model.name} {plan.memory}.", "dim" if requested.verdict == "roomy" else "yellow")
        return now
    if not can_ask():
        _refuse_what_does_not_fit(plan)
        if plan.requested is None:
            say(f"{plan.model.name} {plan.memory}.")
        return now
    servers = resident_servers() if requested.verdict != "roomy" else []
    remedy = memory_view.ask(plan.model.name, plan, servers)
    changes = dict(remedy.changes) if remedy else {"mem_check": False}
    now = replace(now, settings=now.settings.changed(changes, "memory menu"))
    if "model" not in changes:
        return now
    # these were given for the other model
    quant = changes.get("quant")
    kept = replace(now.settings, quant=str(quant) if quant else None, parser=None)
    now = replace(now, settings=kept).with_model_files()
    check_port(now.plan().port, now.env)
    return look_at_hub(now)


def _refuse_what_does_not_fit(plan: Plan) -> None:
    if plan.settings.mem_check and plan.fit is not None and plan.fit.verdict == "too_big":
        servers = [f"{name} (pid {pid}) holds {memory_size(held)}" for name, pid, held in resident_servers()]
        raise DoesNotFitError(
            f"{plan.model.name} {plan.memory}.",
            cause=[*(one.words for one in plan.remedies), *servers],
            hint="a smaller model or a smaller --ctx; --no-mem-check starts it anyway",
        )


def hold_raised_limit(mac: Tools | None, env: Env) -> int | None:
    """On a Mac: the descriptor that keeps the limit that another session raised, if one did."""
    if mac is None:
        return None
    if line := wired_limit.left_raised(mac, env):
        say(f"The wired limit is still raised, and no process is left to restore it. To restore it: {line}", "yellow")
    return wired_limit.join(mac, env)


def raise_limit(now: Launch, mac: Tools | None, held: int | None) -> tuple[Launch, int | None]:
    """On a Mac, with the limit raised as planned, or with less context if that is denied; and what keeps it raised.

    Done before the download, while the user is there to give a password.
    """
    limit_mib = now.plan().wired_limit_mib
    if not limit_mib or mac is None:
        return now, held
    try:
        raised = wired_limit.raise_limit(
            limit_mib,
            mac,
            now.env,
            can_ask=can_ask(),
            waiting=lambda: say("Waiting for another session that is raising the wired limit…"),
        )
    except wired_limit.DeniedError as error:
        say(f"{error.message} Continuing with less context.", "yellow")
        if error.hint:
            say(f"To restore it: {error.hint}", "yellow")
        now = replace(now, settings=now.settings.changed({"wired_limit": None}, "memory menu"))
        _refuse_what_does_not_fit(now.plan())
        return now, held
    return now, raised if raised is not None else held
