"""A conversation of several turns with the real Claude Code, as programs hold it: JSON lines in, JSON lines out."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

from cclocal.agents.claude.command import window
from cclocal.agents.claude.spec import STREAMING
from tests.world import World

STREAM = ("-p", *STREAMING)
Event = dict[str, Any]


def spoken(said: str | list[dict[str, Any]]) -> str:
    """The line that says something: a text, or the blocks of a message."""
    content = [{"type": "text", "text": said}] if isinstance(said, str) else said
    message = {"type": "user", "message": {"role": "user", "content": content}}
    return json.dumps(message) + "\n"


class Talk:
    """One session, question by question."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.child = child
        self.events: list[Event] = []

    def say(self, said: str | list[dict[str, Any]]) -> list[Event]:
        """Everything that happened until the answer was whole."""
        assert self.child.stdin
        assert self.child.stdout
        self.child.stdin.write(spoken(said))
        self.child.stdin.flush()
        found: list[Event] = []
        for line in self.child.stdout:
            if line.startswith("{"):
                found.append(json.loads(line))
                if found[-1].get("type") == "result":
                    break
        self.events += found
        assert found, "the session ended"
        assert found[-1]["type"] == "result", found[-1]
        return found


@contextlib.contextmanager
def talk(world: World, *args: str, agent: tuple[str, ...] = (), exits: int = 0) -> Iterator[Talk]:
    """A session of cclocal's with these arguments, ended by the end of its input, with that status."""
    with (world.record / "err").open("w") as err:
        child = subprocess.Popen(
            [*world.command, *args, "--", *STREAM, *agent],
            env=world.env,
            cwd=world.project,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            start_new_session=True,
        )
    # a session that hangs is a failure, not a wait without end
    limit = threading.Timer(world.patience_s, child.kill)
    limit.start()
    try:
        yield Talk(child)
        assert child.stdin
        child.stdin.close()
        assert child.wait() == exits, (world.record / "err").read_text()
    finally:
        limit.cancel()
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            assert pipe
            pipe.close()


def prompt(events: list[Event]) -> int:
    """The tokens of the last prompt, as the agent was told of them."""
    told = [e["message"]["usage"] for e in events if e["type"] == "assistant"][-1]
    return int(told["input_tokens"]) + int(told.get("cache_read_input_tokens", 0))


def compactions(events: list[Event]) -> list[int]:
    """How many tokens the conversation had each time it was compacted."""
    return [int(e["compact_metadata"]["pre_tokens"]) for e in events if e.get("subtype") == "compact_boundary"]


def calls(events: list[Event]) -> list[dict[str, Any]]:
    """The tools that were called."""
    return [b for e in events if e["type"] == "assistant" for b in e["message"]["content"] if b["type"] == "tool_use"]


def results(events: list[Event]) -> str:
    """What tools answered, and what the agent itself added, as one text."""
    return json.dumps([e["message"]["content"] for e in events if e["type"] == "user"], ensure_ascii=False)


def compacts_at(context_tokens: int, out_tokens: int) -> int:
    """The length at which Claude Code compacts a conversation in a window of this size."""
    return window(context_tokens, out_tokens).compacts_at_tokens
