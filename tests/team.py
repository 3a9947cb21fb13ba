"""Several agents on one server, each in a folder of its own."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any

from cclocal.backends.llama_server.log_reader import turns
from tests.world import World, wait_for


def ask(world: World, name: str, *words: str, question: str = "", agent: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start an agent in the folder of that name: `cclocal WORDS -- -p question AGENT`. It is to write NAME.txt."""
    folder = world.root / f"the project of {name}"
    folder.mkdir(exist_ok=True)
    asked = question or f"Create the file {name}.txt with content: written by {name}"
    return subprocess.Popen(
        [*world.command, *words, "--", "-p", asked, "--output-format", "json", *agent],
        cwd=folder,
        env=world.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(agent: subprocess.Popen[str]) -> dict[str, Any]:
    """What an agent reports of its session, at its end."""
    out, err = agent.communicate(timeout=600)
    assert agent.returncode == 0, err
    return dict(json.loads(out.splitlines()[-1]))


def told(agent: subprocess.Popen[str]) -> tuple[int, int]:
    """(tokens read, tokens kept) of an agent's session, at its end."""
    usage = result(agent)["usage"]
    return usage["input_tokens"], usage["cache_read_input_tokens"]


def written(world: World, name: str) -> str:
    return (world.root / f"the project of {name}" / f"{name}.txt").read_text().strip()


class Team:
    """A server of cclocal's with slots."""

    def __init__(self, world: World, slots: int, *words: str) -> None:
        self.world = world
        context = ("--slots", str(slots), "--ctx", str(32768 * slots))
        self.child = world.start("--server", *(words or ("--tiny",)), *context)
        self.port = str(world.state()["port"])
        wait_for(lambda: "cclocal attach" in (world.record / "out").read_text(), "the server")

    def asks(self, name: str, *agent: str, question: str = "") -> subprocess.Popen[str]:
        """Start an agent on it."""
        return ask(self.world, name, "attach", self.port, question=question, agent=agent)

    def evaluated_tokens(self) -> int:
        """Tokens of prompts that the server has evaluated since its start, for whatever reason."""
        return sum(turn["read_tokens"] for turn in turns(self.world.log.read_text(errors="replace"))[0])

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: Any) -> None:
        self.child.send_signal(signal.SIGTERM)
        self.child.wait()
