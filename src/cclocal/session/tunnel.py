"""The story of a session on a server that is reached by ssh: the keeper holds the tunnel as it would hold a server."""

from __future__ import annotations

import contextlib
import re
import secrets
import shlex
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from rich.markup import escape

from cclocal import http
from cclocal.command import BASE_NAMES, Binding, Command, Endpoint, has_room_for_socket
from cclocal.errors import CclocalError, NotReadyError, UsageError
from cclocal.facts import Facts
from cclocal.paths import Env, make_folder, write_private
from cclocal.programs import last_line, last_lines
from cclocal.server import tunnel
from cclocal.server.remote import check_url
from cclocal.server.start import Server, listen, new_binding, start_server
from cclocal.session.elsewhere import Opened, agent_of, find_session, key_of, session_on, start_of
from cclocal.session.launch import HELD
from cclocal.session.serve import again, become
from cclocal.settings import Settings, flags, options
from cclocal.turns import OURS, end_of, plain_lines
from cclocal.ui.console import busy

#: What llama-server listens on, if no address is given.
_USUAL = "http://127.0.0.1:8080"
#: A server that is started there gets a port of these, which no well-known service uses.
_FAR_PORTS = range(20_000, 32_000)
#: USER@BOX with ssh's port, or a host of the user's ssh configuration.
_DESTINATION = re.compile(r"(?P<box>(?:[\w.-]+@)?[A-Za-z0-9][\w.-]*)(?::(?P<port>\d{1,5}))?", re.ASCII)
_TAIL_BYTES = 16_384
#: Seconds for the first connection, and in which one that was cut is tried again.
_FIRST_LIMIT_S, _AGAIN_LIMIT_S = 60.0, 600
#: BatchMode: the keeper has no terminal on which a question could be answered. A dead connection is noticed after 15 s.
#: A connection shared with the user's other sessions (ControlMaster) would end the tunnel with one of them.
_OPTIONS = (
    *("BatchMode=yes", "ExitOnForwardFailure=yes", "ServerAliveInterval=5", "ServerAliveCountMax=3"),
    *("StreamLocalBindUnlink=yes", "ControlMaster=no", "ControlPath=none"),
)
#: What ssh reads of the user's environment.
_NAMES = BASE_NAMES | {"SSH_AUTH_SOCK", "LD_LIBRARY_PATH"}


def attach_by_ssh(settings: Settings, env: Env) -> NoReturn:
    """Become the agent on a server on another machine. Raises what `open_by_ssh` raises."""
    opened, facts = open_by_ssh(settings, env)
    become(opened.session, opened.made, opened.server, opened.settings, facts)


def open_by_ssh(settings: Settings, env: Env) -> tuple[Opened, Facts]:
    """(a session on a server on another machine, at the address `settings.url` there; what was seen here).

    Raises UsageError for a wrong destination, address or key, NotReadyError if ssh or the server does not answer.
    """
    found = _DESTINATION.fullmatch(settings.ssh or "")
    if not found:
        raise UsageError(
            f"“{settings.ssh}” is no destination for ssh.", hint="--ssh me@gpu-box, or --ssh me@gpu-box:2222"
        )
    program = shutil.which("ssh", path=env.environ.get("PATH"))
    if not program:
        raise UsageError("--ssh needs ssh, which was not found on PATH.")
    # ssh encrypts it
    address = check_url(settings.url or _USUAL, insecure=True)
    if not address.startswith("http:"):
        raise UsageError("--ssh encrypts by itself: give the server's http:// address on that machine with --url.")
    if settings.insecure_http or settings.sources.get("ca") == "command line":
        raise UsageError("--ssh encrypts by itself, so --ca and --insecure-http do nothing.")
    key, far_words = key_of(settings, env), server_words(settings)
    if far_words:
        if settings.url or key:
            raise UsageError("--server starts a server there: --url and --key-env are for one that runs already.")
        # that machine chooses the model and its window, and this one takes what it reports
        far_words += ("--port", str(secrets.choice(_FAR_PORTS)))
        address = f"http://127.0.0.1:{far_words[-1]}"
        settings = replace(settings, server=False, model=None, ctx=None)
    agent, settings, facts = agent_of(settings, env)
    make_folder(env.folders.sessions)
    where = f"{address} on {found['box']}"
    with listen(None) as listener:
        on_socket = has_room_for_socket(str(env.folders.sessions))
        binding = new_binding(env, listener.getsockname()[1], unix_socket=on_socket)
        binding = replace(binding, log=str(make_folder(Path(binding.folder)) / "tunnel.log"))
        # which window the server has is known once the tunnel is there
        before = session_on(where, settings.ctx or 1 << 20, agent, settings, facts)
        to_go_on = again(settings.url or address, settings)
        if far_words:
            to_go_on, key = shlex.join(("cclocal", "--ssh", str(settings.ssh), *far_words[:-2])), binding.server_key
        far = Endpoint(binding.server_url, key, settings.model or found["box"])
        start = start_of(before, agent, binding, far, to_go_on, settings, env, shown=where)
        start = replace(
            start,
            command=_command(program, found["box"], found["port"], address, binding, far_words),
            files={"far-key": f"{key}\n"} if far_words else {},
            is_tunnel=True,
            stop=(("TERM", 2.0), ("KILL", 2.0)),
            about={**start.about, "log": binding.log},
            relay={**start.relay, "is_ours": True},
            advice=f"  Try:  {to_go_on} --continue\n",
        )
        server = start_server(start, binding, listener, env)
    try:
        _wait_for_tunnel(server, found["box"])
        if far_words:
            _wait_for_server(server, found["box"], key)
        model, session, kind = find_session(binding.server_url, key, agent, settings, facts, shown=where)
        endpoint = Endpoint.of_relay(binding, model)
        made = agent.command(session, endpoint, binding)
        for name, content in made[1].items():
            write_private(Path(binding.folder) / name, content)
        server.order(ready=True)
    except (CclocalError, KeyboardInterrupt):
        server.end()
        raise
    return Opened(session, made, server, settings, endpoint, kind), facts


