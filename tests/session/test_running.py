"""What runs (`cclocal ps`), and ending a server (`cclocal stop`)."""

from __future__ import annotations

import json
import os
import signal

from tests.world import World, alive, wait_for


def test_what_runs_is_listed_and_a_server_is_ended(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    assert "Nothing runs." in world.run("ps").stderr
    # as a script's & starts it: Ctrl-C is ignored there
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        server = world.start("--tiny", "--server", "--port", "8177")
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for(lambda: [row for row in json.loads(world.run("ps", "--json").stdout) if row["what"] == "server"], "a row")
    [row] = json.loads(world.run("ps", "--json").stdout)
    assert (row["model"], row["port"], row["pid"]) == ("tiny", "8177", server.pid)
    assert row["memory_bytes"] > 2**20
    shown = world.run("ps")
    assert "8177" in shown.stdout
    assert "cclocal stop PORT" in shown.stderr
    listed = world.run("attach")
    assert listed.returncode == 2
    assert "8177" in listed.stdout
    # a port without a server, then no port: the only server is meant
    assert "No server of cclocal's listens on port 8178" in world.run("stop", "8178").stderr
    done = world.run("stop")
    assert done.returncode == 0, done.stderr
    assert "Ended the server of tiny on port 8177." in done.stderr
    assert server.wait(10) == 0
    assert world.run("stop").returncode == 2


def test_of_two_servers_the_port_says_which(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    first, second = (world.start("--tiny", "--server", "--port", port) for port in ("8177", "8178"))
    wait_for(lambda: len(json.loads(world.run("ps", "--json").stdout)) == 2, "two rows")
    wait_for(lambda: len(list(world.sessions.glob("*/endpoint.json"))) == 2, "two servers")
    assert "2 servers run" in world.run("stop").stderr
    assert world.run("stop", "8178").returncode == 0
    assert second.wait(10) == 0
    assert alive(first.pid)
    os.kill(first.pid, signal.SIGINT)


def test_a_session_ends_with_its_agent_and_not_by_stop(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    launcher = world.start("--tiny")
    world.agent()
    [row] = json.loads(world.run("ps", "--json").stdout)
    assert row["what"] == "claude"
    assert row["folder"] == str(world.project)
    assert "Claude Code" in world.run("ps").stdout
    assert "ends with the agent" in world.run("stop", row["port"]).stderr
    assert alive(launcher.pid)
    os.kill(launcher.pid, signal.SIGKILL)
