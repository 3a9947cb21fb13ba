"""A session with the real Claude Code in which `/model` changes the model."""

from __future__ import annotations

import pexpect

from tests.film import Terminal
from tests.world import World, leave


def write_with_two(world: World, words: tuple[str, ...], other: str) -> None:
    """Have a file written with the first model, change to the other one, and have another file written with that."""
    world.terminal = (40, 120)
    with world.on_terminal(*words, "Create the file one.txt with content: first") as child:
        screen = Terminal(*world.terminal)
        child.logfile_read = screen
        screen.wait_for(child, "Done", 240)
        child.expect(pexpect.TIMEOUT, timeout=3)
        child.send(f"/model {other}")
        screen.wait_for(child, f"/model {other}")
        child.send("\r")
        screen.wait_for(child, "Switch model?")
        child.send("\r")
        screen.wait_for(child, f"Set model to {other}")
        child.expect(pexpect.TIMEOUT, timeout=2)
        child.send("Create the file two.txt with content: second")
        screen.wait_for(child, "Create the file two.txt")
        child.send("\r")
        screen.wait_for(child, "Write(two.txt)", 240)
        # what is below the prompt names the model that answers
        screen.wait_for(child, f"· {other}", 240)
        leave(child)
    assert (world.project / "one.txt").read_text() == "first"
    assert (world.project / "two.txt").read_text() == "second"