def server_words(settings: Settings) -> tuple[str, ...]:
    """The arguments with which cclocal on another machine starts the server; empty without --server."""
    if not settings.server:
        return ()
    words = ["--server"]
    for name, (_, option) in options().items():
        value = getattr(settings, name)
        is_for_it = option.scope in ("server", "window") or name in ("model", "mem_check", "cold")
        if not is_for_it or name in ("server", "port") or settings.sources.get(name) != "command line":
            continue
        names = flags(name)
        if isinstance(value, bool):
            words.append(f"--{names[0] if value else names[-1]}")
        else:
            given = value if isinstance(value, tuple) else (value,)
            words += [word for one in given for word in (f"--{names[0]}", str(one))]
    return tuple(words)


def _command(
    program: str, box: str, port: str | None, address: str, binding: Binding, far_words: tuple[str, ...]
) -> Command:
    near = binding.socket or f"127.0.0.1:{binding.server_port}"
    ssh = [program, *(() if far_words else ("-N",)), "-T", *(word for option in _OPTIONS for word in ("-o", option))]
    ssh += ["-L", f"{near}:{address.removeprefix('http://')}", *(("-p", port) if port else ()), box]
    if far_words:
        # a login shell, because only that has the user's own folders on its PATH
        started = shlex.join(("exec", "env", f"{HELD}=1", "cclocal", *far_words))
        ssh.append(f'exec "${{SHELL:-/bin/sh}}" -lc {shlex.quote(started)}')
    mark, key = f"{binding.folder}/tunnel-was-there", binding.file("far-key") if far_words else ""
    held = (sys.executable, "-I", "-S", tunnel.__file__, near, mark, str(_AGAIN_LIMIT_S), key, *ssh)
    return Command(held, keep=_NAMES)


def _wait_for_server(server: Server, box: str, key: str) -> None:
    """Return when the server there answers. Raises NotReadyError, with its own words, if it ends instead."""
    import httpx

    line = f"cclocal on {box} starts the server"
    with busy(line) as status, http.client(server.binding.server_url, key, limit_s=5.0) as client:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if client.get("/v1/models").status_code == 200:
                    return
            if server.poll(0.2) is not None:
                # ssh tells of each try to reach a server that is not there yet
                said = plain_lines(end_of(str(server.log), _TAIL_BYTES))
                cause = [line for line in said if not line.startswith((OURS, "channel "))][-3:]
                raise NotReadyError(
                    f"cclocal on {box} started no server.", cause=cause, hint=f"ssh {box}, and the same cclocal there"
                )
            status.update(escape(f"{line}: {last_line(server.log)}"))


def _wait_for_tunnel(server: Server, box: str) -> None:
    """Return when the tunnel is there. Raises NotReadyError, with ssh's own words, if it is not."""
    mark, deadline = Path(server.binding.folder, "tunnel-was-there"), time.monotonic() + _FIRST_LIMIT_S
    with busy(f"Connecting to {box}"):
        while not mark.exists():
            if server.poll(0.05) is not None or time.monotonic() > deadline:
                cause = [line for line in last_lines(server.log) if not line.startswith(OURS)]
                raise NotReadyError(
                    f"ssh did not connect to {box}.", cause=cause, hint=f"ssh {box}, which says what is missing"
                )
