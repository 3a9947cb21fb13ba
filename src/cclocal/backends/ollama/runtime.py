"""Ollama on this machine: finding it, having it hold the model, its own store."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cclocal import http
from cclocal.backends.ollama import lease
from cclocal.backends.ollama.address import ollama_url
from cclocal.backends.ollama.hold import hold, served_tokens
from cclocal.backends.ollama.spec import NAME, PROGRAM, RUNNING
from cclocal.backends.runtime import Bars, Get, Runtime, StartedServer
from cclocal.errors import NotReadyError, UsageError
from cclocal.facts import Engine, Machine
from cclocal.http import is_loopback
from cclocal.models import tags
from cclocal.models.catalog import Catalog
from cclocal.models.storage import Stored, start_options
from cclocal.paths import Env, find_program
from cclocal.programs import Answers, ask
from cclocal.settings import Settings

if TYPE_CHECKING:
    import httpx

#: A daemon of this machine answers within this, in seconds.
_DAEMON_LIMIT_S = 1.0
_STALL_S = 240.0
_REMOVE_LIMIT_S = 30.0


def _running(url: str) -> Iterator[Engine]:
    """The daemon at an address of this machine, if it answers."""
    import httpx

    if not is_loopback(url) or not url.startswith("http://"):
        return
    with (
        contextlib.suppress(httpx.HTTPError, httpx.InvalidURL, ValueError, AttributeError),
        http.client(url, limit_s=_DAEMON_LIMIT_S) as client,
    ):
        version = client.get("/api/version").json().get("version")
        if isinstance(version, str):
            # isolated, as the keeper is: it must have locked its record before the model is made
            command = (sys.executable, "-I", "-S", str(lease.__file__))
            title = "already running"
            yield Engine(RUNNING, command, version, frozenset(), title=title, uses="everything", url=url)


@contextlib.contextmanager
def _client(server: StartedServer) -> Iterator[httpx.Client]:
    """A client of the session's Ollama, its failures in words."""
    import httpx

    try:
        with http.client(server.endpoint.url, read_s=_STALL_S) as client:
            yield client
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
        server.check_alive()
        cause = str(error) or type(error).__name__
        raise NotReadyError("Ollama did not answer as expected.", cause=[cause], log=str(server.log)) from None


class Ollama(Runtime):
    """Ollama: a daemon with its own model store, in which the model is loaded by a request."""

    def find(self, env: Env, settings: Settings, machine: Machine, answers: Answers) -> Iterator[Engine]:
        """An Ollama that runs already, then the ollama program on PATH."""
        found = find_program("ollama", env.environ)
        if found or settings.backend == NAME or "OLLAMA_HOST" in env.environ:
            yield from _running(ollama_url(env.environ))
        if not found:
            return
        path = Path(found).absolute()
        key = answers.key(path, "ollama")
        version = answers.get(key)
        if version is None:
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                # if no daemon answers, it warns and prints its own version
                done = ask([str(path), "--version"], {**env.environ, "OLLAMA_HOST": "127.0.0.1:1"})
                said = re.search(r"version is (\S+)", done.stdout + done.stderr)
                version = answers.put(key, said[1] if said else "unknown")
        yield Engine(PROGRAM, (str(path),), str(version), frozenset(), title="a separate daemon", uses="everything")

    def clean_up(self, env: Env) -> None:
        """Remove the derived models that killed sessions left in daemons that run."""
        lease.remove_leftovers(env.folders.state / "ollama")

    def prepare(self, server: StartedServer, bars: Bars) -> tuple[str, ...]:
        """Have the daemon hold the model: created from a file, pulled, or derived with the planned window.

        Raises ServerDiedError or NotReadyError if the daemon does not do its part, HubError if a pull fails,
        BackendTooOldError if the model cannot call tools, UsageError if it is not computed on this machine.
        """
        with _client(server) as client:
            return hold(client, server, bars)

    def verify(self, server: StartedServer) -> None:
        """Raises NotReadyError unless the window that is served is the planned one: Ollama cuts silently."""
        planned = server.request.context_tokens
        with _client(server) as client:
            served = served_tokens(client, server)
        if served != planned:
            raise NotReadyError(
                f"Ollama serves a window of {served or 0:,} tokens, not of {planned:,}.",
                hint=f"--ctx {served}" if served else None,
                log=str(server.log),
            )

    def stored(self, catalog: Catalog, env: Env) -> Iterator[Stored]:
        """The models in this user's store, without the derived ones of sessions."""
        leased = {record.stem for record in (env.folders.state / "ollama").glob("*.json")}
        flags = start_options(catalog)
        manifests = tags.store(env.environ) / "manifests"
        for manifest in sorted(manifests.glob("*/*/*/*")):
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
                layers = json.loads(manifest.read_text("utf-8"))["layers"]
                host, space, model, tag = manifest.relative_to(manifests).parts
                name = f"{model}:{tag}" if space == "library" else f"{space}/{model}:{tag}"
                name = name if host == "registry.ollama.ai" else f"{host}/{name}"
                if name.startswith("cclocal-") and name.partition(":")[0] in leased:
                    continue
                size = sum(int(layer["size"]) for layer in layers)
                start = flags.get(name) or f"--model {name}{f' --backend {NAME}' if '/' in name else ''}"
                used_s = manifest.stat().st_atime
                yield Stored("backend", name, size, start, used_s, path=str(manifest), backend=NAME)

    def users_of(self, stored: Stored, env: Env) -> list[str]:
        """Ollama itself, if it has the model in memory. Raises UsageError if it does not answer: only it can remove."""
        import httpx

        url = ollama_url(env.environ)
        if not is_loopback(url):
            raise UsageError(f"{stored.name} is in this machine's store, but OLLAMA_HOST names another machine.")
        try:
            with http.client(url) as client:
                loaded = client.get("/api/ps").json().get("models") or []
        except (httpx.HTTPError, ValueError, AttributeError) as error:
            raise UsageError(
                f"Ollama did not answer, and only it can remove {stored.name}.",
                hint=f"ollama serve, then ollama rm {stored.name}",
            ) from error
        names = {str(one.get("name")) for one in loaded if isinstance(one, dict)}
        return ["Ollama, which has it in memory"] if stored.name in names else []

    def remove(self, stored: Stored, env: Env) -> None:
        """Through a running daemon: blobs are shared, and only Ollama knows which are still needed."""
        import httpx

        try:
            with http.client(ollama_url(env.environ), limit_s=_REMOVE_LIMIT_S) as client:
                client.request("DELETE", "/api/delete", json={"model": stored.name}).raise_for_status()
        except httpx.HTTPError as error:
            raise UsageError(
                f"Ollama did not remove {stored.name}: {error}.", hint=f"ollama rm {stored.name}"
            ) from None

    def window(self, get: Get, row: Mapping[str, Any], model: str) -> tuple[str, int | None] | None:
        """Ollama reports the window of a loaded model in /api/ps."""
        loaded = get("/api/ps")
        if not isinstance(loaded, dict) or not isinstance(loaded.get("models"), list):
            return None
        for one in loaded["models"]:
            if isinstance(one, dict) and model in (one.get("name"), one.get("model")):
                return "Ollama", one.get("context_length")
        return "Ollama", None
