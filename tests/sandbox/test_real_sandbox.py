"""What an agent reaches at --sandbox strict: real agents run a script, because the tiny model is told to."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from cclocal import tiny
from cclocal.sandbox.look import find_sandbox
from tests.conftest import CACHE, CI, CLAUDES, ENGINES, OLDEST, OTHERS, SANDBOXED, in_a_namespace, ordinary_user, wide
from tests.sandbox import work
from tests.sandbox.attempts import Stage, every, script
from tests.world import World, alive, leave, wait_for

STRICT = ("--tiny", "--cold", "--sandbox", "strict")


pytestmark = SANDBOXED


@pytest.fixture
def sealed(world: World) -> World:
    """A real agent in a repository, beside a home with a secret."""
    world.real("llama-server", ENGINES[-1].binary)
    world.real("claude", CLAUDES[0].path)
    (world.home / ".ssh").mkdir()
    (world.home / ".ssh/id").write_text("the key")
    (world.home / ".gitconfig").write_text("[user]\n\tname = Ann\n\temail = ann@example.org\n")
    (world.home / "victim").write_text("whole")
    git(world, "init", "-q")
    return world


def git(world: World, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=world.project, env=world.env, capture_output=True, text=True, check=True)
    return done.stdout


def run_script(world: World, script: str, *words: str) -> str:
    """Have the agent run a script in its folder. Returns what cclocal said."""
    (world.project / "work.sh").write_text(script)
    done = world.run(*words, "--", "-p", "Run the command: sh work.sh")
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture
def stage(sealed: World) -> Iterator[Stage]:
    """Servers of the user's own beside the session."""
    tcp = socket.create_server(("127.0.0.1", 0))
    port = tcp.getsockname()[1]
    # where a program of the user's may have its socket
    run = Path("/run") if os.access("/run", os.W_OK) else sealed.root
    stage = Stage(sealed, port, str(run))
    listeners = {
        "tcp": tcp,
        "other address": socket.create_server(("127.0.0.2", port)),
        "udp": socket.socket(type=socket.SOCK_DGRAM),
        **{name: socket.socket(socket.AF_UNIX) for name in ("unix", "run", "abstract")},
    }
    if socket.has_ipv6:
        listeners["tcp6"] = socket.create_server(("::1", port), family=socket.AF_INET6)
    listeners["udp"].bind(("127.0.0.1", port))
    paths = {"unix": str(sealed.root / "own.sock"), "run": str(run / f"cclocal-{port}.sock")}
    for name, path in {**paths, "abstract": f"\0cclocal-test-{port}"}.items():
        listeners[name].bind(path)
        listeners[name].listen()
    for name, listener in listeners.items():
        threading.Thread(target=_listen, args=(name, listener, stage.heard), daemon=True).start()
    yield stage
    for listener in listeners.values():
        listener.close()
    for path in (*paths.values(), f"/tmp/cclocal-evil-{port}", f"/dev/shm/cclocal-evil-{port}"):
        Path(path).unlink(missing_ok=True)


def _listen(name: str, listener: socket.socket, heard: list[str]) -> None:
    while True:
        try:
            if listener.type == socket.SOCK_DGRAM:
                listener.recv(10)
            else:
                listener.accept()[0].close()
        except OSError:
            return
        heard.append(name)


#: (level, agent, whether it is started by a user without capabilities)
RUNS = [
    ("strict", "claude", False),
    wide("strict", "claude", True),
    wide("strict", "claude " + OLDEST, False),
    wide("strict", "codex", False),
    wide("bash", "claude", False),
    wide("off", "claude", False),
]


