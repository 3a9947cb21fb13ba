"""A stand-in for Claude Code that shows what it was given and ends as it is told.

It writes what it got (argv, environment, pid) to RECORD/agent.json and then obeys lines on stdin, as a TUI would:
"quit N" exits with N, "segv" kills itself. With the switch `exits` it does so at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any


def main(switches: dict[str, Any]) -> None:
    if sys.argv[1:] == ["--version"]:
        print("2.1.329 (Claude Code)")
        return
    if os.environ.get("ANTHROPIC_AUTH_TOKEN") == "none":
        # a rehearsal: what is told below is of sessions
        return
    record = switches["record"]
    with open(f"{record}/agent.part", "w") as out:
        json.dump({"argv": sys.argv, "env": dict(os.environ), "pid": os.getpid(), "cwd": os.getcwd()}, out)
    os.replace(f"{record}/agent.part", f"{record}/agent.json")
    if "exits" in switches:
        code = switches["exits"]
        if code > 128:
            os.kill(os.getpid(), code - 128)
        sys.exit(code)
    if not sys.stdin.isatty():
        time.sleep(900)

    def say(text: str) -> None:
        # unbuffered, because a signal may come in the middle of it
        os.write(1, f"{text}\n".encode())

    signal.signal(signal.SIGINT, lambda *_: say("GOT-INT"))
    signal.signal(signal.SIGCONT, lambda *_: say("GOT-CONT"))
    signal.signal(signal.SIGWINCH, lambda *_: say("WINCH {}x{}".format(*os.get_terminal_size())))
    say(f"AGENT {os.getpid()}")
    while line := sys.stdin.readline():
        words = line.split()
        if words[:1] == ["quit"]:
            sys.exit(int(words[1]))
        if words[:1] == ["segv"]:
            os.kill(os.getpid(), signal.SIGSEGV)
        say(f"ECHO {line.strip()}")
