"""The story of a check: serve as a launch would, try what the agent needs, have the real agent write a real file."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.text import Text

from cclocal.agents import AGENTS, Agent
from cclocal.agents.session import AgentSession, Asked
from cclocal.checks import results, rows
from cclocal.checks.rows import CheckRow, Status, can_work
from cclocal.command import Command, Endpoint
from cclocal.errors import FolderError, UsageError
from cclocal.models.catalog import Catalog
from cclocal.paths import Env
from cclocal.planning.choose import choose_agent
from cclocal.planning.plan import Plan
from cclocal.server.start import Server
from cclocal.session.attach import open_url
from cclocal.session.elsewhere import with_ca
from cclocal.session.launch import Seen, serve, survey
from cclocal.session.tune import tune
from cclocal.session.tunnel import open_by_ssh
from cclocal.settings import OFF, Settings
from cclocal.ui.console import busy, output, print_json
from cclocal.wires import WIRES

FILE, CONTENT = "proof.txt", "it works on this machine"
#: Seconds for the agent's own row: a large model on a processor is slow at a long prompt.
_AGENT_LIMIT_S = 3600.0
_STYLES = {"pass": "green", "fail": "red", "not exercised": "yellow"}


def check(
    settings: Settings, catalog: Catalog, env: Env, *, show: bool, calibrate: bool | None = None
) -> tuple[Plan, dict[str, Any]]:
    """(what was served, whether the agent `works` with it and every row, for scripts). The result is remembered.

    `show`: each row on the screen as soon as it is known. `calibrate`: whether the fastest kind of speculation is found
    too; True: that alone, None: if the model works and nothing was chosen by hand. Interrupted, it ends with the rows
    so far.
    """
    agent = choose_agent(settings)
    # empty cache, no questions: the check tests a first start
    settings = replace(settings, agent_args=_asked(agent), cold=True, yes=True)
    with _own_folder():
        seen = survey(settings, catalog, env)
        if calibrate:
            return tune(settings, catalog, seen, show=show)
        plan, report = _check(settings, catalog, seen, env, show=show)
        is_open = plan.speculations and settings.speculate is None and not plan.variant.builtin
        if calibrate is None and report["works"] and is_open:
            with contextlib.suppress(KeyboardInterrupt, UsageError):
                report["speculation"] = tune(settings, catalog, seen, show=show)[1]["speculation"]
    return plan, report


def check_url(settings: Settings, env: Env, *, show: bool) -> tuple[str, dict[str, Any]]:
    """(the model and its server, in words; the report) of a server that runs already. It is not remembered."""
    agent = choose_agent(settings)
    # the check works in a folder of its own
    settings = replace(with_ca(settings), agent_args=_asked(agent), cold=True, yes=True)
    with _own_folder():
        opened = open_by_ssh(settings, env)[0] if settings.ssh else open_url(settings, env)
        tried = Tried(agent, opened.endpoint, opened.session, opened.made[0])
        found, is_interrupted = _try(tried, opened.server, env.environ, show=show)
    about = {"model": opened.endpoint.model, "url": settings.url, "ssh": settings.ssh, "server": opened.kind}
    window = opened.session.context_tokens
    return f"{opened.endpoint.model} on {opened.kind}", {
        **about,
        "agent": agent.NAME,
        "context_tokens": window,
        "lean": opened.session.lean,
        **_outcome(found, is_interrupted),
    }


@dataclass(frozen=True, slots=True)
class Tried:
    """What is tried: an agent, the session's relay, the session, and the command that asks for a file."""

    agent: Agent
    endpoint: Endpoint
    session: AgentSession
    command: Command


def _asked(agent: Agent) -> tuple[str, ...]:
    """The agent's arguments that ask it for the file of a check."""
    return tuple(agent.arguments(Asked(agent.ask_for_file(FILE, CONTENT), prints=True)))


@contextlib.contextmanager
def _own_folder() -> Iterator[None]:
    try:
        Path.cwd()
    except FileNotFoundError:
        raise FolderError("The current folder no longer exists.", hint="cd to a folder that exists") from None
    with tempfile.TemporaryDirectory(prefix="cclocal-check-") as folder, contextlib.chdir(folder):
        yield


