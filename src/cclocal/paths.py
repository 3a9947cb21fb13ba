"""The folders of cclocal, the environment they are found in, and the few ways files are written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cclocal.errors import DiskFullError, FolderError

#: The name of our folder in each of the platform's.
_OURS = "cclocal"
#: What the system says if the disk, or the user's share of it, is full.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders of one user: configuration, lasting data, cache, state of sessions."""

    config: Path
    data: Path
    cache: Path
    state: Path

    @property
    def user_file(self) -> Path:
        """The user's own models and lasting defaults. Read, never written."""
        return self.config / "config.toml"

    @property
    def sessions(self) -> Path:
        """One folder per running session, made and removed by its keeper."""
        return self.state / "sessions"

    def log_of(self, session_id: str) -> Path:
        """The log of a session's server."""
        return self.state / "logs" / f"server-{session_id}.log"

    @property
    def newest_log(self) -> Path:
        """A link to the newest server log."""
        return self.state / "server.log"

    @property
    def last_model(self) -> Path:
        """The model that was started last."""
        return self.state / "last.json"

    @property
    def changed(self) -> Path:
        """What an agent changed of the files that other programs obey, as it was before; a folder per session."""
        return self.state / "changed"

    @property
    def restores(self) -> Path:
        """Which engines can use a restored KV cache, and of which kinds of memory."""
        return self.state / "restores.json"

    @property
    def saved_prompts(self) -> Path:
        """Saved KV cache states of prompts."""
        return self.cache / "warm"


@dataclass(frozen=True, slots=True)
class Env:
    """What surrounds one call of cclocal: the environment variables and the folders found by them."""

    environ: Mapping[str, str]
    folders: Folders

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Env:
        """Raises FolderError without a home."""
        return cls(environ, folders(environ))


def folders(environ: Mapping[str, str]) -> Folders:
    """The platform's folders: XDG's on Linux, those under ~/Library on macOS. Raises FolderError without a home.

    Source: the XDG base directory specification (a relative path counts as unset), and Apple's file system guide.
    """
    if not environ.get("HOME"):
        raise FolderError("HOME is not set, so there is no place for cclocal's files.", hint="export HOME=…")
    home = Path(environ["HOME"])
    usual = {"CONFIG": ".config", "DATA": ".local/share", "STATE": ".local/state", "CACHE": ".cache"}
    if sys.platform == "darwin":
        usual = {**dict.fromkeys(usual, "Library/Application Support"), "CACHE": "Library/Caches"}

    def found(kind: str) -> Path:
        named = environ.get(f"XDG_{kind}_HOME", "")
        return (Path(named) if os.path.isabs(named) else home / usual[kind]) / _OURS  # noqa: PTH117 - of a text

    return Folders(config=found("CONFIG"), data=found("DATA"), cache=found("CACHE"), state=found("STATE"))


def find_program(name: str, environ: Mapping[str, str], path: str | None = None) -> str | None:
    """A program on the caller's PATH (or in `path`), as it was found; None if there is none."""
    return shutil.which(name, path=path or environ.get("PATH", os.defpath))


def packaged(name: str) -> Path:
    """A file that ships with cclocal: inside the package, or at the top of a working copy (ADR 4).

    Raises FileNotFoundError if the installation is incomplete.
    """
    here = Path(__file__).resolve().parent
    for path in (here / "data" / name, here.parent.parent / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{name} is missing from this installation of cclocal")


def cannot_write(what: str, error: OSError, hint: str | None = None) -> FolderError:
    """A failed write as an error of ours: DiskFullError if the disk is full."""
    if error.errno in DISK_FULL:
        return DiskFullError(f"The disk is full. {what}: {error.strerror}.", hint="free some space there")
    return FolderError(f"{what}: {error.strerror}.", hint=hint)


def make_folder(path: Path) -> Path:
    """Make a folder and those missing above it, for the user alone: mode 0700 under any umask.

    A folder of cclocal's that others may enter is closed to them. Raises FolderError with the system's own words.
    """
    try:
        # the last fails if it is no folder
        for level in (*reversed([level for level in path.parents if not level.exists()]), path):
            level.mkdir(mode=0o700, exist_ok=True)
        for level in (path, *path.parents) if _OURS in path.parts else ():
            status = level.lstat()
            # what a link points at may be anything
            if status.st_mode & 0o077 and status.st_uid == os.geteuid() and not level.is_symlink():
                level.chmod(0o700)
            if level.name == _OURS:
                break
    except OSError as error:
        hint = "point XDG_DATA_HOME, XDG_CACHE_HOME and XDG_STATE_HOME elsewhere"
        raise cannot_write(f"Cannot make the folder {path}", error, hint) from error
    return path


def read_table(path: Path) -> dict[str, Any]:
    """The table in a JSON file; empty if there is none or it is damaged, because all of ours can be made again."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """The tables in such a table, by their names."""
    return {name: row for name, row in read_table(path).items() if isinstance(row, dict)}


def write_private(path: Path, content: str | bytes) -> None:
    """Write a file that only the user can read, whole or not at all. Raises FolderError."""
    make_folder(path.parent)
    data = content.encode() if isinstance(content, str) else content
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            out.write(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise cannot_write(f"Cannot write {path}", error) from error
