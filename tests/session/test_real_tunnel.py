"""A server that is reached by ssh: the system's ssh, a real sshd on this machine, real llama.cpp and Claude Code."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cclocal import tiny
from cclocal.server.start import free_port
from tests.conftest import CLAUDES
from tests.engine import engine as bare_engine
from tests.world import World, alive, wait_for

SSHD = Path("/usr/sbin/sshd")
pytestmark = pytest.mark.skipif(
    not (SSHD.exists() and shutil.which("ssh") and os.getuid() == 0), reason="needs sshd (openssh-server), as root"
)


@dataclass
class Box:
    """Another machine, which is this one: its sshd takes one key, and its model server listens there only."""

    port: int
    url: str
    daemon: subprocess.Popen[bytes]
    known: Path

    @property
    def words(self) -> tuple[str, ...]:
        return ("--ssh", f"root@127.0.0.1:{self.port}", "--url", self.url, "--key-env", "K")

    def cut(self) -> None:
        """End the connection on the other machine's side, and take no other until sshd goes on."""
        self.daemon.send_signal(signal.SIGSTOP)
        for child in psutil.Process(self.daemon.pid).children(recursive=True):
            if child.name().startswith("sshd"):
                child.kill()

    def go_on(self) -> None:
        self.daemon.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self.go_on()
        for child in psutil.Process(self.daemon.pid).children(recursive=True):
            child.kill()
        self.daemon.kill()


