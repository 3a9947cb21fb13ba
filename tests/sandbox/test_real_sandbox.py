"""What an agent reaches at --sandbox strict: real agents run a script, because the tiny model is told to."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest

from tests.conftest import CACHE, CLAUDES, ENGINES, SANDBOXED, wide
from tests.world import World, alive, leave, wait_for

STRICT = ("--tiny", "--cold", "--sandbox", "strict")
OTHERS = {"codex": CACHE / "codex-0.169.0/node_modules/.bin/codex", "pi": CACHE / "pi-0.73.1/node_modules/.bin/pi"}


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


@dataclass
class Ears:
    """Servers of the user's own beside the session; what was said to them."""

    port: int
    heard: list[str]


@pytest.fixture
def ears(world: World) -> Iterator[Ears]:
    heard: list[str] = []
    path = world.root / "own.sock"
    tcp = socket.create_server(("127.0.0.1", 0))
    port = tcp.getsockname()[1]
    own, abstract, udp = (
        socket.socket(socket.AF_UNIX),
        socket.socket(socket.AF_UNIX),
        socket.socket(type=socket.SOCK_DGRAM),
    )
    own.bind(str(path))
    abstract.bind(f"\0cclocal-test-{port}")
    udp.bind(("127.0.0.1", port))
    for listener in (own, abstract):
        listener.listen()

    def listen(name: str, listener: socket.socket) -> None:
        while True:
            try:
                if listener is udp:
                    listener.recv(10)
                else:
                    listener.accept()[0].close()
            except OSError:
                return
            heard.append(name)

    named = {"tcp": tcp, "unix": own, "abstract": abstract, "udp": udp}
    for name, listener in named.items():
        threading.Thread(target=listen, args=(name, listener), daemon=True).start()
    yield Ears(port, heard)
    for listener in named.values():
        listener.close()


def _python(code: str) -> str:
    return f"python3 -c {shlex.quote(f'import socket; {code}')}"


#: What is tried → (the commands, what shows afterwards that it was done).
Attempt = tuple[str, Callable[[World, Ears], bool]]
ATTEMPTS: dict[str, Attempt] = {
    "write beside the folder": ("echo x > ../evil", lambda w, _: (w.root / "evil").exists()),
    "write in the home": ("echo x > ~/evil", lambda w, _: (w.home / "evil").exists()),
    "write through a symlink": ("ln -s .. out; echo x > out/evil2", lambda w, _: (w.root / "evil2").exists()),
    "change a file by a hard link": (
        "ln ~/victim hard && echo x > hard",
        lambda w, _: (w.home / "victim").read_text() != "whole",
    ),
    "append to the shell's start file": ("echo x >> ~/.bashrc", lambda w, _: (w.home / ".bashrc").exists()),
    "read a key in the home": ("cp ~/.ssh/id loot", lambda w, _: (w.project / "loot").exists()),
    "change cclocal's own settings": (
        "mkdir -p ~/.config/cclocal; echo x > ~/.config/cclocal/config.toml",
        lambda w, _: (w.home / ".config/cclocal/config.toml").exists(),
    ),
    "read the server's key": (
        "cp ~/.local/state/cclocal/sessions/*/key loot2",
        lambda w, _: (w.project / "loot2").exists(),
    ),
    "plant a hook of git": (
        "echo x > .git/hooks/pre-commit",
        lambda w, _: bool(list(w.project.glob(".git*/hooks/pre-commit"))),
    ),
    "plant a program in git's settings": (
        "git config core.fsmonitor evil",
        lambda w, _: "evil" in "".join(path.read_text() for path in w.project.glob(".git*/config")),
    ),
    "plant settings of the agent": (
        "mkdir -p .claude; echo '{}' > .claude/settings.local.json",
        lambda w, _: (w.project / ".claude/settings.local.json").exists(),
    ),
    "plant a server of tools": ("echo '{}' > .mcp.json", lambda w, _: (w.project / ".mcp.json").is_file()),
    "plant instructions": ("echo obey > CLAUDE.md", lambda w, _: (w.project / "CLAUDE.md").is_file()),
    "reach another port": (
        _python("socket.create_connection(('127.0.0.1', PORT))"),
        lambda _, ears: "tcp" in ears.heard,
    ),
    "send a datagram": (
        _python("socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))"),
        lambda _, ears: "udp" in ears.heard,
    ),
    "reach a unix socket": (
        _python("socket.socket(socket.AF_UNIX).connect('../own.sock')"),
        lambda _, ears: "unix" in ears.heard,
    ),
    "reach an abstract socket": (
        _python(r"socket.socket(socket.AF_UNIX).connect('\0cclocal-test-PORT')"),
        lambda _, ears: "abstract" in ears.heard,
    ),
    "see a process of the user's": ("test -d /proc/PID && touch seen", lambda w, _: (w.project / "seen").exists()),
    "read another process's environment": (
        "cat /proc/PID/environ > loot3; test -s loot3 || rm loot3",
        lambda w, _: (w.project / "loot3").exists(),
    ),
    "signal a process of the user's": (
        "kill -0 PID && touch signalled",
        lambda w, _: (w.project / "signalled").exists(),
    ),
    "put another .git in its place": ("mv .git .git2; mkdir .git", lambda w, _: (w.project / ".git2").exists()),
}


