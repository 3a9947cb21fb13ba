"""Steps of a launch around the server: the port, the start under a keeper, readiness, the prompt."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import shlex
import socket
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import NoReturn

from cclocal.agents import AGENTS, Agent, config_dir
from cclocal.agents.session import AgentSession, ConfigDir
from cclocal.backends import BACKENDS, StartedServer, runtime_of
from cclocal.command import Binding, CommandAndFiles, Endpoint
from cclocal.discovery.look import learn
from cclocal.errors import CclocalError, DiskFullError, FolderError, PortError, ServerDiedError, UsageError
from cclocal.facts import AgentFound, Facts
from cclocal.models import hub
from cclocal.models.storage import remember
from cclocal.paths import DISK_FULL, Env, make_folder, read_table, write_private
from cclocal.planning.choose import choose_agent
from cclocal.planning.plan import Plan
from cclocal.prompt_cache.cache import PromptCache
from cclocal.prompt_cache.conversation import keeps, requests
from cclocal.server.readiness import wait_until_ready
from cclocal.server.registry import new_log
from cclocal.server.request import ServerStart, Turn
from cclocal.server.start import Server, exec_agent, listen, new_binding, start_server
from cclocal.session.sandbox import on_fewer, sandbox_of, say_level, server_in_sandbox
from cclocal.session.servers import ENDPOINT, check_port, is_taken
from cclocal.settings import Settings
from cclocal.ui.console import WaitLine, busy, can_ask, confirm, download_bar, say
from cclocal.wires import WIRES

#: A free port may be taken between looking and listening; then another one is tried, this many times.
PORT_TRIES = 3


def start(plan: Plan, env: Env, limit: int | None, key: str = "", tries: int = PORT_TRIES) -> Server:
    """Start the planned server, and return when it has shown that it answers. `limit`: keeps a Mac's limit raised.

    key: of the session; empty = a random one.
    """
    # taken at this moment by another program, although it was free when the start began
    check_port(plan.port, env)
    with listen(plan.port) as listener:
        binding = new_binding(env, listener.getsockname()[1], unix_socket=plan.engine.unix_socket)
        binding = replace(binding, key=key or binding.key)
        try:
            return _start(plan, binding, listener, env, limit)
        except (ServerDiedError, PortError):
            owns_port = plan.readiness(binding).owns_socket and not binding.socket
            if not owns_port or tries == 1 or not is_taken(int(binding.server_port)):
                raise
    return start(plan, env, limit, key, tries - 1)


def _start(plan: Plan, binding: Binding, listener: socket.socket, env: Env, limit: int | None) -> Server:
    agent, endpoint = AGENTS[plan.agent], plan.agent_endpoint(binding)
    command, files = server_in_sandbox(plan, binding, env)
    files = {**files, **plan.agent_command(binding)[1]}
    if plan.settings.server:
        files[ENDPOINT] = _endpoint_file(plan, endpoint)
    make_folder(env.folders.sessions)
    log, pattern = new_log(env, binding.session_id), conversations(agent, plan.session)
    # captures what the agent sends first while the model loads
    cache = PromptCache(plan, plan.capture, env) if plan.capture else None
    with contextlib.ExitStack() as undo:
        if cache:
            undo.callback(cache.close)
            cache.check_roles()
        server = start_server(
            ServerStart(
                command=command,
                files=files,
                stop=BACKENDS[plan.variant.backend].STOP,
                about={
                    "model": plan.word,
                    "port": int(binding.port),
                    "server_url": binding.server_url,
                    "backend": plan.variant.backend,
                    "agent": plan.agent,
                    "cwd": "" if plan.settings.server else str(plan.session.cwd),
                    "log": str(log),
                    "files": [
                        path
                        for one in (plan, *plan.others)
                        for path in (one.request.model_file, one.request.mmproj_file)
                        if path
                    ],
                },
                less_memory=server_in_sandbox(plan.with_less_memory(), binding, env)[0],
                turns=_turns(plan, binding, env),
                workers=plan.engine.workers,
                fewer=on_fewer(plan, binding, env),
                in_sandbox=plan.engine.sandbox is not None,
                relay=plan.relay(binding),
                looks_at=() if plan.settings.server else plan.session.folders,
                level="" if plan.settings.server else plan.session.level,
                receipt=plan.settings.receipt,
                advice=f"  Try:  {again(plan.word, plan.settings)} --continue\n  Log:  {log}\n",
                terminal_reset=agent.TERMINAL_RESET if plan.is_interactive else "",
                conversations=pattern,
                farewell=farewell(again(plan.word, plan.settings), agent, env) if plan.is_interactive else "",
                held_open=limit,
                keeps=keeps(plan, log, pattern, env),
                requests=requests(plan, pattern, env),
            ),
            binding,
            listener,
            env,
        )
        undo.callback(server.end)
        try:
            _until_ready(plan, server, cache)
        except ServerDiedError as error:
            if not server.why:
                _refuse_damaged(plan, env, error)
            raise
        learn(plan, log, env)
        with contextlib.suppress(FolderError):
            remember(plan.variant.source or plan.model.id, plan.variant.path, env)
            write_private(env.folders.last_model, json.dumps({"model": plan.word}))
        server.order(ready=True, restore=cache.restore if cache else [], kept=cache.kept if cache else {})
        undo.pop_all()
    return server


def _turns(plan: Plan, binding: Binding, env: Env) -> dict[str, Turn]:
    """The models of a session with several, by their names in requests."""
    if not plan.others:
        return {}
    return {
        one.name: Turn(
            one.word,
            server_in_sandbox(one, binding, env)[0],
            server_in_sandbox(one.with_less_memory(), binding, env)[0],
        )
        for one in (plan, *plan.others)
    }


def again(word: str, settings: Settings) -> str:
    """The command that starts the same again. `word`: the model, or the port or the address of a server."""
    words = ["--url", word] if "://" in word else [word]
    words = ["--ssh", settings.ssh, *words] if settings.ssh else words
    words += ["--key-env", settings.key_env] if settings.key_env else []
    words += ["--ca", settings.ca] if settings.ca and "://" in word else []
    words += ["--agent", str(settings.agent)] if settings.sources.get("agent") in ("command line", "menu") else []
    return shlex.join(("cclocal", *words))


def conversations(agent: Agent, session: AgentSession) -> str:
    """The pattern of the files of an agent's conversations."""
    return f"{glob.escape(str(agent.config_dir(session).path))}/{agent.CONVERSATIONS}"


