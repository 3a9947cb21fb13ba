"""A stand-in for Claude Code that shows what it was given and ends as it is told.

With the switch `sends_after_s` it sends a first request so many seconds after the start of a capture; with `leaves` it
leaves that command running in a session of its own.

It writes what it got (argv, environment, pid) to RECORD/agent.json and then obeys lines on stdin, as a TUI would:
"quit N" exits with N, "segv" kills itself. With the switch `exits` it does so at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any


def main(switches: dict[str, Any]) -> None:
    if sys.argv[1:] == ["--version"]:
        print("2.1.331 (Claude Code)")
        return
    if os.environ.get("ANTHROPIC_AUTH_TOKEN") == "none":
        # a capture of its first request: what is recorded below is about sessions
        if "sends_after_s" in switches:
            time.sleep(switches["sends_after_s"])
            send_first_request()
        return
    record = switches["record"]
    if "leaves" in switches:
        null = subprocess.DEVNULL
        subprocess.Popen(switches["leaves"], start_new_session=True, stdin=null, stdout=null, stderr=null)
    part = f"{record}/agent.{os.urandom(4).hex()}.part"
    with open(part, "w") as out:
        json.dump({"argv": sys.argv, "env": dict(os.environ), "pid": os.getpid(), "cwd": os.getcwd()}, out)
    os.replace(part, f"{record}/agent.json")
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


def send_first_request() -> None:
    """A message with tools, as an agent's first one is."""
    import http.client
    from urllib.parse import urlsplit

    parts = urlsplit(os.environ["ANTHROPIC_BASE_URL"])
    body = {"system": "You are an agent.", "tools": [{"name": "Bash"}], "messages": [{"role": "user", "content": "Hi"}]}
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    connection.request("POST", "/v1/messages", json.dumps(body), {"content-type": "application/json"})
    connection.getresponse().read()
