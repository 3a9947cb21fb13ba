"""Between a server's start and its readiness: what a backend wants done, and what must be true afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cclocal import tiny
from cclocal.backends.ollama import spec as ollama
from cclocal.backends.ollama.lease import HOLDING, is_named
from cclocal.command import MODEL_FILE
from cclocal.errors import BackendTooOldError, HubError, NotReadyError, ServerDiedError, UsageError
from cclocal.paths import is_loopback
from cclocal.planning.plan import Plan
from cclocal.server.readiness import last_line, last_lines
from cclocal.server.start import Held

if TYPE_CHECKING:
    import httpx

_UP_LIMIT_S = 60.0
_STALL_S = 240.0
#: What hub.fetch and a pull report to: (total, finished) bytes → a bar.
Bars = Callable[[int, int], Any]


def prepare(plan: Plan, held: Held, model: Mapping[str, str], bars: Bars) -> tuple[str, ...]:
    """Have the server that was just started hold the model, where it does not load it by itself.

    `model` says where the plan's placeholders point. Returns what the user should know of it. Raises ServerDiedError or
    NotReadyError if the server does not do its part, HubError if a pull fails, BackendTooOldError if the model cannot
    call tools, UsageError if it is not on this machine.
    """
    if plan.backend != ollama.NAME:
        return ()
    with _ollama(plan, held) as client:
        return _prepare(client, plan, held, model, bars)


def check(plan: Plan, held: Held) -> None:
    """Raises NotReadyError unless the window that is served is the planned one: Ollama cuts in silence."""
    if plan.backend != ollama.NAME:
        return
    with _ollama(plan, held) as client:
        served = _served_tokens(client, plan)
    if served != plan.context_tokens:
        raise NotReadyError(
            f"Ollama serves a window of {served or 0:,} tokens, not of {plan.context_tokens:,}.",
            hint=f"--ctx {served}" if served else None,
            log=str(held.log),
        )


@contextlib.contextmanager
def _ollama(plan: Plan, held: Held) -> Iterator[httpx.Client]:
    """A client of the session's Ollama, its failures in words."""
    import httpx

    limits = httpx.Timeout(10.0, read=_STALL_S)
    try:
        with httpx.Client(base_url=plan.readiness.endpoint.url, trust_env=False, timeout=limits) as client:
            yield client
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
        if held.poll() is not None:
            raise ServerDiedError(
                "Ollama stopped while starting.", cause=last_lines(held.log), log=str(held.log)
            ) from None
        told = str(error) or type(error).__name__
        raise NotReadyError("Ollama did not answer as it should.", cause=[told], log=str(held.log)) from None


def _prepare(client: httpx.Client, plan: Plan, held: Held, model: Mapping[str, str], bars: Bars) -> tuple[str, ...]:
    name, tag = plan.readiness.endpoint.model, plan.variant.tag
    _wait_until_up(client, plan, held)
    if tag is None:
        file = Path(model.get(MODEL_FILE) or plan.variant.path or next(iter(model.values())))
        _create(client, name, file, tiny.ollama_template() if plan.variant.builtin else None)
    elif _show(client, tag) is None:
        _pull(client, tag, bars)
    told = _show(client, tag or name) or {}
    if host := told.get("remote_host"):
        raise UsageError(f"{tag} is computed on {host}, not on this machine.", hint="a model without “cloud”")
    can = told.get("capabilities") or ()
    if plan.tools and "tools" not in can:
        raise BackendTooOldError(
            f"{tag or name} cannot call tools in Ollama: its template does not mention them.",
            hint="another model, --backend llama-server, or --no-tools to talk only",
        )
    if tag and name != tag:
        _derive(client, name, _as_listed(client, tag), plan.context_tokens)
    # Ollama 0.17 turns it on by itself, and its /v1/messages cannot turn it off
    return (f"{tag or name} thinks before it answers; Ollama has no switch for that.",) if "thinking" in can else ()


