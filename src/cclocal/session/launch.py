"""The story, top to bottom: plan → fetch → serve → prove → seal → launch. (The keeper watches.)"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cclocal import tiny
from cclocal.agents import Home
from cclocal.agents import config_dir as homes
from cclocal.backends.ollama import lease as borrowed
from cclocal.backends.ollama.runtime import check, prepare
from cclocal.command import KEY, PORT, SESSION, SESSION_ID, SessionFile
from cclocal.discovery import calibration as measured
from cclocal.discovery import fit_params
from cclocal.discovery.hardware import is_mac, mac_tool, resident_servers
from cclocal.errors import CclocalError, DoesNotFitError, FolderError, PortError, ServerDiedError, UsageError
from cclocal.memory.fit import memory_size
from cclocal.memory.gguf import BadHeaderError, read_header
from cclocal.memory.shape import Shape, shape_of
from cclocal.models import hub
from cclocal.models.headers import listed_bytes, of_mlx_repo, of_tag, refuse_unnamed, remember_files, whole
from cclocal.models.storage import remember
from cclocal.paths import Folders, make_folder
from cclocal.planning.plan import Plan, model_file_values, model_path
from cclocal.prompt_cache.store import Warmth
from cclocal.server import logs
from cclocal.server import wired_limit as wired
from cclocal.server.keeper import how_it_ended
from cclocal.server.readiness import holder_of, last_lines, wait_until_ready
from cclocal.server.registry import reclaim, sessions
from cclocal.server.start import Held, become, free_port, hold, new_key, new_session_id
from cclocal.ui import console as ui
from cclocal.ui import memory_view as memory_ui

#: A random port may be taken between looking and listening; so often another one is tried.
PORT_TRIES = 3
#: The session's file that tells `cclocal attach` where the model answers.
ENDPOINT = "endpoint.json"


#: Makes the plan anew when more is known: what the headers of files not on disk yet mean, by placeholder, and which
#: settings the user changed when asked.
Replan = Callable[[Mapping[str, Shape], Mapping[str, Any]], Plan]


def run(plan: Plan, replan: Replan, folders: Folders, environ: Mapping[str, str], *, safe: bool = False) -> None:
    """Carry out a plan, and become the agent. Returns only by raising. `safe`: ask about memory in any case."""
    plan, held = serve(plan, replan, folders, environ, safe=safe)
    try:
        become(plan.session, environ, held)
    except CclocalError:
        held.end()
        raise


def run_server(plan: Plan, replan: Replan, folders: Folders, environ: Mapping[str, str], *, safe: bool = False) -> None:
    """Serve until Ctrl-C. Raises ServerDiedError if the server ends first."""
    plan, held = serve(plan, replan, folders, environ, server_only=True, safe=safe)
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


def fetch_only(plan: Plan, replan: Replan, folders: Folders, environ: Mapping[str, str]) -> None:
    """Put a model's files on disk, and no more."""
    if plan.fetch.tag:
        raise UsageError(f"{plan.fetch.tag} is fetched by Ollama.", hint=f"ollama pull {plan.fetch.tag}")
    plan = _with_named_files(plan, replan, {}, folders)
    there = not plan.fetch.repo and not plan.fetch.builtin
    fetch(plan, folders, environ)
    ui.say(f"{plan.model.name} is on this disk{' already' if there else ''}.")


def _with_named_files(plan: Plan, replan: Replan, changes: Mapping[str, Any], folders: Folders) -> Plan:
    """The plan with the files' names and a projector's size, where only the repository was known."""
    projector = plan.variant.mmproj
    known = not projector or listed_bytes(plan.fetch.repo or "", projector, folders)
    if not plan.fetch.repo or (plan.fetch.files and known):
        return plan
    try:
        with ui.busy(f"{plan.model.name}: asking the hub for its files"):
            remember_files(plan.fetch.repo, folders)
    except CclocalError:
        if not plan.fetch.files:
            raise
        # only a size was asked for; what is wrong is for the download to say
        return plan
    plan = replan({}, changes)
    if plan.fetch.repo and not plan.fetch.files:
        refuse_unnamed(plan.variant, folders)
    return plan