def attempts(world: World, ears: Ears, *words: str) -> set[str]:
    """The attempts that succeed at a level."""
    script = "".join(f"( {command} )\n" for command, _ in ATTEMPTS.values())
    run_script(world, script.replace("PORT", str(ears.port)).replace("PID", str(os.getpid())), *words)
    return {name for name, (_, is_done) in ATTEMPTS.items() if is_done(world, ears)}


def test_a_hostile_script_gets_nowhere(sealed: World, ears: Ears) -> None:
    assert attempts(sealed, ears, *STRICT) == set()


@pytest.mark.wide
def test_without_a_sandbox_the_same_script_does_all_of_it(sealed: World, ears: Ears) -> None:
    # a server on a socket of its own has no key in a file there
    assert attempts(sealed, ears, "--tiny", "--cold") >= ATTEMPTS.keys() - {"read the server's key"}


WORK = """
set -e
echo one > one.txt
git add one.txt
git commit -q -m one
git worktree add -q tree
(cd tree; echo two > two.txt; git add two.txt; git commit -q -m two)
printf 'all:\\n\\techo made > made\\n' > Makefile
make -s
echo temporary > /tmp/a; cat /tmp/a > from-tmp
cat AGENTS.md && exit 1
echo x >> CLAUDE.md && exit 1
python3 -m http.server 8123 --bind 127.0.0.1 >/dev/null 2>&1 &
for n in 1 2 3 4 5 6 7 8 9 10; do
  python3 -c "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8123/one.txt').read())" > got && break
  sleep .3
done 2>/dev/null
touch whole
"""


def test_ordinary_work_goes_on(sealed: World) -> None:
    # links into the hidden home and in the folder
    (sealed.project / "AGENTS.md").symlink_to(sealed.home / "victim")
    (sealed.project / "mine.md").write_text("be brief")
    (sealed.project / "CLAUDE.md").symlink_to("mine.md")
    said = run_script(sealed, WORK, *STRICT)
    assert "sandbox: strict. Writes: ./" in said
    project = sealed.project
    assert (project / "whole").exists(), [path.name for path in project.iterdir()]
    assert (project / "made").read_text() == "made\n"
    assert (project / "mine.md").read_text() == "be brief"
    assert (project / "from-tmp").read_text() == "temporary\n"
    assert "one" in (project / "got").read_text()
    assert git(sealed, "log", "--format=%an", "-1") == "Ann\n"
    assert git(sealed, "log", "--format=%s", "-1", "tree", "--") == "two\n"
    # the mount points are gone
    wait_for(lambda: not {".mcp.json", ".claude"} & {path.name for path in project.iterdir()}, "no mount point")
    # the server that was left running has ended with its session
    assert not [line for line in sealed.leftovers() if "http.server" in line]


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
    done = world.run("--tiny", "--allow-write", ".")
    assert done.returncode == 2
    assert "--sandbox strict" in done.stderr


@pytest.mark.parametrize("name", ["pi", wide("codex")])
def test_other_agents_run_in_it_too(world: World, name: str) -> None:
    if not OTHERS[name].exists():
        pytest.skip(f"{name} is not here")
    world.real("llama-server", ENGINES[-1].binary)
    world.real(name, OTHERS[name])
    world.real("node", Path(shutil.which("node") or "node"))
    words = ("exec",) if name == "codex" else ("-p",)
    (world.project / "work.sh").write_text("echo x > ~/evil; echo x > ../evil; echo x > fine")
    done = world.run(*STRICT, "--agent", name, "--", *words, "Run the command: sh work.sh")
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
    assert "--sandbox strict | off" in done.stderr
    # a working folder that holds the home cannot be given away
    done = world.run(*STRICT, HOME=str(world.project))
    assert done.returncode == 36, done.stderr
    assert "--sandbox off" in done.stderr
    # no user namespaces
    limit = 'echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-all --inh-caps=-all "$@"'
    done = world.run(*STRICT, under=("unshare", "-Ur", "bash", "-c", limit, "sh"))
    assert done.returncode == 36, done.stderr
    assert "does not work here" in done.stderr
    assert not world.sessions.exists() or not list(world.sessions.iterdir())


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
