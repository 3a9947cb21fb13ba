"""`cclocal check`: start a model as a launch would, drive it, have the real agent write a real file, and say so."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.text import Text

from cclocal.checks import results as proofs
from cclocal.checks.rows import Row, can_work, prove
from cclocal.errors import FolderError, ServerDiedError
from cclocal.paths import Folders
from cclocal.planning.plan import Plan, proof_key
from cclocal.server.readiness import last_lines
from cclocal.session.launch import Replan, serve
from cclocal.ui import console as ui

FILE, CONTENT = "proof.txt", "it works on this machine"
PROMPT = f"Create the file {FILE} with content: {CONTENT}"
#: A large model on a processor takes its time over Claude Code's prompt.
_AGENT_LIMIT_S = 3600.0
_STYLES = {"pass": "green", "fail": "red", "not exercised": "yellow"}


def check(planner: Callable[[], Replan], folders: Folders, environ: Mapping[str, str], *, as_json: bool) -> bool:
    """Whether the agent can work with this model, with the reasons on the screen."""
    try:
        before = Path.cwd()
    except FileNotFoundError:
        raise FolderError("The folder you are in is no longer there.", hint="cd to one that is") from None
    with tempfile.TemporaryDirectory(prefix="cclocal-check-") as folder:
        os.chdir(folder)
        try:
            replan = planner()
            plan, rows = _driven(replan({}, {}), replan, folders, environ, show=not as_json)
        finally:
            os.chdir(before)
    proofs.keep(proof_key(plan.model, plan.variant, plan.backend, plan.engine, lean=plan.lean), rows, folders)
    works = can_work(rows)
    if as_json:
        told = {
            "model": plan.model.id,
            "backend": plan.backend,
            "engine": f"{plan.engine.form} {plan.engine.version}",
            "works": works,
            "rows": [row.as_json() for row in rows],
        }
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        verdict = "can drive the agent." if works else "cannot be relied on: see what failed."
        ui.output().print(Text(f"\n{plan.model.name} on {plan.backend} {verdict}", style="bold"))
    return works


def _driven(
    plan: Plan, replan: Replan, folders: Folders, environ: Mapping[str, str], *, show: bool
) -> tuple[Plan, list[Row]]:
    bound, held = serve(plan, replan, folders, environ)
    rows: list[Row] = []
    try:
        for row in prove(bound.readiness.endpoint, bound.window_tokens):
            rows.append(row)
            _show(row, show=show)
            if held.poll() is not None:
                raise ServerDiedError(
                    "The server stopped in the middle of it.", cause=last_lines(held.log), log=str(held.log)
                )
        rows.append(_agent_row(bound, environ))
        _show(rows[-1], show=show)
    finally:
        held.end()
    return bound, rows


def _show(row: Row, *, show: bool) -> None:
    """One line as soon as it is known: some take minutes."""
    if not show:
        return
    screen = ui.output()
    screen.print(Text.assemble((f"{row.status:<15}", _STYLES[row.status]), (row.name, "bold")))
    if row.status != "pass":
        screen.print(Text(f"{'':15}{row.meaning}\n{'':15}{row.detail}", style="dim"))


def _agent_row(bound: Plan, environ: Mapping[str, str]) -> Row:
    """The agent itself, on a file of its own: judged by the file, not by what it says."""
    name = "The real agent writes a real file"
    try:
        done = subprocess.run(
            list(bound.session.argv),
            env=bound.session.environ(environ),
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
    good = path.is_file() and path.read_text("utf-8", "replace").strip() == CONTENT
    meaning = "Claude Code works with it." if good else "Claude Code does not work with it."
    return Row(name, "pass" if good else "fail", said[0][:120], meaning, needed=True)
