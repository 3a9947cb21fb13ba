"""The story, top to bottom: plan → fetch → serve → prove → seal → launch. (The keeper watches.)"""

from __future__ import annotations

import shlex
import socket
from collections.abc import Mapping
from dataclasses import replace

from cclocal import homes, hub, logs, tiny, ui
from cclocal.command import KEY, PORT, SESSION, SessionFile
from cclocal.errors import CclocalError, FolderError, PortError, ServerDiedError
from cclocal.files import Folders, make_folder
from cclocal.keeper import how_it_ended
from cclocal.plan import Plan, model_file_values
from cclocal.process import Held, become, free_port, hold, new_key, new_session_id
from cclocal.ready import holder_of, last_lines, wait_until_ready
from cclocal.state import reclaim

#: A random port may be taken between looking and listening; so often another one is tried.
PORT_TRIES = 3


def run(plan: Plan, folders: Folders, environ: Mapping[str, str]) -> None:
    """Carry out a plan, and become the agent. Returns only by raising."""
    plan, held = serve(plan, folders, environ)
    try:
        become(plan.session, environ, held)
    except CclocalError:
        held.end()
        raise


def run_server(plan: Plan, folders: Folders, environ: Mapping[str, str]) -> None:
    """Serve until Ctrl-C. Raises ServerDiedError if the server ends first."""
    plan, held = serve(plan, folders, environ, server_only=True)
    endpoint = plan.readiness.endpoint
    ui.say(f"{plan.model.name} answers on {endpoint.url}. In another terminal:\n")
    print(f"sh {shlex.quote(str(held.folder / 'agent.sh'))}", flush=True)
    ui.say("\nArguments after it go to claude. Ctrl-C here ends the server.")
    try:
        while held.poll(timeout_s=3600) is None:
            pass
    except KeyboardInterrupt:
        ui.say("\nEnding the server.")
        held.end()
        return
    code, cause = held.server_exit, last_lines(held.log)
    held.end()
    raise ServerDiedError(f"The server stopped ({how_it_ended(code or 0)}).", cause=cause, log=str(held.log))


def serve(plan: Plan, folders: Folders, environ: Mapping[str, str], *, server_only: bool = False) -> tuple[Plan, Held]:
    """Fetch, start, and wait until the server has proved itself. Whatever fails, nothing stays behind."""
    try:
        return _serve(plan, folders, environ, server_only=server_only)
    except OSError as error:
        where = error.filename or folders.state
        raise FolderError(f"Something is in the way at {where}: {error.strerror or error}.") from None


def _serve(plan: Plan, folders: Folders, environ: Mapping[str, str], *, server_only: bool) -> tuple[Plan, Held]:
    for session in reclaim(folders):
        ui.say(
            f"Cleaned up after a session whose keeper was killed ({session.model}, port {session.port}).",
            "yellow",
        )
    for note in plan.notes:
        ui.say(note, "yellow")
    if plan.port:
        _check_port(plan.port)
    model = fetch(plan, folders, environ)
    homes.prepare(plan.home)
    for attempt in range(1, PORT_TRIES + 1):
        session_id = new_session_id()
        bound = bind(plan, folders, session_id, model, server_only=server_only)
        try:
            return bound, _start(bound, folders, session_id, environ)
        except (ServerDiedError, PortError):
            if plan.port or attempt == PORT_TRIES or not _is_taken(bound.readiness.endpoint.port):
                raise
    raise AssertionError("the last attempt returns or raises")


def fetch(plan: Plan, folders: Folders, environ: Mapping[str, str]) -> dict[str, str]:
    """Put the model's files on disk, and say where each placeholder of the plan points."""
    if plan.fetch.builtin:
        return model_file_values(plan.variant, {"tiny": tiny.build(folders.cache)})
    if not plan.fetch.repo:
        return {}
    with ui.download_bar(plan.model.name) as bar:
        return model_file_values(plan.variant, hub.fetch(plan.fetch.repo, plan.fetch.files, environ, bar))


def bind(plan: Plan, folders: Folders, session_id: str, model: Mapping[str, str], *, server_only: bool) -> Plan:
    """The plan with a session's own values: a fresh key, a free port, the session's folder."""
    values = {
        **model,
        KEY: new_key(),
        SESSION: str(folders.sessions / session_id),
        PORT: str(plan.port or free_port()),
    }
    if server_only:
        # the scrubbed environment is too long to paste: a script in the session's folder holds it, and the key
        script = SessionFile("agent.sh", plan.session.as_script())
        plan = replace(plan, files=(*plan.files, script))
    return plan.bind(values)


def _start(bound: Plan, folders: Folders, session_id: str, environ: Mapping[str, str]) -> Held:
    make_folder(folders.sessions)
    log = logs.new_log(folders, session_id)
    name = bound.model.id
    held = hold(
        bound.server,
        bound.files,
        bound.stop,
        session_id=session_id,
        folder=folders.sessions / session_id,
        log=log,
        about={
            "model": name,
            "port": bound.readiness.endpoint.port,
            "backend": bound.backend,
            "log": str(log),
        },
        report=(
            f"\n✗ The model server stopped during the session ({{how}}).\n{{last}}"
            f"  Try:  cclocal --model {name} -- --continue\n  Log:  {log}\n"
        ),
        environ=environ,
    )
    line = ui.WaitLine(bound.model.name)
    try:
        with line.shown():
            wait_until_ready(held, bound.readiness, line)
    except BaseException:
        held.end()
        raise
    return held


def _check_port(port: int) -> None:
    if _is_taken(port):
        raise PortError(
            f"Port {port} is in use by {holder_of(port)}.", hint="another --port, or none to take a free one"
        )


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        # as servers do, so that a port in TIME_WAIT counts as free
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except PermissionError:
            raise PortError(f"Port {port} is only for the administrator.", hint="a --port above 1023") from None
        except OSError:
            return True
    return False
