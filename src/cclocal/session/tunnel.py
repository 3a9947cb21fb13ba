"""The story of a session on a server that is reached by ssh: the keeper holds the tunnel as it would hold a server."""

from __future__ import annotations

import re
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from cclocal.command import BASE_NAMES, Binding, Command, Endpoint, has_room_for_socket
from cclocal.errors import CclocalError, NotReadyError, UsageError
from cclocal.facts import Facts
from cclocal.paths import Env, make_folder, write_private
from cclocal.programs import last_lines
from cclocal.server import tunnel
from cclocal.server.remote import check_url
from cclocal.server.start import Server, listen, new_binding, start_server
from cclocal.session.elsewhere import Opened, agent_of, find_session, key_of, session_on, start_of
from cclocal.session.serve import again, become
from cclocal.settings import Settings
from cclocal.turns import OURS
from cclocal.ui.console import busy

#: What llama-server listens on, if no address is given.
_USUAL = "http://127.0.0.1:8080"
#: USER@BOX with ssh's port, or a host of the user's ssh configuration.
_DESTINATION = re.compile(r"(?P<box>(?:[\w.-]+@)?[A-Za-z0-9][\w.-]*)(?::(?P<port>\d{1,5}))?", re.ASCII)
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
    key = key_of(settings, env)
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
        far = Endpoint(binding.server_url, key, settings.model or found["box"])
        start = start_of(before, agent, binding, far, to_go_on, settings, env, shown=where)
        start = replace(
            start,
            command=_command(program, found["box"], found["port"], address, binding),
            is_tunnel=True,
            stop=(("TERM", 2.0), ("KILL", 2.0)),
            about={**start.about, "log": binding.log},
            relay={**start.relay, "is_ours": True},
            advice=f"  Try:  {to_go_on} --continue\n",
        )
        server = start_server(start, binding, listener, env)
    try:
        _wait_for_tunnel(server, found["box"])
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


def _command(program: str, box: str, port: str | None, address: str, binding: Binding) -> Command:
    near = binding.socket or f"127.0.0.1:{binding.server_port}"
    ssh = [program, "-N", "-T", *(word for option in _OPTIONS for word in ("-o", option))]
    ssh += ["-L", f"{near}:{address.removeprefix('http://')}", *(("-p", port) if port else ()), box]
    mark = f"{binding.folder}/tunnel-was-there"
    held = (sys.executable, "-I", "-S", tunnel.__file__, near, mark, str(_AGAIN_LIMIT_S), *ssh)
    return Command(held, keep=_NAMES)


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