def farewell(command: str, agent: Agent, env: Env) -> str:
    """What is said at the end of a session on a terminal, with `{id}` for the conversation."""
    words = f"• On this model again:  {command} --resume {{id}}\n"
    if is_first("farewell", env):
        words += f"• Back to the cloud: type {agent.PROGRAM}. cclocal changed nothing of its configuration.\n"
    return words


def _refuse_damaged(plan: Plan, env: Env, died: ServerDiedError) -> None:
    """For a server that could not load its model. Raises ServerDiedError if a file of it is damaged on this disk."""
    if not plan.variant.repo:
        return
    with busy(f"{plan.model.name}: checking its files"):
        names = hub.remove_damaged(plan.variant.repo, plan.variant.hub_files, env.environ)
    if names:
        raise ServerDiedError(
            f"{', '.join(names)} was damaged on this disk (its checksum is wrong), and was removed.",
            cause=died.cause,
            hint="start it again: only what was removed is fetched again",
            log=died.log,
        ) from None


def _until_ready(plan: Plan, server: Server, cache: PromptCache | None) -> None:
    """Have the server load the model, wait until it answers, and fill it with the fixed part of the prompt."""
    runtime = runtime_of(plan.variant.backend)
    endpoint = plan.endpoint(server.binding)
    started = StartedServer(plan.engine, plan.request, endpoint, plan.session.tools, server.log, server.check_alive)
    line = WaitLine(plan.model.name)
    with download_bar(plan.model.name) as bars:
        for note in runtime.prepare(started, bars):
            say(note, "yellow")
    with line.status:
        wait_until_ready(server, plan.readiness(server.binding), WIRES[AGENTS[plan.agent].WIRE], line)
        runtime.verify(started)
        note_of_cache = cache.fill(server, line) if cache else None
    if note_of_cache:
        say(note_of_cache, "dim")


