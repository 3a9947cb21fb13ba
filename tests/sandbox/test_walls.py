"""The order of a sandbox's mounts, and its seccomp filter."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from cclocal.sandbox.walls import Sandbox, Walls, bubblewrap, no_typing

WALLS = Walls(
    cwd=Path("/home/ann/project"),
    opened=(Path("/home/ann/other"),),
    hidden=(Path("/home"), Path("/home/ann"), Path("/tmp")),
    hidden_files=(Path("/etc/shadow"),),
    readable=(Path("/home/ann/.nvm"), Path("/home/ann/.nvm/bin"), Path("/usr/bin")),
    writable=(Path("/home/ann/project/.git"), Path("/home/ann/project")),
    protected=(Path("/home/ann/project/.git/hooks"),),
    missing=(Path("/home/ann/project/.claude"),),
)


def test_what_hides_comes_before_what_is_shown_and_a_folder_before_what_is_in_it() -> None:
    words = bubblewrap("bwrap", WALLS, 7)
    mounts = [
        " ".join(words[at : at + 2]) for at, word in enumerate(words) if word in ("--tmpfs", "--bind", "--ro-bind")
    ]
    assert mounts[1:] == [
        # the home lies in a hidden folder already
        "--tmpfs /home",
        # a folder of the session on the disk
        "--bind /nonexistent",
        "--ro-bind /dev/null",
        "--bind /home/ann/project",
        "--ro-bind /home/ann/.nvm",
        "--bind /home/ann/project/.git",
        "--ro-bind /home/ann/project/.git/hooks",
        "--tmpfs /home/ann/project/.claude",
    ]
    assert words[-1] == "--"
    for name in ("user", "ipc", "pid", "net", "uts"):
        assert f"--unshare-{name}" in words
    assert "--new-session" not in words


def test_the_line_names_what_is_read_only() -> None:
    assert Sandbox("", WALLS, b"").in_words == (
        "sandbox: strict. Writes: ./ ../other · network: the model only · read-only: .claude .git/hooks"
    )


def run(program: bytes, number: int, architecture: int, argument: int) -> int:
    """What a filter answers to a system call: a small BPF machine."""
    steps = list(struct.iter_unpack("HBBI", program))
    loaded, at = 0, 0
    while True:
        operation, yes, no, value = steps[at]
        at += 1
        if operation == 0x20:
            loaded = {0: number, 4: architecture, 24: argument}[value]
        elif operation == 0x06:
            return int(value)
        else:
            at += yes if (loaded == value if operation == 0x15 else loaded >= value) else no


@pytest.mark.parametrize(
    ("machine", "architecture", "ioctl"), [("x86_64", 0xC000003E, 16), ("aarch64", 0xC00000B7, 29)]
)
def test_only_typing_into_a_terminal_is_refused(machine: str, architecture: int, ioctl: int) -> None:
    allowed, eperm, enosys = 0x7FFF0000, 0x00050001, 0x00050026
    program = no_typing(machine)
    assert program
    assert run(program, ioctl, architecture, 0x5412) == eperm
    assert run(program, ioctl, architecture, 0x541C) == eperm
    # TIOCGWINSZ, and write
    assert run(program, ioctl, architecture, 0x5413) == allowed
    assert run(program, 1, architecture, 0x5412) == allowed
    # 32-bit programs have other numbers
    assert run(program, 54, 0x40000003, 0x5412) == enosys
    if machine == "x86_64":
        assert run(program, 0x40000000 + 514, architecture, 0x5412) == enosys
    assert no_typing("riscv64") is None