def in_the_way(error: OSError, folders: Folders) -> FolderError:
    where = error.filename or folders.state
    return FolderError(f"Something is in the way at {where}: {error.strerror or error}.")


def serve(
    plan: Plan,
    replan: Replan,
    folders: Folders,
    environ: Mapping[str, str],
    *,
    server_only: bool = False,
    safe: bool = False,
) -> tuple[Plan, Held]:
    """Fetch, start, and wait until the server has proved itself. Whatever fails, nothing stays behind."""
    try:
        for session in reclaim(folders):
            ui.say(
                f"Cleaned up after a session whose keeper was killed ({session.model}, port {session.port}).",
                "yellow",
            )
        borrowed.take_away_left(folders.borrowed)
        plan, model, limit = _prepare(plan, replan, folders, environ, safe=safe)
        return _serve(plan, model, folders, environ, server_only=server_only, limit=limit)
    except OSError as error:
        raise in_the_way(error, folders) from None


def _prepare(
    plan: Plan, replan: Replan, folders: Folders, environ: Mapping[str, str], *, safe: bool
) -> tuple[Plan, dict[str, str], int | None]:
    """(the plan as it will be, where the model's files are, what holds a raised limit)."""
    if plan.port:
        _check_port(plan.port, folders)
    _warn_of_a_failed_check(plan)
    tools, limit = _wired_tools(environ), None
    if tools:
        limit, plan = _hold_a_raised_limit(plan, replan, tools, folders)
    seen: dict[str, Shape] = {}
    plan, seen = _look_ahead(plan, replan, {}, folders, environ)
    # without a header there is nothing to ask about before the file is here
    asked = plan.fit is not None or not plan.fetch.repo
    changes = settle_memory(plan, safe=safe) if asked else {}
    if not asked and safe and not ui.confirm("Start it?"):
        raise KeyboardInterrupt
    if changes:
        plan = replan(seen, changes)
    if "model" in changes:
        if plan.port:
            _check_port(plan.port, folders)
        plan, seen = _look_ahead(plan, replan, changes, folders, environ)
    if plan.wired_limit_mib and tools:
        # before the download: whoever is to give a password is here now
        limit, plan, changes = _raise_limit(plan, replan, seen, changes, tools, folders, limit)
    model = fetch(plan, folders, environ)
    if plan.fetch.repo:
        plan = replan({}, changes)
        if not asked and (changes := settle_memory(plan, safe=False)):
            plan = replan({}, changes)
    for note in plan.notes:
        ui.say(note, "yellow")
    say_set_aside(plan.home)
    return plan, model, limit


def say_set_aside(home: Home) -> None:
    """Lay out the agent's configuration folder, and say what of it an earlier session had added."""
    if aside := homes.prepare(home):
        where = f"{home.path}{homes.SET_ASIDE}"
        ui.say(f"Set aside from the agent's configuration folder: {', '.join(aside)} (now in {where}).", "yellow")


def _look_ahead(
    plan: Plan, replan: Replan, changes: Mapping[str, Any], folders: Folders, environ: Mapping[str, str]
) -> tuple[Plan, dict[str, Shape]]:
    """(the plan with what a header on the hub says, that header's shape)."""
    plan = _with_named_files(plan, replan, changes, folders)
    if not (plan.fetch.repo or (plan.fetch.tag and plan.fit is None)) or not plan.mem_check:
        return plan, {}
    seen, header = look_before_fetching(plan, folders, environ)
    plan = replan(seen, changes)
    _say_what_llama_cpp_thinks(plan, header, environ)
    return plan, seen


def _hold_a_raised_limit(plan: Plan, replan: Replan, tools: wired.Tools, folders: Folders) -> tuple[int | None, Plan]:
    """(what holds the limit that another session raised, the plan for the limit there is)."""
    if line := wired.left_raised(tools, folders):
        ui.say(f"The wired limit is still raised; nothing is left that would put it back. To do so: {line}", "yellow")
    held, changed = wired.join(tools, folders)
    return held, replan({}, {}) if changed else plan


