"""What a sandboxed agent may read and write, and the bubblewrap command line that enforces it. Pure."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cclocal.sandbox.nets import WEB

#: Names in the working folder and its repository that later programs obey: the agent may read them, not write them.
PROTECTED = (".claude", ".codex", ".pi", ".mcp.json", "CLAUDE.md", "AGENTS.md")
#: All names whose content other programs read or run: what changed there is told at the end of a session.
OBEYED = (*PROTECTED, ".git/config", ".git/hooks", ".vscode", ".envrc", ".npmrc", "package.json", "Makefile")
#: What is protected in a repository's own folder.
PROTECTED_IN_GIT = ("hooks", "config", "config.worktree")
#: Of these no empty folder is mounted where they are missing: git reports a folder in their place as an error.
EXISTING = ("config", "config.worktree")

#: Folders whose content is hidden: homes, other drives, sockets of other programs, temporary files.
HIDDEN = ("/home", "/root", "/run", "/tmp", "/var/tmp", "/mnt", "/media")  # noqa: S108 - to be hidden
#: Settings of the kernel in /proc, which root may change without any capability; bubblewrap leaves them writable.
OF_KERNEL = tuple(f"/proc/{name}" for name in ("sys", "sysrq-trigger", "fs", "acpi", "scsi"))
#: What a sandbox has of its own. Without the last words root would keep its capabilities, and could undo mounts.
NAMESPACES = (
    *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
    *("--die-with-parent", "--cap-drop", "ALL"),
)
_TMP = "/tmp"  # noqa: S108 - inside it is a folder of the session
#: Files that only root can read, which matters where cclocal runs as root.
HIDDEN_FILES = ("/etc/shadow", "/etc/gshadow", "/etc/sudoers")

#: What is shown of a home, read-only: toolchains and the caches that builds read. No file of these holds a credential.
OF_HOME = """.gitconfig .config/git/config .config/git/ignore .config/git/attributes .local/bin .local/lib
    .local/share/uv .local/share/pipx .local/pipx .local/share/mise .local/share/fnm .local/share/pnpm .nvm .fnm .volta
    .asdf .pyenv .rbenv .rvm .sdkman .rustup .cargo/bin .cargo/env .cargo/registry .cargo/git .deno/bin .bun/bin
    .juliaup .ghcup go/bin go/pkg .cache/pip .m2/repository
    .gradle/wrapper""".split()
#: Variables that name such folders.
OF_ENVIRON = """VIRTUAL_ENV CONDA_PREFIX MAMBA_ROOT_PREFIX PYENV_ROOT NVM_DIR FNM_DIR VOLTA_HOME PNPM_HOME JAVA_HOME
    JDK_HOME ANDROID_HOME ANDROID_SDK_ROOT SDKMAN_DIR GOROOT RUSTUP_HOME RBENV_ROOT ASDF_DIR ASDF_DATA_DIR
    MISE_DATA_DIR CUDA_HOME ROCM_PATH""".split()


@dataclass(frozen=True, slots=True)
class Walls:
    """What a sandbox shows. Paths are absolute and real.

    opened: what the user lets the agent write beside the working folder, or of its protected names. hidden: folders
    replaced by empty ones, which are gone with the session. hidden_files: files replaced by empty ones. readable: shown
    although they lie in a hidden folder. writable: the working folder, its repository's own folder, the agent's
    configuration, what was opened. protected: read-only although they lie in a writable one. missing: protected names
    that do not exist; an empty folder is mounted on each, so that nothing can be made there. tmp: a folder of the
    session on the disk, which is /tmp inside.
    """

    cwd: Path
    opened: tuple[Path, ...]
    hidden: tuple[Path, ...]
    hidden_files: tuple[Path, ...]
    readable: tuple[Path, ...]
    writable: tuple[Path, ...]
    protected: tuple[Path, ...]
    missing: tuple[Path, ...]
    tmp: Path = Path("/nonexistent")

    def hides(self, path: Path) -> bool:
        """Whether a path lies in a hidden folder."""
        return any(path.is_relative_to(folder) for folder in self.hidden)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A sandbox to start an agent in: bubblewrap's path, what it shows, and the seccomp filter.

    rules: the hosts that its proxy carries connections to (nets.py); without any there is no proxy. report: the file in
    which the proxy says what was reached and refused. is_seatbelt: a Mac's sandbox-exec instead of bubblewrap.
    """

    program: str
    walls: Walls
    filter: bytes
    rules: tuple[str, ...] = ()
    report: str = ""
    is_seatbelt: bool = False

    @property
    def in_words(self) -> str:
        """The line at the start of a session."""
        walls = self.walls
        inside = (path for path in (*walls.protected, *walls.missing) if path.is_relative_to(walls.cwd))
        names = sorted(str(path.relative_to(walls.cwd)) for path in inside)
        writes = " ".join(("./", *(os.path.relpath(path, walls.cwd) for path in walls.opened)))
        rules = ("every https server" if rule == WEB else rule for rule in self.rules)
        network = ", ".join(("the model", *rules)) if self.rules else "the model only"
        return f"sandbox: strict. Writes: {writes} · network: {network} · read-only: {' '.join(names)}"


