"""The raised limit of a Mac: counted by the kernel, put back whatever is killed. sysctl and sudo are stand-ins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import psutil
import pytest

from cclocal.paths import Env, Folders
from cclocal.server import wired_limit as wired
from cclocal.server.process import boot_id
from tests.world import World, wait_for

LIMIT = 24576


@pytest.fixture
def mac(world: World) -> Iterator[World]:
    world.mac(32, "15.5")
    world.fake_server(devices=["MTL0: Apple M1 Max (21845 MiB, 21845 MiB free)"])
    world.fake_claude()
    yield world
    wait_for(lambda: not holders(world), "the end of root's holder")


def holders(world: World) -> list[psutil.Process]:
    """Root's processes that wait for the last session to end."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(world.root) in " ".join(words) and "cat" in " ".join(words[:3]):
            found.append(process)
    return found


def session(world: World) -> subprocess.Popen[str]:
    """A session that raised the limit, or joined the one that did."""
    (world.record / "agent.json").unlink(missing_ok=True)
    child = world.start("--tiny", "--wired-limit", str(LIMIT))
    world.agent()
    return child


def end(world: World, child: subprocess.Popen[str]) -> None:
    """Kill the last session, and see that the limit goes back."""
    child.kill()
    child.wait()
    wait_for(lambda: world.wired_limit() == 0, "the old limit")


@pytest.mark.parametrize(
    "victim",
    ["agent", "keeper", pytest.param("server", marks=pytest.mark.wide), pytest.param("twin", marks=pytest.mark.wide)],
)
def test_the_old_limit_is_back_whatever_is_killed(mac: World, victim: str) -> None:
    child = session(mac)
    assert mac.wired_limit() == LIMIT
    state = mac.state()
    pid = child.pid if victim == "agent" else state[victim]
    os.kill(pid, signal.SIGKILL)
    if victim in ("server", "twin"):
        # the session goes on without it
        time.sleep(0.3)
        assert mac.wired_limit() == LIMIT
        child.kill()
    wait_for(lambda: mac.wired_limit() == 0, "the old limit")
    child.kill()
    child.wait()
    if victim in ("keeper", "twin"):
        # what a killed keeper leaves is cleaned up by the next start
        mac.run("--tiny", "--dry-run")
        mac.fake_claude(exits=0)
        mac.run("--tiny")


def test_the_last_of_several_sessions_puts_it_back(mac: World) -> None:
    first = session(mac)
    second = session(mac)
    assert (mac.record / "sudo").read_text().count("/bin/sh") == 1
    first.kill()
    first.wait()
    time.sleep(0.5)
    assert mac.wired_limit() == LIMIT
    end(mac, second)
    # and once more, from the beginning
    third = session(mac)
    assert mac.wired_limit() == LIMIT
    end(mac, third)


def test_a_limit_that_is_high_enough_is_left_alone(mac: World) -> None:
    (mac.root / "wired_limit").write_text("25600\n")
    child = session(mac)
    assert not (mac.record / "sudo").exists()
    child.kill()
    child.wait()
    assert mac.wired_limit() == 25600


def test_whoever_plans_on_a_raised_limit_holds_it(mac: World) -> None:
    first = session(mac)
    (mac.record / "agent.json").unlink()
    # no wish of its own, but a budget that the first one's raise made
    second = mac.start("--tiny")
    mac.agent()
    first.kill()
    first.wait()
    time.sleep(0.5)
    assert mac.wired_limit() == LIMIT
    end(mac, second)


def test_a_wish_below_the_systems_own_share_changes_nothing(mac: World) -> None:
    mac.fake_claude(exits=0)
    done = mac.run("--tiny", "--wired-limit", "16000")
    assert done.returncode == 0, done.stderr
    assert "21,845 MiB already" in done.stderr
    assert not (mac.record / "sudo").exists()
    assert mac.wired_limit() == 0


def test_only_programs_of_the_system_run_as_root(mac: World) -> None:
    for name in ("cat", "sleep"):
        (mac.bin / name).write_text(f'#!/bin/sh\n[ -n "$AS_ROOT" ] && touch {mac.record}/mine\nexec /bin/{name} "$@"\n')
        (mac.bin / name).chmod(0o755)
    child = session(mac)
    end(mac, child)
    assert not (mac.record / "mine").exists()