def _raise_limit(
    plan: Plan,
    replan: Replan,
    seen: Mapping[str, Shape],
    changes: dict[str, Any],
    tools: wired.Tools,
    folders: Folders,
    held: int | None,
) -> tuple[int | None, Plan, dict[str, Any]]:
    """(what holds the limit, the plan, the changes): with the limit raised, or with less context if that is denied."""
    assert plan.wired_limit_mib
    try:
        raised = wired.raise_limit(
            plan.wired_limit_mib,
            tools,
            folders,
            can_ask=ui.can_ask(),
            waiting=lambda: ui.say("Waiting for another session that is raising the wired limit…"),
        )
    except wired.DeniedError as error:
        ui.say(f"{error.message} Going on with less context.", "yellow")
        if error.hint:
            ui.say(f"To put it back: {error.hint}", "yellow")
        changes = {**changes, "wired_limit_mib": None}
        plan = replan(seen, changes)
        _refuse_what_does_not_fit(plan)
        return held, plan, changes
    return raised if raised is not None else held, plan, changes


def _warn_of_a_failed_check(plan: Plan) -> None:
    """Ask before a model is started that was seen to fail. Raises UsageError where nobody can be asked."""
    if plan.proven is not False or plan.yes:
        return
    ui.say(f"{plan.model.name} failed its check on this engine (cclocal check {plan.model.id}).", "yellow")
    if not ui.can_ask():
        raise UsageError("It is not started without a word from you.", hint="--yes, or another model")
    if not ui.confirm("Start it all the same?", default=False):
        raise KeyboardInterrupt


def _wired_tools(environ: Mapping[str, str]) -> wired.Tools | None:
    return wired.Tools(mac_tool(environ, "sysctl"), mac_tool(environ, "sudo")) if is_mac(environ) else None


def _serve(
    plan: Plan,
    model: Mapping[str, str],
    folders: Folders,
    environ: Mapping[str, str],
    *,
    server_only: bool,
    limit: int | None,
) -> tuple[Plan, Held]:
    for attempt in range(1, PORT_TRIES + 1):
        session_id = new_session_id()
        bound = bind(plan, folders, session_id, model, server_only=server_only)
        try:
            return bound, _start(bound, folders, session_id, environ, limit, model)
        except (ServerDiedError, PortError):
            ours = bound.readiness.owns_socket
            if plan.port or not ours or attempt == PORT_TRIES or not _is_taken(bound.readiness.endpoint.port):
                raise
    raise AssertionError("the last attempt returns or raises")


def look_before_fetching(
    plan: Plan, folders: Folders, environ: Mapping[str, str]
) -> tuple[dict[str, Shape], tuple[bytes, int]]:
    """What the model's header says, read from the hub: megabytes tell whether gigabytes are worth it.

    Returns the shape by its placeholder, and the header with the file's size. Whatever goes wrong with that is left
    to the download to say.
    """
    files, repo = plan.variant.files, plan.fetch.repo or ""
    place = model_path(plan.variant, {})
    try:
        with ui.busy(f"{plan.model.name}: looking at its header"):
            if plan.variant.tag:
                found = of_tag(plan.variant.tag, environ)
                return {place: found.shape}, (found.header, found.file_bytes)
            if plan.variant.is_folder:
                return {place: of_mlx_repo(repo, {file: listed_bytes(repo, file, folders) for file in files})}, (b"", 0)
            parts = [hub.peek(repo, file, read_header) for file in files]
            shape = shape_of(whole([part.value for part in parts]))
    except UsageError:
        raise
    except (CclocalError, BadHeaderError):
        return {}, (b"", 0)
    return {place: shape}, (parts[0].data, parts[0].size_bytes) if len(parts) == 1 else (b"", 0)


def _say_what_llama_cpp_thinks(plan: Plan, header: tuple[bytes, int], environ: Mapping[str, str]) -> None:
    """llama-fit-params' answer, where there is one and it is another."""
    tool = fit_params.program(plan.engine, environ)
    fit = plan.wanted or plan.fit
    if not tool or not fit or not header[0]:
        return
    opinion = fit_params.ask(tool, fit, environ, header)
    if opinion and opinion.differs(fit):
        ui.say(opinion.in_words(fit), "dim")


