"""What a launch lacks and how it is installed: offered with its command, and done on yes."""

from __future__ import annotations

import importlib
import shlex
import shutil
import subprocess
from collections.abc import Sequence

from cclocal.agents import AGENTS
from cclocal.backends import BACKENDS
from cclocal.discovery.look import look
from cclocal.errors import AgentMissingError, BackendMissingError, CclocalError, UsageError
from cclocal.facts import Facts
from cclocal.models.catalog import Catalog
from cclocal.planning.choose import check_agent
from cclocal.session.serve import is_first
from cclocal.session.steps import Launch, prepare
from cclocal.settings import Settings
from cclocal.ui.console import can_ask, confirm, say


def prepare_with_what_is_missing(settings: Settings, catalog: Catalog, facts: Facts) -> Launch:
    """What is launched, after an engine, a build for the GPU or an agent that is missing was installed on yes.

    Raises BackendMissingError or AgentMissingError if the user declines or cannot be asked.
    """
    while True:
        try:
            now = prepare(settings, catalog, facts)
            plan = now.plan()
            if not settings.server:
                check_agent(AGENTS[plan.agent], facts, settings)
        except (BackendMissingError, AgentMissingError) as error:
            if not _can_install(error.cure) or not _ask(error.message, error.cure):
                raise
        else:
            build = BACKENDS[plan.variant.backend].better_build(plan.engine, facts)
            # asked once: a user who declines goes on without it
            if not _can_install(build) or not is_first(f"build {shlex.join(build)}", facts.env):
                return now
            if not _ask("This engine does not use the GPU.", build):
                return now
        facts = look(facts.env, settings, catalog)


def _can_install(command: Sequence[str]) -> bool:
    return bool(command) and can_ask() and shutil.which(command[0]) is not None


def _ask(reason: str, command: Sequence[str]) -> bool:
    """Whether it was installed. Raises CclocalError if the installer fails."""
    say(reason, "yellow")
    if not confirm(f"Install it now?  {shlex.join(command)}", default=False):
        return False
    try:
        done = subprocess.run(command, check=False)
    except OSError as error:
        raise UsageError(f"{command[0]} does not run: {error.strerror}.") from None
    if done.returncode:
        raise CclocalError(f"{command[0]} ended with {done.returncode}.", hint=shlex.join(command))
    importlib.invalidate_caches()
    return True