def test_interrupted_at_the_prompt_for_a_password(mac: World) -> None:
    sudo = mac.root / "mac/sudo"
    sudo.write_text(f"#!/bin/sh\ntouch {mac.record}/asked\nsleep 60\n")
    with mac.on_terminal("--tiny", "--wired-limit", str(LIMIT)) as child:
        wait_for((mac.record / "asked").exists, "sudo")
        child.sendintr()
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 130
    assert not (mac.record / "pids.json").exists()


def test_a_fifo_that_is_none_any_more_is_made_anew(mac: World) -> None:
    folders = _env(mac).folders
    folders.state.mkdir(parents=True)
    (folders.state / "wired.fifo").write_text("")
    child = session(mac)
    assert mac.wired_limit() == LIMIT
    end(mac, child)


def _env(world: World) -> Env:
    root = world.home
    return Env(world.env, Folders(root / "config", root / "data", root / "cache", world.sessions.parent))


def test_a_launcher_that_dies_before_it_holds_anything_leaves_no_raised_limit(mac: World) -> None:
    # the moment between root's answer and our hold, made visible: only the holder is started
    env = _env(mac)
    env.folders.state.mkdir(parents=True)
    fifo = env.folders.state / "wired.fifo"
    os.mkfifo(fifo)
    wired._start_holder(0, LIMIT, fifo, env, can_ask=False)
    assert mac.wired_limit() == LIMIT
    wait_for(lambda: mac.wired_limit() == 0, "the holder's own patience to end", 15)


@pytest.mark.wide
def test_sessions_that_come_and_go_never_leave_it_raised(mac: World) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from cclocal.server import wired_limit as wired\n"
        "from cclocal.paths import Env, Folders\n"
        "state, seconds = sys.argv[1:]\n"
        "env = Env(os.environ, Folders(*[Path(state)] * 4))\n"
        f"wired.raise_limit({LIMIT}, env, can_ask=False)\n"
        "print('held', flush=True); time.sleep(float(seconds))\n"
    )
    children = []
    for number in range(24):
        words = [sys.executable, "-c", code, str(mac.root / "state"), str(number % 5 / 20)]
        children.append(subprocess.Popen(words, env=mac.env, stdout=subprocess.PIPE, text=True))
        time.sleep(0.02 * (number % 4))
    for number, child in enumerate(children):
        assert child.stdout
        assert child.stdout.readline() == "held\n"
        if number % 3 == 0:
            child.kill()
        child.wait()
        child.stdout.close()
    wait_for(lambda: mac.wired_limit() == 0, "the old limit")


def test_a_crash_of_everything_is_noticed_at_the_next_start(mac: World) -> None:
    child = session(mac)
    for holder in holders(mac):
        for process in (holder.parent(), holder):
            # root's shell and its cat
            if process and process.pid != os.getpid() and process.name() in ("sh", "dash", "cat"):
                process.kill()
    child.kill()
    child.wait()
    assert mac.wired_limit() == LIMIT
    mac.fake_claude(exits=0)
    said = mac.run("--tiny").stderr
    assert "still raised" in said
    assert f"sudo {mac.root}/mac/sysctl iogpu.wired_limit_mb=0" in said
    # after a restart of the machine it is nobody's business any more
    record = next(Path(mac.home).rglob("wired.json"))
    record.write_text(record.read_text().replace('"boot": "', '"boot": "another'))
    assert "still raised" not in mac.run("--tiny").stderr
    assert not record.exists()
    # what is left raised is taken over by the next session that needs it, with the old value it began with
    record.write_text(f'{{"old": 0, "new": {LIMIT}, "boot": "{boot_id()}"}}')
    mac.fake_claude()
    heir = session(mac)
    end(mac, heir)
    (mac.root / "wired_limit").write_text("0\n")


def test_without_a_password_it_is_denied_in_words(world: World) -> None:
    world.mac(32, "15.5", denied=True)
    with pytest.raises(wired.DeniedError, match="refused"):
        wired.raise_limit(LIMIT, _env(world), can_ask=False)
    (world.root / "mac/sudo").unlink()
    with pytest.raises(wired.DeniedError, match="does not run"):
        wired.raise_limit(LIMIT, _env(world), can_ask=False)
    assert wired.join(_env(world)) == (None, None)
