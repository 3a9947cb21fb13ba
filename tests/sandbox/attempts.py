"""What a hostile agent tries, and at which levels of --sandbox it gets there. docs/security.md has it as a table.

Each attempt is a line for sh, which a real agent runs in its folder, and a question to the machine whether it was done.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.world import World


@dataclass
class Stage:
    """What is the user's own beside the session: a world, a port, another world's socket; what listeners heard."""

    world: World
    port: int = 0
    run: str = "/run"
    heard: list[str] = field(default_factory=list)


Done = Callable[[Stage], bool]


@dataclass(frozen=True)
class Attempt:
    """One thing that is tried. `levels`: those at which it succeeds, as words: "off", "off bash", or none.

    One that would harm this machine if it were done is run at strict only (`is_harmful`).
    """

    about: str
    command: str
    is_done: Done
    levels: str = "off"
    is_harmful: bool = False


def _python(code: str) -> str:
    return f"python3 -c {shlex.quote(f'import os, socket; {code}')}"


def _mark(name: str) -> Done:
    """Done if the script could go on to make a file of that name in its own folder."""
    return lambda stage: (stage.world.project / name).exists()


def _made(path: str) -> Done:
    """Done if there is such a file, by a path from the world's root or from the machine's."""
    return lambda stage: Path(stage.world.root, path.replace("PORT", str(stage.port))).is_file()


def _heard(name: str) -> Done:
    return lambda stage: name in stage.heard


def _is(path: str, text: str) -> Done:
    """Done if a file of the world has this text in it."""
    return lambda stage: text in (stage.world.root / path).read_text()


def _in_git(name: str, text: str) -> Done:
    """Done if a file of the repository's own folder, also of one that was moved away, has this text in it."""

    def done(stage: Stage) -> bool:
        files = (file for file in stage.world.project.glob(f".git*/{name}") if file.is_file())
        return any(text in file.read_text() for file in files)

    return done


def _connect(host: str, port: str = "PORT") -> str:
    return _python(f"socket.create_connection(({host!r}, {port}), 3)")


_STATE = "~/.local/state/cclocal"
#: The pid that a session's state file gives to a party.
_PID_OF = "$(cat ~/.local/state/cclocal/sessions/*/session.json | sed -n 's/.*\"{}\": \\([0-9]*\\).*/\\1/p')"

