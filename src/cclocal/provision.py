"""Put a model into a running Ollama, and see that it will be served as planned."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cclocal.errors import BackendTooOldError, HubError, NotReadyError
from cclocal.process import Held
from cclocal.ready import last_lines

if TYPE_CHECKING:
    import httpx

_UP_LIMIT_S = 60.0
_STALL_S = 240.0


def provision(
    url: str, name: str, source: Path | None, template: str | None, held: Held, bar: Callable[[int, int], Any] | None
) -> None:
    """See that `name` is there: made of a GGUF file with a template, or, without one, pulled by its tag with a bar.

    Raises NotReadyError if the daemon does not come up, HubError if a pull fails, BackendTooOldError if the model
    cannot call tools.
    """
    import httpx

    with httpx.Client(base_url=url, trust_env=False, timeout=httpx.Timeout(10.0, read=_STALL_S)) as client:
        _wait_until_up(client, held)
        there = {row.get("name") for row in client.get("/api/tags").json().get("models") or []}
        if source is not None:
            _create(client, name, source, template)
        elif name not in there and f"{name}:latest" not in there:
            assert bar is not None
            _pull(client, name, bar)
        shown = client.post("/api/show", json={"model": name}).json()
        if "tools" not in (shown.get("capabilities") or ()):
            raise BackendTooOldError(
                f"{name} cannot call tools in Ollama: its template does not mention them.",
                hint="another model, or --backend llama-server",
            )


def check_window(url: str, name: str, context_tokens: int) -> None:
    """Raises NotReadyError unless the window that is served is the planned one: Ollama cuts in silence."""
    import httpx

    with httpx.Client(base_url=url, trust_env=False, timeout=10.0) as client:
        loaded = client.get("/api/ps").json().get("models") or []
    served = next((row.get("context_length") for row in loaded if row.get("name") in (name, f"{name}:latest")), None)
    if served != context_tokens:
        raise NotReadyError(f"Ollama serves a window of {served}, not of {context_tokens:,} tokens.")


def _wait_until_up(client: httpx.Client, held: Held) -> None:
    import httpx

    deadline = time.monotonic() + _UP_LIMIT_S
    while time.monotonic() < deadline:
        if held.poll() is not None:
            raise NotReadyError("Ollama stopped while starting.", cause=last_lines(held.log), log=str(held.log))
        with contextlib.suppress(httpx.TransportError):
            if client.get("/api/version").status_code == 200:
                return
        time.sleep(0.05)
    raise NotReadyError("Ollama does not answer.", cause=last_lines(held.log), log=str(held.log))


def _create(client: httpx.Client, name: str, source: Path, template: str | None) -> None:
    """A model of a file: its bytes go into the store once, the rest is a manifest."""
    data = source.read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    if client.head(f"/api/blobs/{digest}").status_code != 200:
        client.post(f"/api/blobs/{digest}", content=data).raise_for_status()
    body: dict[str, Any] = {"model": name, "files": {source.name: digest}, "stream": False}
    if template:
        body |= {"template": template, "parameters": {"temperature": 0}}
    reply = client.post("/api/create", json=body)
    if reply.status_code != 200:
        raise NotReadyError(f"Ollama did not take {source.name}.", cause=[reply.text[:300]])


def _pull(client: httpx.Client, name: str, bar: Callable[[int, int], Any]) -> None:
    """Download by tag, with true progress: every layer's bytes as Ollama counts them."""
    layers: dict[str, tuple[int, int]] = {}
    shown, told = None, 0
    with client.stream("POST", "/api/pull", json={"model": name}) as reply:
        for line in reply.iter_lines():
            news = json.loads(line)
            if "error" in news:
                raise HubError(f"Ollama could not pull {name}.", cause=[str(news["error"])])
            if news.get("digest") and news.get("total"):
                layers[news["digest"]] = (int(news.get("completed") or 0), int(news["total"]))
                done, total = (sum(row[part] for row in layers.values()) for part in (0, 1))
                shown = shown or bar(total, 0)
                shown.advance(max(0, done - told))
                told = max(told, done)
