"""Ollama on this machine: finding it, having it hold the model, its own store."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cclocal import http, tiny
from cclocal.backends import Bars, Get, Reported, Runtime, StartedServer
from cclocal.backends.ollama import lease
from cclocal.backends.ollama.spec import PROGRAM, RUNNING, OllamaSpec, ollama_url
from cclocal.errors import BackendTooOldError, HubError, NotReadyError, UsageError
from cclocal.facts import Engine, Machine
from cclocal.http import is_loopback
from cclocal.models import tags
from cclocal.models.catalog import Catalog
from cclocal.models.storage import Stored, start_options
from cclocal.paths import Env, find_program
from cclocal.programs import Answers, ask, last_line, last_lines
from cclocal.settings import Settings
from cclocal.units import MIB

if TYPE_CHECKING:
    import httpx

_UP_LIMIT_S = 60.0
_STALL_S = 240.0
_REMOVE_LIMIT_S = 30.0


def _running(url: str) -> Iterator[Engine]:
    """The daemon at an address of this machine, if it answers."""
    if not is_loopback(url) or not url.startswith("http://"):
        return
    version = lease.ask(url, "GET", "/api/version")[1].get("version")
    if isinstance(version, str):
        # isolated, as the keeper is: it must have locked its record before the model is made
        command = (sys.executable, "-I", "-S", str(lease.__file__))
        yield Engine(RUNNING, command, version, frozenset(), title="already running", uses="everything", url=url)


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
        if found or settings.backend == OllamaSpec.NAME or "OLLAMA_HOST" in env.environ:
            yield from _running(ollama_url(env.environ))
        if not found:
            return
        path = Path(found).absolute()

        def probe() -> str:
            # if no daemon answers, it warns and prints its own version
            done = ask([str(path), "--version"], {**env.environ, "OLLAMA_HOST": "127.0.0.1:1"})
            said = re.search(r"version is (\S+)", done.stdout + done.stderr)
            return said[1] if said else "unknown"

        version = "unknown"
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            version = answers.of(answers.key(path, "ollama"), probe)
        yield Engine(PROGRAM, (str(path),), version, frozenset(), title="a separate daemon", uses="everything")

    def clean_up(self, env: Env) -> None:
        """Remove the derived models that killed sessions left in daemons that run."""
        for record in sorted((env.folders.state / "ollama").glob("*.json")):
            # a record that cannot be read names no model, and stays
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError), record.open(encoding="utf-8") as file:
                content = json.load(file)
                lease.remove(record, file, str(content["url"]), str(content["name"]))

    def prepare(self, server: StartedServer, bars: Bars) -> tuple[str, ...]:
        """Have the daemon hold the model: created from a file, pulled, or derived with the planned window.

        Raises ServerDiedError or NotReadyError if the daemon does not do its part, HubError if a pull fails,
        BackendTooOldError if the model cannot call tools, UsageError if it is not computed on this machine.
        """
        name, variant = server.endpoint.model, server.request.variant
        tag = variant.tag
        with _client(server) as client:
            _wait_until_up(client, server)
            if tag is None:
                _import(client, server)
            elif _show(client, tag) is None:
                _pull(client, tag, bars)
            shown = _show(client, tag or name) or {}
            if host := shown.get("remote_host"):
                raise UsageError(f"{tag} is computed on {host}, not on this machine.", hint="a model without “cloud”")
            can = shown.get("capabilities") or ()
            if server.tools and "tools" not in can:
                raise BackendTooOldError(
                    f"{tag or name} cannot call tools in Ollama: its template does not mention them.",
                    hint="another model, --backend llama-server, or --no-tools to chat only",
                )
            if tag and name != tag:
                # the same model with the planned window: a manifest only, no copy of its bytes
                source, parameters = _as_listed(client, tag), {"num_ctx": server.request.context_tokens}
                body = {"model": name, "from": source, "parameters": parameters}
                _create(client, body, f"Ollama did not create {name} from {source}.")
        # Ollama 0.17 switches thinking on by itself, and its /v1/messages cannot switch it off
        return (f"{tag or name} thinks before it answers; Ollama cannot switch that off.",) if "thinking" in can else ()

    def verify(self, server: StartedServer) -> None:
        """Raises NotReadyError unless the window that is served is the planned one: Ollama cuts silently."""
        planned = server.request.context_tokens
        with _client(server) as client:
            served = _served_tokens(client, server)
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
        for name, manifest in tags.manifests(env.environ):
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
                layers = json.loads(manifest.read_text("utf-8"))["layers"]
                if name.startswith("cclocal-") and name.partition(":")[0] in leased:
                    continue
                size = sum(int(layer["size"]) for layer in layers)
                start = flags.get(name) or f"--model {name}{f' --backend {OllamaSpec.NAME}' if '/' in name else ''}"
                used_s = manifest.stat().st_atime
                yield Stored("backend", name, size, start, used_s, path=str(manifest), backend=OllamaSpec.NAME)

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

    def reported(self, get: Get, model: str) -> Reported | None:
        """Ollama reports the window of a loaded model in /api/ps."""
        loaded = get("/api/ps")
        if not isinstance(loaded, dict) or not isinstance(loaded.get("models"), list):
            return None
        for one in loaded["models"]:
            if isinstance(one, dict) and model in (one.get("name"), one.get("model")):
                return Reported("Ollama", one.get("context_length"))
        return Reported("Ollama", None)


def _served_tokens(client: httpx.Client, server: StartedServer) -> int | None:
    """The window of the model that is loaded, as Ollama reports it."""
    name = server.endpoint.model
    for row in client.get("/api/ps").json().get("models") or []:
        if lease.is_named(row, name):
            return int(row["context_length"])
    if server.engine.form != RUNNING:
        return None
    # loaded under another name of the same weights, or unloaded already: its manifest has the window
    shown = _show(client, name) or {}
    planned = re.search(r"^num_ctx\s+(\d+)", str(shown.get("parameters")), re.MULTILINE)
    native = [size for key, size in (shown.get("model_info") or {}).items() if key.endswith(".context_length")]
    return min(int(planned[1]), *map(int, native)) if planned and native else None


def _show(client: httpx.Client, name: str) -> dict[str, Any] | None:
    """What Ollama knows of a model; None if it does not have it. Raises ValueError for any other answer."""
    reply = client.post("/api/show", json={"model": name})
    if reply.status_code == 404:
        return None
    if reply.status_code != 200:
        raise ValueError(reply.text[:300])
    return dict(reply.json())


def _as_listed(client: httpx.Client, tag: str) -> str:
    """A tag in Ollama's own spelling: it finds a model in any case, but derives one only from the exact name."""

    def plain(name: str) -> str:
        short = name.removeprefix("registry.ollama.ai/").removeprefix("library/")
        return (short if ":" in short.rpartition("/")[2] else f"{short}:latest").lower()

    there = [str(row["name"]) for row in client.get("/api/tags").json().get("models") or []]
    return next((name for name in there if plain(name) == plain(tag)), tag)


