"""Has a started Ollama hold the planned model: created from a file, pulled, or derived with the planned window."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cclocal import tiny
from cclocal.backends.ollama import lease
from cclocal.backends.ollama.spec import RUNNING
from cclocal.backends.runtime import Bars, StartedServer
from cclocal.errors import BackendTooOldError, HubError, NotReadyError, UsageError
from cclocal.http import is_loopback
from cclocal.programs import last_line, last_lines
from cclocal.units import MIB

if TYPE_CHECKING:
    import httpx

_UP_LIMIT_S = 60.0


def hold(client: httpx.Client, server: StartedServer, bars: Bars) -> tuple[str, ...]:
    name, variant = server.endpoint.model, server.request.variant
    tag = variant.tag
    _wait_until_up(client, server)
    if tag is None:
        file = Path(server.request.model_file)
        _create(client, name, file, tiny.ollama_template() if variant.builtin else None)
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
        _derive(client, name, _as_listed(client, tag), server.request.context_tokens)
    # Ollama 0.17 switches thinking on by itself, and its /v1/messages cannot switch it off
    return (f"{tag or name} thinks before it answers; Ollama cannot switch that off.",) if "thinking" in can else ()


def served_tokens(client: httpx.Client, server: StartedServer) -> int | None:
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


def _derive(client: httpx.Client, name: str, tag: str, context_tokens: int) -> None:
    """The same model with the planned window: a manifest only, no copy of its bytes."""
    body = {"model": name, "from": tag, "parameters": {"num_ctx": context_tokens}, "stream": False}
    reply = client.post("/api/create", json=body)
    if reply.status_code != 200:
        raise NotReadyError(f"Ollama did not create {name} from {tag}.", cause=[reply.text[:300]])


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


def _create(client: httpx.Client, name: str, source: Path, template: str | None) -> None:
    """A model of a file: its bytes go into the store once, the rest is a manifest."""
    with source.open("rb") as file:
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if client.head(f"/api/blobs/{digest}").status_code != 200:
            file.seek(0)
            client.post(f"/api/blobs/{digest}", content=iter(lambda: file.read(MIB), b"")).raise_for_status()
    body: dict[str, Any] = {"model": name, "files": {source.name: digest}, "stream": False}
    if template:
        body |= {"template": template, "parameters": {"temperature": 0}}
    reply = client.post("/api/create", json=body)
    if reply.status_code != 200:
        raise NotReadyError(f"Ollama did not import {source.name}.", cause=[reply.text[:300]])


def _pull(client: httpx.Client, tag: str, bars: Bars) -> None:
    """Download by tag, with progress: every layer's bytes as Ollama counts them."""
    layers: dict[str, tuple[int, int]] = {}
    bar, counted = None, 0
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
                bar.advance(max(0, done - counted))
                counted = max(counted, done)