def bubblewrap(program: str, walls: Walls, seccomp_fd: int) -> tuple[str, ...]:
    """The command line of bubblewrap up to the program that it runs.

    The terminal stays the agent's (no --new-session), so the filter keeps it from typing into the user's shell.
    """
    shown = [("--ro-bind", path) for path in _tops(walls.readable) if walls.hides(path)]
    shown += [("--bind", path) for path in walls.writable] + [("--ro-bind", path) for path in walls.protected]
    mounts: list[str] = []
    for path in _tops(walls.hidden):
        mounts += ["--bind", str(walls.tmp), _TMP] if str(path) == _TMP else ["--tmpfs", str(path)]
    for path in walls.hidden_files:
        mounts += ["--ro-bind", "/dev/null", str(path)]
    # a folder before what lies in it; of the same path the stricter one last
    for flag, path in sorted(dict.fromkeys(shown), key=lambda one: (len(one[1].parts), one[0] == "--ro-bind")):
        mounts += [flag, str(path), str(path)]
    for path in walls.missing:
        mounts += ["--tmpfs", str(path), "--remount-ro", str(path)]
    return (
        *(program, *NAMESPACES, "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"),
        *(word for name in OF_KERNEL for word in ("--ro-bind-try", name, name)),
        *mounts,
        *("--chdir", str(walls.cwd), "--seccomp", str(seccomp_fd), "--"),
    )


def _tops(folders: Iterable[Path]) -> list[Path]:
    """The folders that lie in no other of them."""
    found: list[Path] = []
    for folder in sorted(set(folders), key=lambda path: (len(path.parts), path)):
        if not any(folder.is_relative_to(top) for top in found):
            found.append(folder)
    return found


#: (audit architecture, number of ioctl, first number of another ABI of the same architecture), by machine.
#: Source: linux/audit.h, asm/unistd.h; 0x40000000 is x86-64's x32 bit.
_ARCHITECTURES = {"x86_64": (0xC000003E, 16, 0x40000000), "aarch64": (0xC00000B7, 29, 0xFFFFFFFF)}
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026


def no_typing(machine: str) -> bytes | None:
    """A seccomp filter, as BPF instructions, that keeps a program from typing into its terminal. None: unknown machine.

    ioctl with TIOCSTI or TIOCLINUX fails with EPERM. Programs of another ABI, whose numbers differ, fail with ENOSYS.
    """
    if machine not in _ARCHITECTURES:
        return None
    audit, ioctl, other_abi = _ARCHITECTURES[machine]
    # offsets of struct seccomp_data: nr 0, arch 4, low half of the second argument 24
    steps = (
        (_LOAD, 0, 0, 4),
        (_EQUAL, 0, 8, audit),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 6, 0, other_abi),
        (_EQUAL, 0, 3, ioctl),
        (_LOAD, 0, 0, 24),
        (_EQUAL, 2, 0, _TIOCSTI),
        (_EQUAL, 1, 0, _TIOCLINUX),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _EPERM),
        (_RETURN, 0, 0, _ENOSYS),
    )
    return b"".join(struct.pack("HBBI", *step) for step in steps)