#: by what they are about, as the table has them
ATTEMPTS: dict[str, tuple[Attempt, ...]] = {
    "Write": (
        Attempt("a file beside the folder", "echo x > ../evil", _made("evil")),
        Attempt("a file in the home", "echo x > ~/evil", _made("home/evil")),
        Attempt("through a symbolic link out of the folder", "ln -s .. out; echo x > out/evil2", _made("evil2")),
        Attempt("through /proc/self/root", 'echo x > "/proc/self/root$(dirname "$PWD")/evil3"', _made("evil3")),
        Attempt(
            "another file through a hard link",
            "ln ~/victim hard && echo x > hard",
            lambda stage: (stage.world.home / "victim").read_text() != "whole",
        ),
        Attempt("the shell's start file", "echo x >> ~/.bashrc", _made("home/.bashrc")),
        Attempt("a program into a folder of PATH", "echo x > ../bin/evil", _made("bin/evil")),
        Attempt("the user's settings of git", "git config --global core.pager evil", _is("home/.gitconfig", "evil")),
        Attempt(
            "a key that may log in here",
            "mkdir -p ~/.ssh; echo x > ~/.ssh/authorized_keys",
            _made("home/.ssh/authorized_keys"),
        ),
        Attempt("the user's /tmp", "echo x > /tmp/cclocal-evil-PORT", _made("/tmp/cclocal-evil-PORT")),
        Attempt("/dev/shm", "echo x > /dev/shm/cclocal-evil-PORT", _made("/dev/shm/cclocal-evil-PORT")),
        Attempt("/etc", "echo x > /etc/cclocal-evil-PORT", _made("/etc/cclocal-evil-PORT"), "", is_harmful=True),
        Attempt("/usr", "echo x > /usr/cclocal-evil-PORT", _made("/usr/cclocal-evil-PORT"), "", is_harmful=True),
        Attempt(
            "a setting of the kernel",
            "cat /proc/sys/kernel/core_pattern > p; cat p > /proc/sys/kernel/core_pattern && touch kernel",
            _mark("kernel"),
            "",
            is_harmful=True,
        ),
    ),
    "Leave something for a later program": (
        Attempt("a hook of git", "echo x > .git/hooks/pre-commit", _in_git("hooks/pre-commit", "x")),
        Attempt("a program in git's settings", "git config core.fsmonitor evil", _in_git("config", "evil")),
        Attempt(
            "another .git in its place",
            "mv .git .git2 && mkdir .git && touch moved; rmdir .git; mv .git2 .git",
            _mark("moved"),
        ),
        Attempt(
            "settings of Claude Code",
            "mkdir -p .claude; echo '{}' > .claude/settings.local.json",
            _made("project/.claude/settings.local.json"),
        ),
        Attempt(
            "settings of Codex",
            "mkdir -p .codex; echo > .codex/config.toml",
            _made("project/.codex/config.toml"),
            "off bash",
        ),
        Attempt(
            "an extension of pi",
            "mkdir -p .pi; echo > .pi/settings.json",
            _made("project/.pi/settings.json"),
            "off bash",
        ),
        Attempt("MCP servers", "echo '{}' > .mcp.json", _made("project/.mcp.json")),
        Attempt("instructions", "echo obey > CLAUDE.md", _made("project/CLAUDE.md"), "off bash"),
        Attempt("instructions of other agents", "echo obey > AGENTS.md", _made("project/AGENTS.md"), "off bash"),
        Attempt(
            "cclocal's settings, which name a program that it starts",
            "mkdir -p ~/.config/cclocal; echo '# evil' > ~/.config/cclocal/config.toml",
            _made("home/.config/cclocal/config.toml"),
        ),
        Attempt(
            "a kept prompt, which the server reads",
            "mkdir -p ~/.cache/cclocal/prompts; echo x > ~/.cache/cclocal/prompts/evil",
            _made("home/.cache/cclocal/prompts/evil"),
        ),
        Attempt(
            "a hook in the agent's own folder, for the next session",
            'mkdir -p "$CLAUDE_CONFIG_DIR/hooks"; echo x > "$CLAUDE_CONFIG_DIR/hooks/evil"',
            _made("home/.local/share/cclocal/claude/hooks/evil"),
            "",
        ),
        Attempt(
            "a skill in it",
            'mkdir -p "$CLAUDE_CONFIG_DIR/skills/evil"; echo x > "$CLAUDE_CONFIG_DIR/skills/evil/SKILL.md"',
            _made("home/.local/share/cclocal/claude/skills/evil/SKILL.md"),
            "",
        ),
        Attempt(
            "settings in it",
            'echo \'{"env": {}}\' > "$CLAUDE_CONFIG_DIR/settings.json"',
            _made("home/.local/share/cclocal/claude/settings.json"),
            "",
        ),
    ),
    "Read": (
        Attempt("a key in the home", "cp ~/.ssh/id loot", _mark("loot"), "off bash"),
        Attempt("the log of the session's server", f"cp {_STATE}/server.log loot2", _mark("loot2"), "off bash"),
        Attempt("the session's state", f"cp {_STATE}/sessions/*/session.json loot3", _mark("loot3"), "off bash"),
        Attempt(
            "another process's environment", "cat /proc/PID/environ > loot4; test -s loot4 || rm loot4", _mark("loot4")
        ),
        Attempt(
            "the passwords of the machine", "cat /etc/shadow | grep -q . && touch shadow", _mark("shadow"), "", True
        ),
    ),
    "Reach": (
        Attempt("another port of this machine", _connect("127.0.0.1"), _heard("tcp")),
        Attempt("it by IPv6", _connect("::1"), _heard("tcp6")),
        Attempt("it by another address", _connect("127.0.0.2"), _heard("other address")),
        Attempt(
            "it by a datagram",
            _python("socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))"),
            _heard("udp"),
        ),
        Attempt(
            "a unix socket beside the folder",
            _python("socket.socket(socket.AF_UNIX).connect('../own.sock')"),
            _heard("unix"),
        ),
        Attempt(
            "a unix socket in /run, as Docker and D-Bus have",
            _python("socket.socket(socket.AF_UNIX).connect('RUN/cclocal-PORT.sock')"),
            _heard("run"),
        ),
        Attempt(
            "an abstract socket, as X11 has",
            _python(r"socket.socket(socket.AF_UNIX).connect('\0cclocal-test-PORT')"),
            _heard("abstract"),
        ),
        Attempt(
            "a name server",
            _python("socket.getaddrinfo('example.com', 443)") + " && touch resolved",
            _mark("resolved"),
            "",
            is_harmful=True,
        ),
    ),
    "Other processes": (
        Attempt("see one of the user's", "test -d /proc/PID && touch seen", _mark("seen")),
        Attempt("signal one of the user's", "kill -0 PID && touch signalled", _mark("signalled")),
        Attempt("signal the session's keeper", f"kill -0 {_PID_OF.format('keeper')} && touch keeper", _mark("keeper")),
        Attempt("signal its server", f"kill -0 {_PID_OF.format('server')} && touch server", _mark("server")),
        Attempt(
            "trace one",
            "python3 -c 'import ctypes, sys; sys.exit(ctypes.CDLL(None).ptrace(16, PID, 0, 0) != 0)' && touch traced",
            _mark("traced"),
            "",
            is_harmful=True,
        ),
    ),
    "Leave the sandbox": (
        Attempt("mount something", "mount -t tmpfs none . && touch mounted", _mark("mounted"), "", is_harmful=True),
        Attempt(
            "undo a mount in namespaces of its own",
            "unshare -Urm sh -c 'umount .claude && mkdir -p .claude && echo x > .claude/escaped'",
            _made("project/.claude/escaped"),
            "",
            is_harmful=True,
        ),
        Attempt(
            "make the disk writable again", "mount -o remount,rw / && touch remounted", _mark("remounted"), "", True
        ),
        Attempt(
            "rename the machine", "hostname evil-PORT", lambda stage: _hostname() == f"evil-{stage.port}", "", True
        ),
        Attempt("see a disk", "find /dev -type b | grep -q . && touch disk", _mark("disk"), "", is_harmful=True),
    ),
}


