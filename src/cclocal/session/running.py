"""`cclocal ps` and `cclocal stop`: the sessions that run at this moment, and ending a server among them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import psutil

from cclocal.agents import AGENTS
from cclocal.errors import UsageError
from cclocal.paths import Env
from cclocal.server.readiness import family
from cclocal.server.registry import SessionRecord, running
from cclocal.session.servers import is_server, serving
from cclocal.ui.console import busy, output, print_json, say
from cclocal.ui.tables import plain_table
from cclocal.units import duration, memory_size

#: Seconds that a server is given to end; a large model takes long to leave a GPU.
_END_S = 60.0


@dataclass(frozen=True, slots=True)
class Running:
    """A session. what: "server", or the name of its agent; memory_bytes: of its server's processes; age_s: seconds."""

    session: str
    port: str
    model: str
    what: str
    pid: int
    age_s: float
    memory_bytes: int
    folder: str


def every(env: Env) -> Iterator[Running]:
    """The sessions of this user on this machine, the oldest first."""
    found = []
    for record in running(env):
        with contextlib.suppress(psutil.Error):
            keeper = psutil.Process(int(record.facts["keeper"]))
            age_s = time.time() - keeper.create_time()
            what = "server" if is_server(record) else str(record.facts.get("agent", "?"))
            pid, folder = int(record.facts["watched"]), str(record.facts.get("cwd", ""))
            row = Running(record.folder.name, record.port, record.model, what, pid, age_s, _memory_of(record), folder)
            found.append(row)
    yield from sorted(found, key=lambda row: -row.age_s)


def _memory_of(record: SessionRecord) -> int:
    """The memory of a session's server and its children in bytes; 0 if it has none of its own or is gone."""
    total = 0
    with contextlib.suppress(psutil.Error, KeyError):
        for process in family(int(record.facts["server"])):
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def show(env: Env, *, as_json: bool) -> None:
    """What runs, for people or for scripts."""
    rows = list(every(env))
    if as_json:
        print_json([{**asdict(row), "age_s": round(row.age_s)} for row in rows])
        return
    if not rows:
        say("Nothing runs.")
        return
    headings = ("port", "model", "what", "pid", "since", "memory", "folder")
    table = plain_table(*headings, right=("port", "pid", "since", "memory"), no_wrap=headings[:-1])
    for row in rows:
        what = AGENTS[row.what].TITLE if row.what in AGENTS else row.what
        memory = memory_size(row.memory_bytes) if row.memory_bytes else "—"
        table.add_row(row.port, row.model, what, str(row.pid), duration(row.age_s), memory, _from_home(row.folder, env))
    output().print(table)
    if any(row.what == "server" for row in rows):
        say("\ncclocal PORT runs the agent on a server; cclocal stop PORT ends it.", "dim")


def _from_home(folder: str, env: Env) -> str:
    home = env.environ["HOME"]
    return f"~{folder.removeprefix(home)}" if folder == home or folder.startswith(f"{home}/") else folder


def stop(port: int | None, env: Env) -> None:
    """End the server of `--server` on a port, or the only one. Raises UsageError if it is not clear which, or none."""
    named = [record for record in serving(env) if port is None or record.port == str(port)]
    if port is not None and not named:
        if any(record.port == str(port) for record in running(env)):
            raise UsageError(f"Port {port} belongs to a session with an agent: it ends with the agent.")
        raise UsageError(f"No server of cclocal's listens on port {port}.", hint="cclocal ps")
    if not named:
        raise UsageError("No server runs that cclocal --server started.", hint="cclocal ps")
    if len(named) > 1:
        ports = " | ".join(record.port for record in named)
        raise UsageError(f"{len(named)} servers run.", hint=f"cclocal stop [{ports}]")
    [record] = named
    with busy(f"Ending the server of {record.model}"):
        if record.is_alive("watched"):
            # one that a script started with & ignores Ctrl-C
            os.kill(int(record.facts["watched"]), signal.SIGTERM)
        deadline = time.monotonic() + _END_S
        while record.is_running and time.monotonic() < deadline:
            time.sleep(0.05)
    if record.is_running:
        raise UsageError(f"The server of {record.model} has not ended yet.", hint="cclocal ps")
    say(f"Ended the server of {record.model} on port {record.port}.")