def _endpoint_file(plan: Plan, endpoint: Endpoint) -> str:
    """What `cclocal attach` needs; a key does not belong on a command line."""
    record = {
        **asdict(endpoint),
        "context_tokens": plan.session.context_tokens,
        "out_tokens": plan.out_tokens,
        "tools": plan.session.tools,
        "lean": plan.session.lean,
        "passed": plan.session.passed,
        # with several slots the newest line is of any agent
        "log_reader": plan.session.log_reader if plan.variant.slots == 1 else "",
        "also": plan.session.also,
        "sees": plan.session.sees,
        "agent": plan.agent,
    }
    return json.dumps(record)


def lay_out_config(config: ConfigDir) -> None:
    """Lay out the agent's configuration folder, and say what of it an earlier session had added."""
    if aside := config_dir.prepare(config):
        where = f"{config.path}{config_dir.SET_ASIDE}"
        say(f"Moved out of the agent's configuration folder: {', '.join(aside)} (now in {where}).", "yellow")


def become(session: AgentSession, made: CommandAndFiles, server: Server, settings: Settings, facts: Facts) -> NoReturn:
    """Become the agent, in its sandbox if one is asked for. If that fails, the server is ended."""
    try:
        sandbox = sandbox_of(session, made, server.binding, settings, facts)
        say_level(session, sandbox, settings)
        say(f"Starting {choose_agent(settings).TITLE}…", "dim")
        exec_agent(made[0], facts.env.environ, server, keep_children=settings.keep_children, sandbox=sandbox)
    except CclocalError:
        server.end()
        raise


def say_if_unverified(agent: Agent, found: AgentFound | None, env: Env) -> None:
    """Say once per version that its profile was not verified with it."""
    if found is None or found.version in agent.VERIFIED:
        return
    if is_first(f"{agent.NAME} {found.version}", env):
        words = f"{agent.TITLE} {found.version} was not verified with cclocal ({agent.VERIFIED[-1]} was)"
        say(f"{words}: cclocal check shows whether it works.", "yellow")


def is_first(about: str, env: Env) -> bool:
    """Whether something was not said on this machine before. From now on it was."""
    path = env.folders.state / "said.json"
    said = read_table(path)
    if about in said:
        return False
    with contextlib.suppress(FolderError):
        write_private(path, json.dumps({**said, about: True}))
    return True


def confirm_after_failed_check(plan: Plan) -> None:
    """Ask before a model is started that failed its check. Raises UsageError where there is no terminal to ask on."""
    if plan.is_proven is not False or plan.settings.yes:
        return
    say(f"{plan.model.name} failed its check on this engine (cclocal check {plan.word}).", "yellow")
    if not can_ask():
        raise UsageError("A model that failed its check needs a confirmation to start.", hint="--yes, or another model")
    if not confirm("Start it anyway?", default=False):
        raise KeyboardInterrupt


#: What can be wrong with a path.
_OF_A_PATH = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.ENOTEMPTY, errno.EIO, errno.ESTALE),
)
_HINTS = {
    errno.EMFILE: "ulimit -n 4096, then start again",
    errno.ENFILE: "end other programs: the system has too many open files",
    errno.ENOMEM: "end other programs: the system has no memory left",
    errno.EAGAIN: "end other programs: the system has too many processes (ulimit -u)",
}


@contextlib.contextmanager
def os_errors_in_words(env: Env) -> Iterator[None]:
    """The system's errors during a start as ours: by what failed, not all as a folder's."""
    try:
        yield
    except OSError as error:
        why, file = error.strerror or str(error) or type(error).__name__, error.filename
        if error.errno in DISK_FULL:
            hint = "free some space there"
            raise DiskFullError(f"The disk is full: {file or env.folders.state}.", hint=hint) from None
        if file and error.errno in _OF_A_PATH:
            raise FolderError(f"{file} cannot be used: {why}.") from None
        raise CclocalError(f"The start failed: {why}.", hint=_HINTS.get(error.errno or 0)) from None
