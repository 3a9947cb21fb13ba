"""What a model server reaches in its sandbox: a real llama-server whose start tries things first."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from typing import Any

import psutil
import pytest

from tests.conftest import ENGINES, SANDBOXED, Engine
from tests.world import World, alive, wait_for

pytestmark = SANDBOXED

#: What is tried → the shell command that does it. Those of the first kind leave a file named planted; /tmp, in which
#: this world lies, is the sandbox's own, so whether they did is seen from outside.
WRITES = {
    "the home": 'echo x > "$HOME/planted"',
    "the project": 'echo x > "$PROJECT/planted"',
    "its session's folder": 'echo x > "$SESSION/planted"',
    "the folder of its program": 'echo x > "${0%/*}/planted"',
    "the model's folder": 'echo x > "${MODEL%/*}/planted"',
    "the folder of its socket": 'echo x > "$SESSION/io/planted"',
    "the kept prompts": 'echo x > "$PROMPTS/planted"',
}
REACHES = {
    "a file of the user's": 'cat "$HOME/secret"',
    "the project": 'cat "$PROJECT/secret"',
    "its session's facts": 'cat "$SESSION/session.json"',
    "a server of this machine": "bash -c 'exec 3<>/dev/tcp/127.0.0.1/$PORT'",
    "another process": 'kill -0 "$OTHER"',
    "the model": 'head -c 4 "$MODEL"',
}


def hostile(world: World, listener: socket.socket) -> None:
    """Make the engine try everything at its start, and write into its log what it reached."""
    words = "".join(f'({command}) >/dev/null 2>&1 && echo "reached: {name}"\n' for name, command in REACHES.items())
    words += "".join(f"({command}) 2>/dev/null\n" for command in WRITES.values())
    (world.bin / "llama-server").write_text(
        f"""#!/bin/sh
case " $* " in *" --model "*)
export PROJECT="{world.project}" PORT={listener.getsockname()[1]} OTHER={os.getpid()} ALL="$*"
while [ $# -gt 0 ]; do
  case $1 in --model) MODEL=$2;; --api-key-file) SESSION=${{2%/key}};; --slot-save-path) PROMPTS=$2;; esac
  shift
done
{words}
set -- $ALL
esac
exec "{ENGINES[-1].binary}" --threads 1 "$@"
"""
    )
    (world.bin / "llama-server").chmod(0o755)
    (world.home / "secret").write_text("s")
    (world.project / "secret").write_text("s")


def plan(world: World, *words: str) -> Any:
    return json.loads(world.run("--tiny", "--dry-run", "--json", *words).stdout)


@pytest.mark.wide
@pytest.mark.parametrize("level", ["strict", "off"])
def test_it_reads_the_model_and_reaches_nothing_else(world: World, level: str) -> None:
    world.fake_claude(exits=0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hostile(world, listener)
        done = world.run("--tiny", "--sandbox", level)
    assert done.returncode == 0, done.stderr
    reached = set(re.findall("reached: (.*)", world.log.read_text()))
    assert reached == ({"the model"} if level == "strict" else set(REACHES))
    world.wait_for_end()
    planted = {str(path.parent.relative_to(world.root)) for path in world.root.rglob("planted")}
    kept = {"home/.cache/cclocal/warm"}
    assert planted == (kept if level == "strict" else {*kept, "home", "project", "bin", "home/.cache/cclocal"})


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_the_plan_says_so_and_asks_once(world: World, engine: Engine) -> None:
    world.real("llama-server", engine.binary)
    world.fake_claude()
    for _ in range(2):
        assert "sandbox: no network; it reads its engine and the model" in world.run("--tiny", "--dry-run").stdout
    assert plan(world)["server"]["sandbox"] is True
    assert plan(world, "--sandbox", "off")["server"]["sandbox"] is False


@pytest.mark.wide
def test_an_engine_that_does_not_run_in_one_has_none(world: World) -> None:
    """Here because it needs a file of the home that its program does not name."""
    (world.home / "needed").touch()
    (world.bin / "llama-server").write_text(f'#!/bin/sh\n[ -e ~/needed ] && exec "{ENGINES[-1].binary}" "$@"\n')
    (world.bin / "llama-server").chmod(0o755)
    world.fake_claude(exits=0)
    assert plan(world)["server"]["sandbox"] is False
    assert world.run("--tiny", "--cold").returncode == 0


@pytest.mark.wide
def test_how_it_was_killed_is_told_as_without_one(world: World) -> None:
    world.real("llama-server", ENGINES[-1].binary)
    world.fake_claude()
    world.start("--tiny", "--cold")
    agent = world.watched()
    sandbox = psutil.Process(world.state()["server"])
    assert sandbox.name() == "bwrap"
    [engine] = [one.pid for one in sandbox.children(recursive=True) if one.name() == "llama-server"]
    os.kill(engine, signal.SIGKILL)
    wait_for(lambda: not alive(engine), "its end")
    wait_for(lambda: "is started again" in world.log.read_text(), "a line in the log")
    assert "The model server stopped (SIGKILL)" in world.log.read_text()
    wait_for(lambda: "answers again" in world.log.read_text(), "the next server")
    os.kill(agent, signal.SIGKILL)
