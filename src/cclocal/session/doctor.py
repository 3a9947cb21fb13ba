"""`cclocal doctor`: what on this machine a launch depends on, and what would stop one. Starts no server."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cclocal import __version__
from cclocal.agents import AGENTS, Agent, look_of
from cclocal.agents.session import AgentSession, Sends
from cclocal.backends import BACKENDS, in_order
from cclocal.command import refusal
from cclocal.config_file import read_user_file
from cclocal.discovery.hardware import resident_servers
from cclocal.discovery.look import look
from cclocal.errors import AgentMissingError, UsageError
from cclocal.facts import AgentFound, Facts
from cclocal.models import hub
from cclocal.models.catalog import Catalog
from cclocal.models.storage import SAVED_PROMPTS, Stored, free_bytes
from cclocal.paths import Env
from cclocal.planning.choose import agent_session, check_agent, choose_agent, level_of
from cclocal.planning.memory import budget_of
from cclocal.programs import Answers
from cclocal.prompt_cache.capture import first_requests, sends_of
from cclocal.server.process import machine_id
from cclocal.server.registry import sessions
from cclocal.session.models import stored
from cclocal.settings import OFF, STRICT, Settings
from cclocal.ui.tables import Finding
from cclocal.units import file_size, memory_size
from cclocal.wires import WIRES

#: The window that the captured session has; it is not in the prompt.
_CONTEXT_TOKENS, _OUT_TOKENS = 65536, 8192
#: With less free disk space than this hardly a model can be downloaded.
_SPARE_BYTES = 5 * 10**9
_PROXIES = re.compile(r"(HTTPS?|ALL)_PROXY", re.IGNORECASE)


def examine(settings: Settings, catalog: Catalog, env: Env) -> Iterator[Finding]:
    """Yield every finding as soon as it is known.

    Runs the agent twice, against a server of ours that refuses every request, to see what it sends first.
    """
    # an engine that does not run is a finding
    facts = look(env, replace(settings, agent_args=()), catalog, engines_must_run=False)
    system = f"{facts.machine.os} {facts.machine.os_version} {facts.machine.arch}".replace("  ", " ")
    yield Finding("cclocal", "info", f"{__version__} on {system}")
    try:
        read_user_file(env.folders.user_file)
    except UsageError as error:
        yield Finding("settings", "problem", error.message, "cclocal config edit")
    yield from _agents(settings, facts)
    yield from _engines(facts)
    yield _memory(facts)
    yield from _disk(env, stored(catalog, env))
    yield from _redirections(settings, facts)
    yield _sandbox(settings, facts)
    yield from _servers(env)


# -- the agents


def _agents(settings: Settings, facts: Facts) -> Iterator[Finding]:
    agent = choose_agent(settings)
    try:
        check_agent(agent, facts, Settings())
    except AgentMissingError as error:
        yield Finding("agent", "problem", error.message, error.hint or "")
    else:
        assert facts.agent
        yield _version(agent, facts.agent)
        session = agent_session(replace(settings, agent_args=()), facts, _CONTEXT_TOKENS, _OUT_TOKENS)
        yield _first_request(agent, session, facts.env)
        for note in agent.notes(session):
            yield Finding("agent", "note", note)
    answers = Answers(facts.env.folders.cache / "probes.json")
    for other in (row for row in AGENTS.values() if row is not agent):
        try:
            found = look_of(other.NAME).look(facts.env, facts.cwd, facts.git_root, answers)
        except AgentMissingError as error:
            yield Finding("agent", "note", error.message, other.INSTALL)
            continue
        if found:
            yield replace(_version(other, found), state="info")
    answers.save()


def _version(agent: Agent, found: AgentFound) -> Finding:
    text = f"{agent.TITLE} {found.version}"
    if found.version in agent.VERIFIED:
        return Finding("agent", "ok", f"{text}, verified with cclocal ({found.path})")
    words = f"{text} was not verified with cclocal; {', '.join(agent.VERIFIED)} were ({found.path})"
    return Finding("agent", "note", words, f"cclocal check    or: {agent.INSTALL}")


def _first_request(agent: Agent, session: AgentSession, env: Env) -> Finding:
    """What this version sends first, against what the newest verified version sends."""
    capture = agent.capture(session, "model")
    requests = first_requests(agent.NAME, capture, env, threading.Event()) if capture else []
    if not requests:
        return Finding("agent", "note", f"{agent.TITLE} sent no request within its time limit.", "cclocal check")
    sends = sends_of(requests, WIRES[agent.WIRE])
    differs = "; ".join(_differences(sends, agent.SENDS))
    text = f"its first request: {len(sends.tools)} tools, {sends.fixed_bytes:,} bytes of instructions"
    if differs:
        words = f"{text}. Other than {agent.TITLE} {agent.VERIFIED[-1]}: {differs}"
        return Finding("agent", "note", words, "cclocal check")
    return Finding("agent", "ok", f"{text}, the same as {agent.TITLE} {agent.VERIFIED[-1]} sends")


def _differences(sends: Sends, verified: Sends) -> Iterator[str]:
    if added := set(sends.tools) - set(verified.tools):
        yield f"the tools {', '.join(sorted(added))} more"
    if gone := set(verified.tools) - set(sends.tools):
        yield f"the tools {', '.join(sorted(gone))} less"
    if sends.roles != verified.roles:
        yield f"messages of {', '.join(sends.roles)} instead of {', '.join(verified.roles)}"
    if sends.has_late_system and not verified.has_late_system:
        yield "a system message in mid-conversation, which strict chat templates refuse"
    if sends.names_folder and not verified.names_folder:
        yield "the folder in the fixed part, so a prompt that was saved in one folder helps little in another"


# -- the machine


def _sandbox(settings: Settings, facts: Facts) -> Finding:
    level, error = level_of(settings, facts.machine), facts.sandbox_error
    if level != STRICT:
        words = choose_agent(settings).OWN_LEVELS[level]
        return Finding("sandbox", "note" if level == OFF else "ok", f"{level}: {words}.{settings.origin('sandbox')}")
    if not error:
        return Finding("sandbox", "ok", f"strict works here ({facts.sandbox})")
    return Finding("sandbox", "problem", " ".join((error.message, *error.cause)), error.hint or "")


def _engines(facts: Facts) -> Iterator[Finding]:
    found = False
    for name in in_order(facts.machine):
        for engine in facts.engines.get(name, ()):
            found = True
            devices = ", ".join(engine.device_names) or ("the processor" if engine.uses == "listed" else "its GPUs")
            text = f"{name}: {engine.title or engine.form} {engine.version}, on {devices}"
            yield Finding("engine", "ok", text + (", in a sandbox" if engine.sandbox else ""))
    if not found:
        name = in_order(facts.machine)[0]
        yield Finding(
            "engine", "problem", "No engine that serves models was found.", BACKENDS[name].install_hint((), facts)
        )


def _memory(facts: Facts) -> Finding:
    name = next((name for name in in_order(facts.machine) if facts.engines.get(name)), "")
    shapes = (row.shape for row in facts.alternatives if not name or row.shape.form in BACKENDS[name].FORMS)
    engine, shape = next(iter(facts.engines.get(name, ())), None), next(shapes, None)
    budget = budget_of(engine, facts.machine, shape) if shape else None
    if not budget:
        return Finding("memory", "note", f"{memory_size(facts.machine.ram_bytes)}; how much is free is not known")
    return Finding("memory", "info", f"{memory_size(budget.size_bytes)} for a model: {budget.source}", "cclocal plan")


def _disk(env: Env, rows: list[Stored]) -> Iterator[Finding]:
    cache = hub.cache(env.environ)
    free, total = free_bytes(cache)
    text = f"{file_size(free)} of {file_size(total)} are free where models go ({cache})"
    yield Finding("disk", "ok" if free > _SPARE_BYTES else "note", text, "" if free > _SPARE_BYTES else "cclocal --rm")
    for row in rows:
        if row.incomplete_bytes:
            words = f"{row.name}: {file_size(row.incomplete_bytes)} of an unfinished download"
            hint = f"cclocal --fetch {row.name}    goes on; cclocal --rm {row.name}    removes it"
            yield Finding("disk", "note", words, hint)
        if row.kind == SAVED_PROMPTS:
            yield Finding(
                "disk", "info", f"kept KV caches, {row.name}: {file_size(row.size_bytes)}", f"cclocal --rm {row.name}"
            )


def _redirections(settings: Settings, facts: Facts) -> Iterator[Finding]:
    """What would redirect a plain launch of the agent, and settings of the user's for cclocal."""
    agent, env = choose_agent(settings), facts.env
    names = sorted(name for name in env.environ if refusal(name, agent.FORBIDDEN) and not name.startswith("CCLOCAL"))
    proxies = [name for name in names if _PROXIES.fullmatch(name)]
    if kept := [name for name in names if name not in proxies]:
        yield Finding("settings", "info", f"{', '.join(kept)}: set here; {agent.TITLE} does not get it")
    if proxies:
        words = f"{', '.join(proxies)}: used for downloads; {agent.TITLE} does not get it"
        yield Finding("settings", "info", words)
    home = Path(env.environ["HOME"])
    places = {f"~/{name}": home / name for name in agent.IGNORED_IN_HOME}
    places |= {name: facts.cwd / name for name in agent.IGNORED_IN_FOLDER} if facts.cwd != home else {}
    if there := [name for name, path in places.items() if path.exists()]:
        yield Finding("settings", "info", f"{', '.join(there)}: there, and not read in a session")
    if managed := [path for path in agent.MANAGED if Path(path).exists()]:
        words = f"{', '.join(managed)}: settings of an organisation, which may change a session (not verified)"
        yield Finding("settings", "note", words)
    if ours := sorted(name for name in env.environ if name.startswith("CCLOCAL_")):
        yield Finding("settings", "info", f"{', '.join(ours)}: set")
    if env.folders.user_file.exists():
        yield Finding("settings", "info", f"{env.folders.user_file}: your defaults and models")


# -- what runs, and what was left


def _servers(env: Env) -> Iterator[Finding]:
    ours = set()
    for session in sessions(env):
        if session.is_running:
            ours.add(session.facts.get("server"))
            yield Finding("sessions", "info", f"{session.model} on port {session.port} is running")
        elif session.facts.get("machine", machine_id()) != machine_id():
            words = f"{session.model} on port {session.port}: of another machine, which shares this home"
            yield Finding("sessions", "info", f"{words} ({session.folder})")
        else:
            words = f"{session.model} on port {session.port} was killed; the next start clears it away"
            yield Finding("sessions", "note", words, "cclocal --tiny -- --version")
    for name, pid, size in resident_servers():
        if pid not in ours:
            words = f"{name} (process {pid}) holds {memory_size(size)}, which a model cannot use"
            yield Finding("servers", "note", words, f"kill {pid}    if nobody needs it")