@pytest.mark.parametrize(("level", "agent", "is_ordinary"), RUNS)
def test_a_hostile_agent_gets_as_far_as_the_table_says(stage: Stage, level: str, agent: str, is_ordinary: bool) -> None:
    world, harmful = stage.world, level == "strict"
    words: tuple[str, ...] = ("--tiny", "--cold", "--sandbox", level)
    once: tuple[str, ...] = ("-p",)
    if level == "bash":
        bring_what_claude_needs(world)
    if agent == "codex":
        world.real("codex", OTHERS["codex"][0])
        words, once = (*words, "--agent", "codex"), OTHERS["codex"][1]
    elif OLDEST in agent:
        (world.bin / "claude").unlink()
        world.real("claude", CACHE / f"claude-code-{OLDEST}/bin/claude")
    (world.project / "work.sh").write_text(script(stage, os.getpid(), harmful=harmful))
    under = ordinary_user() if is_ordinary else ()
    done = world.run(*words, "--", *once, "Run the command: sh work.sh", under=under)
    assert done.returncode == 0, done.stderr
    assert (world.project / "finished").exists()
    # what was left in the agent's own folder would be used now
    assert world.run(*words, "--", *once, "Run the command: true", under=under).returncode == 0
    achieved = {attempt.about for attempt in every(harmful=harmful) if attempt.is_done(stage)}
    assert achieved == {attempt.about for attempt in every(harmful=harmful) if level in attempt.levels.split()}


def bring_what_claude_needs(world: World) -> None:
    """Claude Code's own sandbox needs bubblewrap and socat on PATH."""
    if not shutil.which("socat"):
        pytest.fail("socat is not here") if CI else pytest.skip("socat is not here")
    world.real("bwrap", Path(find_sandbox(dict(os.environ))))


def test_ordinary_work_goes_on(sealed: World) -> None:
    project = sealed.project
    git(sealed, "init", "-q", "../other")
    git(sealed, "-C", "../other", "commit", "-q", "--allow-empty", "-m", "none")
    git(sealed, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "../other", "sub")
    git(sealed, "commit", "-q", "-m", "with a submodule")
    # links into the hidden home and in the folder
    (project / "AGENTS.md").symlink_to(sealed.home / "victim")
    (project / "mine.md").write_text("be brief")
    (project / "CLAUDE.md").symlink_to("mine.md")
    for name in ("npm", "node"):
        if found := shutil.which(name):
            sealed.real(name, Path(found))
    said = run_script(sealed, work.script(sys.executable), *STRICT)
    assert "sandbox: strict. Writes: ./" in said
    worked = [int(number) for number in (project / "worked").read_text().split()]
    assert [name for n, name in enumerate(work.WORK) if n not in worked and name not in missing_tools()] == []
    refused = [int(number) for number in (project / "refused").read_text().split()]
    assert len(refused) == len(work.REFUSED)
    assert (project / "mine.md").read_text() == "be brief"
    # what was left in /tmp is told and kept
    [kept] = re.findall(r"What the agent wrote to /tmp is in (\S+):", said)
    assert Path(kept, "a").read_text() == "temporary\n"
    # the mount points are gone
    wait_for(lambda: not {".mcp.json", ".claude"} & {path.name for path in project.iterdir()}, "no mount point")
    # the server that was left running has ended with its session
    assert not [line for line in sealed.leftovers() if "http.server" in line]


def missing_tools() -> set[str]:
    """The work for which this machine lacks the tool; CI has all of them."""
    return (
        set() if CI else {name for name, tool in (("npm test", "npm"), ("a compiler", "cc")) if not shutil.which(tool)}
    )


def test_what_the_user_opens_is_open(sealed: World) -> None:
    for name in ("out", "in"):
        (sealed.home / name).mkdir()
        (sealed.home / name / "note").write_text("from the home")
    script = "cat ~/in/note > read; echo x >> ~/in/note; echo y > ~/out/made; echo z > CLAUDE.md; mkdir ~/out/.claude/x"
    words = ("--allow-read", "~/in", "--allow-write", "../home/out", "--allow-write", "CLAUDE.md")
    said = run_script(sealed, script, *STRICT, *words)
    assert "Writes: ./ ../home/out CLAUDE.md" in said
    assert (sealed.project / "read").read_text() == (sealed.home / "in/note").read_text() == "from the home"
    assert (sealed.home / "out/made").read_text() == "y\n"
    assert (sealed.project / "CLAUDE.md").read_text() == "z\n"
    # what later programs obey is read-only there too
    wait_for(lambda: not (sealed.home / "out/.claude").exists(), "the end of the mount points")


