"""Where cclocal keeps its things, and the few ways it writes them."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cclocal.errors import FolderError

#: The name of our folder in each of the platform's.
_OURS = "cclocal"


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders of one user: configuration, what lasts, what can be made again, what belongs to sessions."""

    config: Path
    data: Path
    cache: Path
    state: Path

    @property
    def user_file(self) -> Path:
        """The user's own catalog entries and lasting defaults. Read, never written."""
        return self.config / "config.toml"

    @property
    def sessions(self) -> Path:
        """One folder per running session, made and removed by its keeper."""
        return self.state / "sessions"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    def log_of(self, session_id: str) -> Path:
        """Where a session's server writes."""
        return self.logs / f"server-{session_id}.log"

    @property
    def newest_log(self) -> Path:
        """A link to the newest server log."""
        return self.state / "server.log"

    @property
    def warm(self) -> Path:
        """What is kept of prompts from session to session."""
        return self.cache / "warm"

    @property
    def borrowed(self) -> Path:
        """What was put into an Ollama of somebody else's, and has to be taken away."""
        return self.state / "ollama"

    @property
    def claude_home(self) -> Path:
        """Claude Code's configuration folder for local sessions; it lasts, so that --resume works."""
        return self.data / "claude"


def folders(environ: Mapping[str, str]) -> Folders:
    """The platform's folders (XDG on Linux, ~/Library on a Mac). Raises FolderError without a home."""
    from platformdirs import PlatformDirs

    if not environ.get("HOME"):
        raise FolderError("HOME is not set, so there is no place for cclocal's files.", hint="export HOME=…")
    dirs = PlatformDirs("cclocal", appauthor=False)
    return Folders(
        config=dirs.user_config_path,
        data=dirs.user_data_path,
        cache=dirs.user_cache_path,
        state=dirs.user_state_path,
    )


def ollama_store(environ: Mapping[str, str]) -> Path:
    """Where Ollama keeps its models."""
    return Path(environ.get("OLLAMA_MODELS") or Path(environ["HOME"], ".ollama/models"))


def ollama_url(environ: Mapping[str, str]) -> str:
    """Where Ollama answers, by OLLAMA_HOST and Ollama's own rules (its envconfig/config.go): no port is 11434, or 80
    and 443 with a scheme, one that is no number counts as missing; all addresses mean this machine.
    """
    told = environ.get("OLLAMA_HOST", "").strip().strip("\"'").strip()
    scheme, mark, rest = told.partition("://")
    scheme, rest = (scheme, rest) if mark else ("http", told)
    usual = {"http": "80", "https": "443"}.get(scheme, "11434") if mark else "11434"
    place = rest.partition("/")[0]
    match = re.fullmatch(r"(\[[^\]]*\]|[^:]*):([^:]*)", place)
    host, port = (match[1], match[2]) if match else (place, usual)
    host = host.strip("[]") or "127.0.0.1"
    port = port if port.isdecimal() and int(port) <= 65535 else usual
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        host = {4: "127.0.0.1", 6: "::1"}[address.version] if address.is_unspecified else str(address)
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def is_loopback(url: str) -> bool:
    """Whether an address is of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def packaged(name: str) -> Path:
    """A file that ships with cclocal: inside the package, or at the top of a working copy (ADR 4).

    Raises FileNotFoundError if the installation is incomplete.
    """
    here = Path(__file__).resolve().parent
    for path in (here / "data" / name, here.parent.parent / name):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{name} is missing from this installation of cclocal")


def make_folder(path: Path) -> Path:
    """Make a folder and those missing above it, for the user alone (0700) whatever the umask.

    A folder of ours that others may enter is closed to them. Raises FolderError with the system's own words.
    """
    try:
        for level in reversed([level for level in (path, *path.parents) if not level.exists()]):
            level.mkdir(mode=0o700, exist_ok=True)
        for level in (path, *path.parents) if _OURS in path.parts else ():
            status = level.stat()
            if status.st_mode & 0o077 and status.st_uid == os.geteuid():
                level.chmod(0o700)
            if level.name == _OURS:
                break
    except OSError as error:
        raise FolderError(
            f"Cannot make the folder {path}: {error.strerror}.",
            hint="free some space there or point XDG_DATA_HOME, XDG_CACHE_HOME and XDG_STATE_HOME elsewhere",
        ) from error
    return path


def read_table(path: Path) -> dict[str, Any]:
    """The table in a JSON file of ours; empty if there is none or it is damaged: all of it can be made again."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_private(path: Path, content: str | bytes) -> None:
    """Write a file that only the user can read, whole or not at all."""
    make_folder(path.parent)
    data = content.encode() if isinstance(content, str) else content
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            out.write(data)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise FolderError(f"Cannot write {path}: {error.strerror}.") from error