def settle_memory(plan: Plan, *, safe: bool) -> dict[str, Any]:
    """Say what the plan needs; ask what to do if that is too much, hardly fits, or in any case if `safe`.

    Returns the settings to change. Raises DoesNotFitError if nothing fits and there is nobody to ask.
    """
    wished = plan.wanted or plan.fit
    if not plan.mem_check or wished is None:
        if plan.mem_check:
            ui.say(f"{plan.model.name}: what it needs in memory is not known.", "yellow")
        if safe and not ui.confirm("Start it?"):
            raise KeyboardInterrupt
        return {}
    if wished.verdict in ("roomy", "unknown") and not safe:
        ui.say(f"{plan.model.name} {plan.memory}.", "dim" if wished.verdict == "roomy" else "yellow")
        return {}
    if not ui.can_ask():
        _refuse_what_does_not_fit(plan)
        if plan.wanted is None:
            ui.say(f"{plan.model.name} {plan.memory}.")
        return {}
    servers = resident_servers() if wished.verdict != "roomy" else []
    choice = memory_ui.ask(plan.model.name, plan, servers)
    return dict(choice.changes) if choice else {"mem_check": False}


def _refuse_what_does_not_fit(plan: Plan) -> None:
    if plan.mem_check and plan.fit is not None and plan.fit.verdict == "too_big":
        others = [f"{one.words}" for one in plan.remedies]
        raise DoesNotFitError(
            f"{plan.model.name} {plan.memory}.",
            cause=[
                *others,
                *(f"{name} (pid {pid}) holds {memory_size(held)}" for name, pid, held in resident_servers()),
            ],
            hint="a smaller model or --ctx; --no-mem-check starts it all the same",
        )


def fetch(plan: Plan, folders: Folders, environ: Mapping[str, str]) -> dict[str, str]:
    """Put the model's files on disk, and say where each placeholder of the plan points."""
    if plan.fetch.builtin:
        build = tiny.build_mlx if plan.variant.is_folder else tiny.build
        return model_file_values(plan.variant, {"tiny": build(folders.cache)})
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
        SESSION_ID: session_id,
        PORT: str(plan.port or free_port()),
    }
    if server_only:
        # what `cclocal attach` needs; a key does not belong into a line to paste
        told = {
            "url": plan.readiness.endpoint.url,
            "key": KEY,
            "model": plan.readiness.endpoint.model,
            "context_tokens": plan.window_tokens,
            "out_tokens": plan.out_tokens,
            "tools": plan.tools,
            "lean": plan.lean,
            "passed": plan.passed,
        }
        plan = replace(plan, files=(*plan.files, SessionFile(ENDPOINT, json.dumps(told))))
    return plan.bind(values)


def _start(
    bound: Plan,
    folders: Folders,
    session_id: str,
    environ: Mapping[str, str],
    limit: int | None,
    model: Mapping[str, str],
) -> Held:
    make_folder(folders.sessions)
    # rehearses while the model loads
    warmth = Warmth.of(bound, folders, environ)
    log = logs.new_log(folders, session_id)
    held = hold(
        bound.server,
        bound.files,
        bound.stop,
        session_id=session_id,
        folder=folders.sessions / session_id,
        log=log,
        about={
            "model": bound.asked,
            "port": bound.readiness.endpoint.port,
            "backend": bound.backend,
            "log": str(log),
        },
        report=(
            f"\n✗ The model server stopped during the session ({{how}}).\n{{last}}"
            f"  Try:  cclocal --model {bound.asked} -- --continue\n  Log:  {log}\n"
        ),
        draws=bound.draws,
        environ=environ,
        held_open=limit,
    )
    line = ui.WaitLine(bound.model.name)
    try:
        with ui.download_bar(bound.model.name) as bars:
            for note in prepare(bound, held, model, bars):
                ui.say(note, "yellow")
        with line.shown():
            wait_until_ready(held, bound.readiness, line)
            check(bound, held)
            said = warmth.bring(bound, held, line) if warmth else None
        if said:
            ui.say(said, "dim")
    except BaseException:
        if warmth:
            warmth.close()
        held.end()
        raise
    measured.learn(bound, log, folders)
    with contextlib.suppress(FolderError):
        remember(bound.variant.source or bound.model.id, bound.variant.path, folders)
    return held


def _check_port(port: int, folders: Folders) -> None:
    if not _is_taken(port):
        return
    for session in sessions(folders):
        if session.port == str(port) and session.is_running:
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
