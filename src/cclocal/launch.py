"""The story, top to bottom: plan → fetch → serve → prove → seal → launch. (The keeper watches.)"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from cclocal import homes, hub, logs, tiny, ui
from cclocal.agents import AGENTS, Session
from cclocal.command import KEY, PORT, SESSION, Endpoint, SessionFile
from cclocal.errors import CclocalError, DoesNotFitError, FolderError, PortError, ServerDiedError, UsageError
from cclocal.files import Folders, make_folder, write_private
from cclocal.keeper import how_it_ended
from cclocal.machine import look_around
from cclocal.memory.gguf import BadHeaderError, read_header
from cclocal.memory.shape import Shape, shape_of
from cclocal.plan import Plan, check_agent, model_file_values, placeholder_of
from cclocal.process import Held, become, free_port, hold, new_key, new_session_id
from cclocal.ready import holder_of, last_lines, wait_until_ready
from cclocal.state import reclaim, sessions

#: A random port may be taken between looking and listening; so often another one is tried.
PORT_TRIES = 3
#: The session's file that tells `cclocal attach` where the model answers.
ENDPOINT = "endpoint.json"


#: Makes the plan anew when more is known: what the headers of files not on disk yet mean, by placeholder.
Replan = Callable[[Mapping[str, Shape]], Plan]


def run(plan: Plan, replan: Replan, folders: Folders, environ: Mapping[str, str]) -> None:
    """Carry out a plan, and become the agent. Returns only by raising."""
    plan, held = serve(plan, replan, folders, environ)
    try:
        become(plan.session, environ, held)
    except CclocalError:
        held.end()
        raise


def run_server(plan: Plan, replan: Replan, folders: Folders, environ: Mapping[str, str]) -> None:
    """Serve until Ctrl-C. Raises ServerDiedError if the server ends first."""
    plan, held = serve(plan, replan, folders, environ, server_only=True)
    endpoint = plan.readiness.endpoint
    ui.say(f"{plan.model.name} answers on {endpoint.url}. In another terminal, in the folder to work in:\n")
    print(f"cclocal attach {endpoint.port}", flush=True)
    ui.say("\nArguments for claude go after “--”. Ctrl-C here ends the server.")
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


def attach(port: int, folders: Folders, environ: Mapping[str, str], arguments: Sequence[str]) -> None:
    """Become the agent on a server that `--server` holds in another terminal. Returns only by raising."""
    try:
        _attach(port, folders, environ, arguments)
    except OSError as error:
        raise _in_the_way(error, folders) from None


def _in_the_way(error: OSError, folders: Folders) -> FolderError:
    where = error.filename or folders.state
    return FolderError(f"Something is in the way at {where}: {error.strerror or error}.")


def _attach(port: int, folders: Folders, environ: Mapping[str, str], arguments: Sequence[str]) -> None:
    running = [session for session in sessions(folders) if session.is_alive("keeper")]
    held = {session.port: session for session in running if (session.folder / ENDPOINT).exists()}
    session = held.get(str(port))
    if session is None:
        there = f" There is one on {', '.join(held)}." if held else ""
        raise UsageError(f"No “cclocal --server” of yours holds port {port}.{there}", hint="cclocal --server")
    told = json.loads((session.folder / ENDPOINT).read_text("utf-8"))
    agent = AGENTS["claude"]
    facts = look_around(folders, environ)
    check_agent(agent, facts)
    wanted = Session(
        Endpoint(told["url"], told["key"], told["model"]),
        told["context_tokens"],
        told["out_tokens"],
        tuple(told["passed"]),
        tuple(arguments),
    )
    for note in agent.notes(facts, wanted):
        ui.say(note, "yellow")
    homes.prepare(agent.home(facts))
    command, files = agent.command(facts, wanted)
    # inside the server's session, with which it goes
    folder = session.folder / f"attached-{os.getpid()}"
    for file in files:
        write_private(folder / file.name, file.content)
    become(command.bind({SESSION: str(folder)}), environ)


def serve(
    plan: Plan, replan: Replan, folders: Folders, environ: Mapping[str, str], *, server_only: bool = False
) -> tuple[Plan, Held]:
    """Fetch, start, and wait until the server has proved itself. Whatever fails, nothing stays behind."""
    try:
        return _serve(plan, replan, folders, environ, server_only=server_only)
    except OSError as error:
        raise _in_the_way(error, folders) from None


def _serve(
    plan: Plan, replan: Replan, folders: Folders, environ: Mapping[str, str], *, server_only: bool
) -> tuple[Plan, Held]:
    for session in reclaim(folders):
        ui.say(
            f"Cleaned up after a session whose keeper was killed ({session.model}, port {session.port}).",
            "yellow",
        )
    if plan.port:
        _check_port(plan.port, folders)
    if plan.fetch.repo:
        plan = look_before_fetching(plan, replan)
    ask_if_it_does_not_fit(plan)
    model = fetch(plan, folders, environ)
    if plan.fetch.repo:
        unseen = plan.fit is None
        plan = replan({})
        if unseen:
            ask_if_it_does_not_fit(plan)
    for note in plan.notes:
        ui.say(note, "yellow")
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


def look_before_fetching(plan: Plan, replan: Replan) -> Plan:
    """The plan with what the model's header says, read from the hub: megabytes tell whether gigabytes are worth it.

    Whatever goes wrong with that is left to the download to say.
    """
    file = plan.fetch.files[0]
    try:
        with ui.busy(f"{plan.model.name}: looking at its header"):
            shape = hub.peek(plan.fetch.repo or "", file, lambda data: shape_of(read_header(data)))
    except (CclocalError, BadHeaderError):
        return plan
    plan = replan({placeholder_of(file): shape})
    ui.say(f"{plan.model.name} {plan.memory}.")
    return plan


def ask_if_it_does_not_fit(plan: Plan) -> None:
    """Ask before a model that does not fit is fetched or started. Raises DoesNotFitError off a terminal, or on no."""
    if not plan.mem_check or plan.fit is None or plan.fit.verdict != "too_big":
        return
    error = DoesNotFitError(
        f"{plan.model.name} {plan.memory}.", hint="a smaller model or --ctx; --no-mem-check starts it all the same"
    )
    if not ui.can_ask():
        raise error
    ui.say(error.message, "yellow")
    if not ui.confirm("Start it all the same?", default=False):
        raise error


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
        # what `cclocal attach` needs; a key does not belong into a line to paste
        told = {
            "url": plan.readiness.endpoint.url,
            "key": KEY,
            "model": plan.readiness.endpoint.model,
            "context_tokens": plan.context_tokens,
            "out_tokens": plan.out_tokens,
            "passed": plan.passed,
        }
        plan = replace(plan, files=(*plan.files, SessionFile(ENDPOINT, json.dumps(told))))
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
        draws=bound.draws,
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


def _check_port(port: int, folders: Folders) -> None:
    if not _is_taken(port):
        return
    for session in sessions(folders):
        if session.port == str(port) and session.is_alive("keeper"):
            raise PortError(
                f"Port {port} is in use by your own session of {session.model}.",
                hint=f"cclocal attach {port}" if (session.folder / ENDPOINT).exists() else "another --port",
            )
    raise PortError(f"Port {port} is in use by {holder_of(port)}.", hint="another --port")


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
