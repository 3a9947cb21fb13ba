"""The story of a check: serve as a launch would, try what the agent needs, have the real agent write a real file."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.text import Text

from cclocal.agents import AGENTS
from cclocal.agents.session import Asked
from cclocal.checks import results, rows
from cclocal.checks.rows import CheckRow, Status, can_work
from cclocal.command import Command
from cclocal.errors import FolderError
from cclocal.models.catalog import Catalog
from cclocal.paths import Env
from cclocal.planning.choose import choose_agent
from cclocal.planning.plan import Plan
from cclocal.session.launch import serve, survey
from cclocal.settings import Settings
from cclocal.ui.console import output
from cclocal.wires import WIRES

FILE, CONTENT = "proof.txt", "it works on this machine"
#: Seconds for the agent's own row: a large model on a processor is slow at a long prompt.
_AGENT_LIMIT_S = 3600.0
_STYLES = {"pass": "green", "fail": "red", "not exercised": "yellow"}


def check(settings: Settings, catalog: Catalog, env: Env, *, show: bool) -> tuple[Plan, dict[str, Any]]:
    """(what was served, whether the agent `works` with it and every row, for scripts). The result is remembered.

    `show`: each row on the screen as soon as it is known.
    """
    agent = choose_agent(settings)
    # empty cache, no questions: the check tests a first start
    once = Asked(agent.ask_for_file(FILE, CONTENT), prints=True)
    settings = replace(settings, agent_args=agent.arguments(once), cold=True, yes=True)
    try:
        Path.cwd()
    except FileNotFoundError:
        raise FolderError("The current folder no longer exists.", hint="cd to a folder that exists") from None
    with tempfile.TemporaryDirectory(prefix="cclocal-check-") as folder, contextlib.chdir(folder):
        plan, server, _ = serve(settings, catalog, survey(settings, catalog, env))
        found: list[CheckRow] = []
        try:
            endpoint = plan.agent_endpoint(server.binding)
            for row in rows.run(endpoint, WIRES[agent.WIRE], agent.CALLS, agent.TITLE, plan.session.context_tokens):
                found.append(row)
                _show(row, show=show)
                if server.poll() is not None:
                    raise server.died("The server stopped during the check.")
            is_whole = all(map(rows.was_tried, found))
            if is_whole:
                found.append(_agent_row(plan, plan.agent_command(server.binding)[0], env.environ))
                _show(found[-1], show=show)
        finally:
            server.end()
    report = {
        "model": plan.model.id,
        "backend": plan.variant.backend,
        "engine": f"{plan.engine.form} {plan.engine.version}",
        # a result does not hold for another context or KV cache type
        "agent": plan.agent,
        "context_tokens": plan.context_tokens,
        "kv_type": plan.variant.kv_type,
        "lean": plan.session.lean,
        "works": can_work(found),
        "stopped_early": not is_whole,
        "rows": [row._asdict() for row in found],
    }
    results.keep(plan.result_key, report, env)
    return plan, report


def _show(row: CheckRow, *, show: bool) -> None:
    if not show or not rows.was_tried(row):
        return
    screen = output()
    screen.print(Text.assemble((f"{row.status:<15}", _STYLES[row.status]), (row.name, "bold")))
    if row.status != "pass":
        screen.print(Text(f"{'':15}{row.meaning}\n{'':15}{row.detail}", style="dim"))


def _agent_row(plan: Plan, command: Command, environ: Mapping[str, str]) -> CheckRow:
    """The agent itself: judged by the file that it was asked to write, not by what it says."""
    try:
        done = subprocess.run(
            list(command.argv),
            env=command.environ(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_AGENT_LIMIT_S,
            check=False,
        )
        said = (done.stdout + done.stderr).strip().splitlines()[-1:] or [f"exit {done.returncode}"]
    except (OSError, subprocess.SubprocessError) as error:
        said = [str(error)]
    path, title = Path(FILE), AGENTS[plan.agent].TITLE
    is_good = path.is_file() and path.read_text("utf-8", "replace").strip() == CONTENT
    meaning = f"{title} works with it." if is_good else f"{title} does not work with it."
    status: Status = "pass" if is_good else "fail"
    return CheckRow("The real agent writes a real file", status, said[0][:120], meaning, needed=True)