def test_what_cannot_be_opened_is_refused(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    for words, said in ((("--allow-write", "~"), "your whole home"), (("--allow-read", "gone"), "no such file")):
        done = world.run(*STRICT, *words)
        assert done.returncode == 2
        assert said in done.stderr
    for option in ("--allow-write", "--allow-read", "--protect", "--allow-net"):
        done = world.run("--tiny", "--sandbox", "off", option, ".")
        assert done.returncode == 2
        assert "--sandbox strict" in done.stderr
    done = world.run("--tiny", "--keep-children")
    assert done.returncode == 2
    assert "--sandbox off" in done.stderr


@pytest.mark.parametrize("name", ["pi", wide("codex")])
def test_other_agents_run_in_it_too(world: World, name: str) -> None:
    if name not in OTHERS:
        pytest.skip(f"{name} is not here")
    program, once, _ = OTHERS[name]
    world.real("llama-server", ENGINES[-1].binary)
    world.real(name, program)
    world.real("node", Path(shutil.which("node") or "node"))
    (world.project / "work.sh").write_text("echo x > ~/evil; echo x > ../evil; echo x > fine")
    done = world.run(*STRICT, "--agent", name, "--", *once, "Run the command: sh work.sh")
    assert done.returncode == 0, done.stderr
    assert (world.project / "fine").exists(), done.stdout + done.stderr
    assert not (world.home / "evil").exists()
    assert not (world.root / "evil").exists()


def test_an_agent_on_the_server_of_another_terminal_is_sandboxed_too(sealed: World) -> None:
    server = sealed.start("--server", "--tiny")
    wait_for(lambda: "cclocal attach" in (sealed.record / "out").read_text(), "the server")
    (sealed.project / "work.sh").write_text("echo x > ~/evil; echo x > fine")
    port = str(sealed.state()["port"])
    done = sealed.run("attach", port, "--sandbox", "strict", "--", "-p", "Run the command: sh work.sh")
    assert done.returncode == 0, done.stderr
    assert (sealed.project / "fine").exists(), done.stdout
    assert not (sealed.home / "evil").exists()
    server.send_signal(signal.SIGINT)
    server.wait(20)


def test_a_terminal_is_the_agents_own(sealed: World) -> None:
    sealed.terminal = (40, 120)
    with sealed.on_terminal(*STRICT) as child:
        child.expect("shift.*tab")
        # one Ctrl-C is the agent's to answer
        child.send("\x03")
        child.expect("gain")
        leave(child)
    sealed.assert_clean()


@pytest.mark.parametrize("party", ["watched", wide("relay"), wide("keeper")])
def test_nothing_is_left_whatever_is_killed(sealed: World, party: str) -> None:
    (sealed.project / "work.sh").write_text("touch running; sleep 100")
    child = sealed.start(*STRICT, "--", "-p", "Run the command: sh work.sh")
    wait_for((sealed.project / "running").exists, "the command")
    assert (sealed.project / "CLAUDE.md").is_dir()
    pid = sealed.state()[party]
    os.kill(pid, signal.SIGKILL)
    if party == "relay":
        # the next one has the sandbox's port too
        wait_for(lambda: sealed.state()["relay"] != pid, "the next relay")
        os.kill(sealed.state()["watched"], signal.SIGKILL)
    if party == "keeper":
        wait_for(lambda: not alive(sealed.state()["server"]), "the server's end")
        child.kill()
    child.wait()
    if party == "keeper":
        assert sealed.run("--list").returncode == 0
        sealed.run("--tiny", "--cold", "--sandbox", "off", "--", "--version")
    wait_for(lambda: not sealed.leftovers(), "the end of all processes")
    wait_for(lambda: not (sealed.project / "CLAUDE.md").exists(), "the end of the mount points")


def test_what_cannot_be_is_refused_before_a_model_is_loaded(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    done = world.run("--tiny", "--sandbox", "tight")
    assert done.returncode == 2
    assert "--sandbox strict | bash | off" in done.stderr
    # a working folder that holds the home cannot be given away
    done = world.run(*STRICT, HOME=str(world.project))
    assert done.returncode == 36, done.stderr
    assert "--sandbox off" in done.stderr
    assert not world.sessions.exists() or not list(world.sessions.iterdir())


NO_NAMESPACES = 'echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-all --inh-caps=-all "$@"'


def without_namespaces() -> tuple[str, ...]:
    """What runs a program as in a container without user namespaces."""
    return (*in_a_namespace("--user", "--map-root-user"), "bash", "-c", NO_NAMESPACES, "sh")


def test_where_it_cannot_be_made_it_is_refused_and_the_tiny_model_starts_all_the_same(world: World) -> None:
    world.fake_server()
    world.fake_claude(exits=0)
    world.env.pop("CCLOCAL_SANDBOX", None)
    under = without_namespaces()
    (world.project / "mine.gguf").write_bytes(tiny.gguf())
    for words in (STRICT, ("--model", "./mine.gguf")):
        done = world.run(*words, under=under)
        assert done.returncode == 36, done.stderr
        assert "The strict sandbox does not work here" in done.stderr
        assert "sudo sysctl -w user.max_user_namespaces=15000    or: --sandbox off" in done.stderr
    assert not world.sessions.exists() or not list(world.sessions.iterdir())
    done = world.run("--tiny", under=under)
    assert done.returncode == 0, done.stderr
    assert "The strict sandbox does not work here" in done.stderr
    assert "sandbox: off. Commands can read, write and reach whatever you can." in done.stderr


def test_on_a_terminal_it_is_asked_about_once(world: World) -> None:
    world.fake_server()
    world.fake_claude(exits=0)
    world.env.pop("CCLOCAL_SANDBOX", None)
    (world.project / "mine.gguf").write_bytes(tiny.gguf())
    under = without_namespaces()
    for answer, status in (("", 130), ("y", 0)):
        with world.on_terminal("--model", "./mine.gguf", under=under) as child:
            child.expect("sudo sysctl")
            child.expect("Go on without a sandbox this time?")
            child.sendline(answer)
            child.expect(pexpect.EOF)
            child.close()
            assert child.exitstatus == status


def test_a_sandboxed_program_cannot_type_into_the_terminal(tmp_path: Path) -> None:
    """TIOCSTI would run a command in the user's shell after the session."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import os, platform; from pathlib import Path\n"
        "from cclocal.sandbox.walls import Walls, bubblewrap, no_typing\n"
        "from cclocal.sandbox.look import find_sandbox\n"
        "fd = os.memfd_create('rules', 0); os.write(fd, no_typing(platform.machine())); os.lseek(fd, 0, 0)\n"
        "walls = Walls(Path(sys.argv[2]), (), (), (), (), (Path(sys.argv[2]),), (), ())\n"
        "argv = bubblewrap(find_sandbox(dict(os.environ)), walls, fd) if sys.argv[3] == 'strict' else ()\n"
        'test = \'import fcntl; fcntl.ioctl(0, 0x5412, b"#"); print("typed")\'\n'
        "argv = [*argv, sys.executable, '-c', test]\n"
        "os.execv(argv[0], argv)\n"
    )
    said = {}
    for level in ("strict", "off"):
        words = ["-c", code, str(Path(__file__).parents[2] / "src"), str(tmp_path), level]
        said[level] = str(pexpect.run(shlex.join([sys.executable, *words]), timeout=30))
    assert "Operation not permitted" in said["strict"]
    assert "typed" not in said["strict"]
