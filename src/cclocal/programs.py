"""Runs small programs such as `X --version` and macOS's own, caches their output, and reads the last lines of logs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cclocal.command import SERVER_NAMES, SERVER_PREFIXES, Command
from cclocal.paths import read_table, write_private
from cclocal.turns import end_of, plain_lines

#: The end of a log in which the cause of a crash is looked for.
_TAIL_BYTES = 8192
#: Answers that are kept; the oldest go first.
_KEPT = 20


def ask(
    argv: Sequence[str], environ: Mapping[str, str], limit_s: float = 20.0, **env: str
) -> subprocess.CompletedProcess[str]:
    """What a small program answers, run with a server's environment and `env`. Raises OSError or SubprocessError."""
    command = Command(tuple(argv), env, keep=frozenset(SERVER_NAMES), keep_prefixes=SERVER_PREFIXES)
    return subprocess.run(
        list(argv),
        env=command.environ(environ),
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        timeout=limit_s,
        check=False,
    )


def help_of(command: Sequence[str], environ: Mapping[str, str], limit_s: float = 20.0) -> tuple[str, list[str]]:
    """A program's help, and every flag that it names. Raises OSError with its last words if it does not run."""
    done = ask([*command, "--help"], environ, limit_s)
    flags = sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", done.stdout)))
    if done.returncode != 0 or not flags:
        raise OSError((done.stderr.strip() or "its --help says nothing").splitlines()[-1])
    return done.stdout, flags


def is_mac(environ: Mapping[str, str]) -> bool:
    """Whether this is a Mac, or a test that stands in for one."""
    return sys.platform == "darwin" or "CCLOCAL_TEST_MAC" in environ


def mac_tool(environ: Mapping[str, str], name: str) -> str:
    """A program of macOS by its full path, so that PATH cannot replace it."""
    folder = "/usr/sbin" if name == "sysctl" else "/usr/bin"
    return f"{environ.get('CCLOCAL_TEST_MAC') or folder}/{name}"


def ask_mac(environ: Mapping[str, str], name: str, *words: str) -> str:
    """What a program of macOS answers; empty if it fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = ask([mac_tool(environ, name), *words], environ, 5)
        return "" if done.returncode else done.stdout.strip()
    return ""


class Answers:
    """Answers of programs that take time to ask, kept as long as the program's file is the same."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known = read_table(path)
        self.is_changed = False

    def key(self, program: Path, *also: str) -> str:
        """Names a program's file by path, size and time of change, and the question by `also`."""
        stat = program.stat()
        return "|".join((os.path.realpath(program), str(stat.st_size), str(stat.st_mtime_ns), *also))

    def of(self, key: str, ask: Callable[[], Any]) -> Any:
        """The answer that is kept under a key, or else the one that `ask` gets, which is kept."""
        if key not in self.known:
            self.known[key], self.is_changed = ask(), True
        return self.known[key]

    def save(self) -> None:
        """Write what is new. Raises FolderError."""
        if self.is_changed:
            self.is_changed = False
            write_private(self.path, json.dumps(dict(list(self.known.items())[-_KEPT:])))


def last_lines(log: Path) -> tuple[str, ...]:
    """The last three lines of a log, or those that name the cause of a crash if there are any."""
    lines = plain_lines(end_of(str(log), _TAIL_BYTES))
    words = ("error", "exception", "failed", "abort", "cannot", "unable")
    causes = [line for line in lines[-12:] if any(word in line.lower() for word in words)]
    if causes:
        # the first complaint is nearest to the cause, the last to the end
        return tuple(dict.fromkeys((causes[0], causes[-1], lines[-1])))
    return tuple(lines[-3:])


def last_line(log: Path) -> str:
    """The last line of a log, or nothing."""
    return next(reversed(plain_lines(end_of(str(log), _TAIL_BYTES))), "")


def own_cores() -> int:
    """The physical cores that this process may run on, by its affinity."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(psutil.cpu_count(logical=False) or allowed, allowed)