def _hostname() -> str:
    return Path("/proc/sys/kernel/hostname").read_text().strip()


def every(*, harmful: bool) -> Iterator[Attempt]:
    """The attempts, with those that would harm this machine or without."""
    for group in ATTEMPTS.values():
        yield from (attempt for attempt in group if harmful or not attempt.is_harmful)


def script(stage: Stage, pid: int, *, harmful: bool) -> str:
    """All attempts as one script; each runs in a shell of its own and may fail."""
    text = "".join(f"( {attempt.command} ) </dev/null\n" for attempt in every(harmful=harmful)) + "touch finished\n"
    return text.replace("PORT", str(stage.port)).replace("RUN", stage.run).replace("PID", str(pid))


def table() -> str:
    """The attempts as a Markdown table, for docs/security.md."""
    rows = ["| | strict | bash | off |", "|---|---|---|---|"]
    for group, attempts in ATTEMPTS.items():
        rows.append(f"| **{group}** | | | |")
        for one in attempts:
            levels = one.levels.split()
            other = ["not run" if one.is_harmful else "done" if level in levels else "no" for level in ("bash", "off")]
            rows.append(f"| {one.about} | {'done' if 'strict' in levels else 'no'} | {' | '.join(other)} |")
    return "\n".join(rows) + "\n"
