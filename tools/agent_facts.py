"""The facts of a Claude Code against those of a verified one: python tools/agent_facts.py CLAUDE VERIFIED_CLAUDE"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from pathlib import Path

from rich.console import Console

from cclocal.agents import AGENTS
from cclocal.discovery.look import look_around
from cclocal.paths import Env
from cclocal.planning.choose import agent_session
from cclocal.prompt_cache.capture import first_requests, sends_of
from cclocal.settings import Settings
from cclocal.ui.tables import plain_table
from cclocal.wires import WIRES

AGENT = AGENTS["claude"]


def facts_of(claude: Path, arguments: tuple[str, ...]) -> dict[str, str]:
    """What one version sends, from two folders, with these arguments."""
    wire = WIRES[AGENT.WIRE]
    with tempfile.TemporaryDirectory() as home:
        path = f"{claude.parent}{os.pathsep}{os.environ['PATH']}"
        env = Env.of({**os.environ, "HOME": home, "PATH": path})
        settings = Settings(agent_args=arguments)
        found = look_around(env, settings)
        session = agent_session(settings, found, 65536, 8192)
        capture = AGENT.capture(session, "model")
        assert capture
        requests = first_requests(AGENT.NAME, capture, env, threading.Event())
    version = found.agent.version if found.agent else "?"
    if len(requests) != 2:
        return {"version": version, "first request": "none"}
    sends, (system, tools, _) = sends_of(requests, wire), wire.parts(requests[0])
    return {
        "version": version,
        "system prompt": f"{sends.fixed_bytes:,} bytes",
        "tools": " ".join(sends.tools),
        "roles": " ".join(sends.roles),
        "system message in mid-conversation": str(sends.has_late_system),
        "the folder in the fixed part": str(sends.names_folder),
        "fixed part": str(hash((system, str(tools)))),
    }


def main() -> None:
    """Print both, in print mode and on a terminal."""
    console = Console()
    for arguments in (("-p",), ()):
        new, verified = (facts_of(Path(path), arguments) for path in sys.argv[1:3])
        table = plain_table("print mode" if arguments else "terminal", "new", "verified", "")
        for name in dict.fromkeys((*verified, *new)):
            one, other = new.get(name, ""), verified.get(name, "")
            if name == "fixed part":
                one, other = ("the same bytes", "") if one == other else ("other bytes", "")
            table.add_row(name, one, other, "" if one == other or not other else "differs")
        console.print(table)


if __name__ == "__main__":
    main()