@pytest.fixture
def box(world: World, tmp_path: Path) -> Iterator[Box]:
    world.real("claude", CLAUDES[0].path)
    keys, mine = tmp_path / "keys", world.home / ".ssh"
    keys.mkdir()
    mine.mkdir(mode=0o700)
    for file in (keys / "host", mine / "id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True)
    there = world.root / "there"
    there.mkdir()
    (keys / "authorized").write_text(f'environment="HOME={there}" {(mine / "id_ed25519.pub").read_text()}')
    port = free_port()
    known = mine / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {(keys / 'host.pub').read_text()}")
    # ssh goes by the home of the system's list of users, so its files are named
    config = mine / "config"
    config.write_text(f"IdentityFile {mine}/id_ed25519\nUserKnownHostsFile {known}\nStrictHostKeyChecking yes\n")
    (world.bin / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F "{config}" "$@"\n')
    (world.bin / "ssh").chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    options = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": keys / "host",
        "AuthorizedKeysFile": keys / "authorized",
        "PidFile": "none",
        "UsePAM": "no",
        "StrictModes": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        # for a home of its own there
        "PermitUserEnvironment": "yes",
    }
    (tmp_path / "sshd.conf").write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    model = tiny.build(tmp_path)
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(bare_engine(None, model, tmp_path, "--ctx-size", "32768"))
        command = [str(SSHD), "-D", "-e", "-f", str(tmp_path / "sshd.conf")]
        log = stack.enter_context((tmp_path / "sshd.log").open("wb"))
        daemon = stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
        found = Box(port, str(client.base_url).rstrip("/"), daemon, known)
        stack.callback(found.end)
        wait_for(lambda: b"listening" in (tmp_path / "sshd.log").read_bytes(), "sshd")
        login = [str(world.bin / "ssh"), "-o", "BatchMode=yes", "-p", str(port), "root@127.0.0.1", "true"]
        if subprocess.run(login, capture_output=True, check=False).returncode:
            # a locked account, or a container without what sshd needs
            pytest.skip(f"sshd takes nobody here: {(tmp_path / 'sshd.log').read_text().splitlines()[-1]}")
        yield found


def test_a_file_is_written_and_the_tunnel_ends_with_the_session(world: World, box: Box) -> None:
    asked = ("-p", "Create the file there.txt with content: from another machine")
    done = world.run(*box.words, "--", *asked, K="key")
    assert (world.project / "there.txt").read_text() == "from another machine", done.stderr
    assert f"on llama-server at {box.url} on root@127.0.0.1, with a context window of 32,768" in done.stderr
    told = json.loads(world.run("check", *box.words, "--json", K="key").stdout)
    assert told["works"], told


def test_what_is_wrong_is_said_in_sshs_own_words(world: World, box: Box) -> None:
    known = box.known.read_text()
    box.known.write_text("")
    unknown = world.run(*box.words, "--", "-p", "hi", K="key")
    assert unknown.returncode == 33
    assert "ssh did not connect to root@127.0.0.1." in unknown.stderr
    assert "Host key verification failed" in unknown.stderr
    assert "[keeper]" not in unknown.stderr
    box.known.write_text(known)
    (world.home / ".ssh/id_ed25519").unlink()
    refused = world.run(*box.words, "--", "-p", "hi", K="key")
    assert refused.returncode == 33
    assert "Permission denied" in refused.stderr
    for wrong in ("-oProxyCommand=x", "box;ls", ""):
        assert world.run(f"--ssh={wrong}", "--url", box.url).returncode == 2


def test_a_connection_that_is_cut_is_opened_again_and_the_session_goes_on(world: World, box: Box) -> None:
    world.fake_claude()
    session = world.start(*box.words, K="key")
    assert world.ask(limit_s=60).status_code == 200
    box.cut()
    with contextlib.ExitStack() as stack:
        # another machine that cannot be reached for a while
        stack.callback(box.go_on)
        wait_for(lambda: "is started again" in _log(world), "the end of the tunnel")
    assert world.ask(limit_s=60).status_code == 200
    pid = int(world.state()["server"])
    session.terminate()
    session.wait()
    wait_for(lambda: not alive(pid), "the end of the tunnel with the session")


def _log(world: World) -> str:
    return "".join(path.read_text() for path in world.sessions.glob("*/tunnel.log"))


@pytest.fixture
def far(world: World, box: Box) -> tuple[str, ...]:
    """The words for a server that cclocal starts there; where it is found by a login shell alone."""
    there = world.root / "there"
    (there / "bin").mkdir()
    kept = " ".join(f"{name}='{value}'" for name, value in world.env.items() if name.startswith("CCLOCAL_"))
    (there / "bin/cclocal").write_text(f'#!/bin/sh\nexec env {kept} {" ".join(world.command)} "$@"\n')
    (there / "bin/cclocal").chmod(0o755)
    (there / ".profile").write_text(f"PATH={there}/bin:$PATH\n")
    return "--ssh", f"root@127.0.0.1:{box.port}", "--server"


def _there(world: World) -> list[Path]:
    """The sessions on that machine."""
    return list((world.root / "there/.local/state/cclocal/sessions").glob("*/session.json"))


def test_a_server_is_started_there_and_ends_with_the_session(world: World, far: tuple[str, ...]) -> None:
    asked = ("-p", "Create the file there.txt with content: served over there")
    done = world.run(*far, "--tiny", "--ctx", "24k", "--", *asked)
    assert (world.project / "there.txt").read_text() == "served over there", done.stderr
    assert "with a context window of 24,576" in done.stderr
    wait_for(lambda: not _there(world), "the end of the server there", 20)
    failed = world.run(*far, "--tiny", "--ctx", "9m", "--", "-p", "hi")
    assert failed.returncode == 33
    assert "supports 131,072 tokens" in failed.stderr
    assert not _there(world)


def test_a_server_there_does_not_outlive_its_connection(world: World, box: Box, far: tuple[str, ...]) -> None:
    world.fake_claude()
    session = world.start(*far, "--tiny")
    assert world.ask(limit_s=60).status_code == 200
    assert len(_there(world)) == 1
    box.cut()
    wait_for(lambda: not _there(world), "the end of the server there", 20)
    box.go_on()
    # the request waits for the connection, and for the server that is started again
    assert world.ask(limit_s=60).status_code == 200
    os.kill(world.watched(), signal.SIGKILL)
    session.wait()
    world.wait_for_end()
    wait_for(lambda: not _there(world), "the end of the server there", 20)