def _wait_until_up(client: httpx.Client, server: StartedServer) -> None:
    """Until the daemon answers; with one that runs already, until the lease on the derived model is held."""
    import httpx

    leases = server.engine.form == RUNNING
    deadline = time.monotonic() + _UP_LIMIT_S
    while time.monotonic() < deadline:
        server.check_alive()
        with contextlib.suppress(httpx.TransportError):
            if client.get("/api/version").status_code == 200 and (not leases or lease.HOLDING in last_line(server.log)):
                return
        time.sleep(0.05)
    raise NotReadyError("Ollama does not answer.", cause=last_lines(server.log), log=str(server.log))


def _import(client: httpx.Client, server: StartedServer) -> None:
    """A model of a file: its bytes go into the store once, the rest is a manifest."""
    source = Path(server.request.model_file)
    with source.open("rb") as file:
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if client.head(f"/api/blobs/{digest}").status_code != 200:
            file.seek(0)
            client.post(f"/api/blobs/{digest}", content=iter(lambda: file.read(MIB), b"")).raise_for_status()
    body: dict[str, Any] = {"model": server.endpoint.model, "files": {source.name: digest}}
    if server.request.variant.builtin:
        body |= {"template": tiny.ollama_template(), "parameters": {"temperature": 0}}
    _create(client, body, f"Ollama did not import {source.name}.")


def _create(client: httpx.Client, body: dict[str, Any], failure: str) -> None:
    """Make a model. Raises NotReadyError with `failure`."""
    reply = client.post("/api/create", json={**body, "stream": False})
    if reply.status_code != 200:
        raise NotReadyError(failure, cause=[reply.text[:300]])


def _pull(client: httpx.Client, tag: str, bars: Bars) -> None:
    """Download by tag, with progress: every layer's bytes as Ollama counts them."""
    layers: dict[str, tuple[int, int]] = {}
    bar = None
    # a registry on this machine has no certificate
    is_local = is_loopback(f"http://{tag}")
    body = {"model": f"http://{tag}" if is_local else tag, "insecure": is_local}
    with client.stream("POST", "/api/pull", json=body) as reply:
        for line in reply.iter_lines():
            news = json.loads(line)
            if "error" in news:
                raise HubError(f"Ollama could not pull {tag}.", cause=[str(news["error"])])
            if news.get("digest") and news.get("total"):
                layers[news["digest"]] = (int(news.get("completed") or 0), int(news["total"]))
                done, total = (sum(row[part] for row in layers.values()) for part in (0, 1))
                bar = bar or bars(total, 0)
                bar.expect(total)
                bar.advance(max(0, done - bar.received))