def _check(settings: Settings, catalog: Catalog, seen: Seen, env: Env, *, show: bool) -> tuple[Plan, dict[str, Any]]:
    plan, server, _ = serve(settings, catalog, seen)
    binding = server.binding
    tried = Tried(AGENTS[plan.agent], plan.agent_endpoint(binding), plan.session, plan.agent_command(binding)[0])
    found, is_interrupted = _try(tried, server, env.environ, show=show)
    report = {
        "model": plan.model.id,
        "backend": plan.variant.backend,
        "engine": f"{plan.engine.form} {plan.engine.version}",
        # a result does not hold for another context or KV cache type
        "agent": plan.agent,
        "context_tokens": plan.context_tokens,
        "kv_type": plan.variant.kv_type,
        "lean": plan.session.lean,
        **_outcome(found, is_interrupted),
    }
    # what failed has failed; that the rest works was not shown
    if not (can_work(found) and is_interrupted):
        results.keep(plan.result_key, report, env)
    return plan, report


def _outcome(found: Sequence[CheckRow], is_interrupted: bool) -> dict[str, Any]:
    return {
        "works": can_work(found) and not is_interrupted,
        "interrupted": is_interrupted,
        "stopped_early": not all(map(rows.was_tried, found)),
        "rows": [row._asdict() for row in found],
    }


def _try(tried: Tried, server: Server, environ: Mapping[str, str], *, show: bool) -> tuple[list[CheckRow], bool]:
    """(the rows so far, whether they were interrupted). Ends the server."""
    found: list[CheckRow] = []
    try:
        for row in _rows(tried, server, environ, show=show):
            found.append(row)
            _show(row, show=show)
    except KeyboardInterrupt:
        return found, True
    finally:
        server.end()
    return found, False


def _rows(tried: Tried, server: Server, environ: Mapping[str, str], *, show: bool) -> Iterator[CheckRow]:
    """Every row, as soon as its outcome is known. Raises ServerDiedError."""
    agent, found = tried.agent, []
    window, sees = tried.session.context_tokens, tried.session.sees
    for title, attempt in rows.run(tried.endpoint, WIRES[agent.WIRE], agent.CALLS, agent.TITLE, window, sees=sees):
        with busy(title) if show else contextlib.nullcontext():
            found.append(attempt())
        yield found[-1]
        if server.poll() is not None:
            raise server.died("The server stopped during the check.")
    if all(map(rows.was_tried, found)):
        with busy(f"{agent.TITLE} writes a file") if show else contextlib.nullcontext():
            row = _agent_row(agent.TITLE, tried.command, environ)
        yield row


def _show(row: CheckRow, *, show: bool) -> None:
    if not show or not rows.was_tried(row):
        return
    screen = output()
    screen.print(Text.assemble((f"{row.status:<15}", _STYLES[row.status]), (row.name, "bold")))
    if row.status != "pass":
        screen.print(Text(f"{'':15}{row.meaning}\n{'':15}{row.detail}", style="dim"))


def _agent_row(title: str, command: Command, environ: Mapping[str, str]) -> CheckRow:
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
    path = Path(FILE)
    is_good = path.is_file() and path.read_text("utf-8", "replace").strip() == CONTENT
    meaning = f"{title} works with it." if is_good else f"{title} does not work with it."
    status: Status = "pass" if is_good else "fail"
    return CheckRow("The real agent writes a real file", status, said[0][:120], meaning, needed=True)


def end(name: str, report: Mapping[str, Any], *, as_json: bool) -> bool:
    """Say what a check showed of `name`; whether the agent works. Raises KeyboardInterrupt if it was interrupted."""
    if as_json:
        print_json(report)
    else:
        for verdict in verdicts(report):
            output().print(f"\n{name} {verdict}", style="bold", markup=False)
    if report.get("interrupted"):
        raise KeyboardInterrupt
    return bool(report.get("works", True))


def verdicts(report: Mapping[str, Any]) -> Iterator[str]:
    """What a check showed, in words."""
    if report.get("interrupted"):
        yield f"was not tried to the end: {len(report['rows'])} rows are known."
    elif report.get("stopped_early"):
        yield "cannot drive the agent: it calls no tool, so nothing more was tried."
    elif "works" in report:
        yield "can drive the agent." if report["works"] else "cannot be relied on: see what failed."
    if "speculation" in report:
        kind = report["speculation"]["kind"]
        found = "writes no faster with any kind of speculation" if kind == OFF else f"writes fastest with {kind}"
        yield f"{found}. Sessions use {kind} from now on; --speculate chooses another kind."