def _served_tokens(client: httpx.Client, plan: Plan) -> int | None:
    """The window of the model that is loaded, in Ollama's own words."""
    name = plan.readiness.endpoint.model
    for row in client.get("/api/ps").json().get("models") or []:
        if is_named(row, name):
            return int(row["context_length"])
    if plan.engine.form != ollama.RUNNING:
        return None
    # loaded under another name of the same weights, or out of memory already: what it is loaded with is in its manifest
    told = _show(client, name) or {}
    wanted = re.search(r"^num_ctx\s+(\d+)", str(told.get("parameters")), re.MULTILINE)
    native = [size for key, size in (told.get("model_info") or {}).items() if key.endswith(".context_length")]
    return min(int(wanted[1]), *map(int, native)) if wanted and native else None


def _show(client: httpx.Client, name: str) -> dict[str, Any] | None:
    """What Ollama tells of a model; None if it does not have it. Raises ValueError for an answer that is none."""
    reply = client.post("/api/show", json={"model": name})
    if reply.status_code == 404:
        return None
    if reply.status_code != 200:
        raise ValueError(reply.text[:300])
    return dict(reply.json())


def _as_listed(client: httpx.Client, tag: str) -> str:
    """A tag as Ollama spells it: it finds a model whatever the case, and makes one of none but the exact name."""

    def plain(name: str) -> str:
        short = name.removeprefix("registry.ollama.ai/").removeprefix("library/")
        return (short if ":" in short.rpartition("/")[2] else f"{short}:latest").lower()

    there = [str(row["name"]) for row in client.get("/api/tags").json().get("models") or []]
    return next((name for name in there if plain(name) == plain(tag)), tag)


def _derive(client: httpx.Client, name: str, tag: str, context_tokens: int) -> None:
    """The same model with the planned window: a manifest only, no bytes."""
    body = {"model": name, "from": tag, "parameters": {"num_ctx": context_tokens}, "stream": False}
    reply = client.post("/api/create", json=body)
    if reply.status_code != 200:
        raise NotReadyError(f"Ollama did not make {name} of {tag}.", cause=[reply.text[:300]])


def _wait_until_up(client: httpx.Client, plan: Plan, held: Held) -> None:
    """Until the daemon answers, and where it is somebody else's until what we put there is held."""
    import httpx

    holds = plan.engine.form == ollama.RUNNING
    deadline = time.monotonic() + _UP_LIMIT_S
    while time.monotonic() < deadline:
        if held.poll() is not None:
            raise ServerDiedError("Ollama stopped while starting.", cause=last_lines(held.log), log=str(held.log))
        with contextlib.suppress(httpx.TransportError):
            if client.get("/api/version").status_code == 200 and (not holds or HOLDING in last_line(held.log)):
                return
        time.sleep(0.05)
    raise NotReadyError("Ollama does not answer.", cause=last_lines(held.log), log=str(held.log))


def _create(client: httpx.Client, name: str, source: Path, template: str | None) -> None:
    """A model of a file: its bytes go into the store once, the rest is a manifest."""
    with source.open("rb") as file:
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if client.head(f"/api/blobs/{digest}").status_code != 200:
            file.seek(0)
            client.post(f"/api/blobs/{digest}", content=iter(lambda: file.read(2**20), b"")).raise_for_status()
    body: dict[str, Any] = {"model": name, "files": {source.name: digest}, "stream": False}
    if template:
        body |= {"template": template, "parameters": {"temperature": 0}}
    reply = client.post("/api/create", json=body)
    if reply.status_code != 200:
        raise NotReadyError(f"Ollama did not take {source.name}.", cause=[reply.text[:300]])


def _pull(client: httpx.Client, tag: str, bars: Bars) -> None:
    """Download by tag, with true progress: every layer's bytes as Ollama counts them."""
    layers: dict[str, tuple[int, int]] = {}
    shown, told = None, 0
    # a registry of one's own on this machine has no certificate
    plain = is_loopback(f"http://{tag}")
    body = {"model": f"http://{tag}" if plain else tag, "insecure": plain}
    with client.stream("POST", "/api/pull", json=body) as reply:
        for line in reply.iter_lines():
            news = json.loads(line)
            if "error" in news:
                raise HubError(f"Ollama could not pull {tag}.", cause=[str(news["error"])])
            if news.get("digest") and news.get("total"):
                layers[news["digest"]] = (int(news.get("completed") or 0), int(news["total"]))
                done, total = (sum(row[part] for row in layers.values()) for part in (0, 1))
                shown = shown or bars(total, 0)
                shown.expect(total)
                shown.advance(max(0, done - told))
                told = max(told, done)
