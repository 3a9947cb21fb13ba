"""A server that is already there: which API it speaks, which models it has, how large its window really is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cclocal.errors import NotReadyError, UsageError
from cclocal.paths import is_loopback

if TYPE_CHECKING:
    import httpx

#: A server that has to load its model first may take its time over the first token.
FIRST_TOKEN_LIMIT_S = 600.0
_ASK_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Found:
    """What a server told of itself. context_tokens: of one conversation; None = it does not tell."""

    model: str
    models: tuple[str, ...]
    context_tokens: int | None
    kind: str


def check_url(url: str, *, insecure: bool) -> str:
    """The address without a path. Raises UsageError for one that is none, or that is read along the way."""
    try:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise UsageError(f"“{url}” is no address.", hint="--url http://127.0.0.1:8080") from None
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.query or parts.fragment:
        raise UsageError(f"“{url}” is no address of a server.", hint="--url http://127.0.0.1:8080")
    if parts.path.rstrip("/") not in ("", "/v1"):
        raise UsageError(f"“{url}” has a path; the address of the server alone is wanted.")
    if parts.scheme == "http" and not insecure and not is_loopback(parts.geturl()):
        raise UsageError(
            f"{host} is another machine, and http is not encrypted: prompts, files and keys could be read on the way.",
            hint="https://, or --insecure-http if the network is yours",
        )
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{port or (443 if parts.scheme == 'https' else 80)}"


def look(url: str, key: str, wanted: str | None) -> Found:
    """Ask a server what it is, down to one token from the model that would be used.

    Raises NotReadyError if it does not answer or does not speak Claude Code's API, UsageError if the model or the key
    is wrong.
    """
    import httpx

    headers = {"authorization": f"Bearer {key}", "x-api-key": key} if key else {}
    with httpx.Client(base_url=url, trust_env=False, timeout=_ASK_LIMIT_S, headers=headers) as client:
        try:
            listed = client.get("/v1/models")
        except httpx.HTTPError as error:
            raise NotReadyError(f"Nothing answers at {url}.", cause=[str(error) or type(error).__name__]) from None
        rows = _rows(url, listed)
        model = _choose(url, tuple(rows), wanted)
        _speak(client, url, model)
        kind, context = _window(client, rows[model], model)
        return Found(model, tuple(rows), context, kind)


def _rows(url: str, reply: httpx.Response) -> dict[str, dict[str, Any]]:
    if reply.status_code in (401, 403):
        raise UsageError(f"{url} wants a key.", hint="--key-env NAME, the variable that holds it")
    try:
        rows = {str(row["id"]): dict(row) for row in reply.json()["data"]}
    except (ValueError, KeyError, TypeError):
        rows = {}
    if reply.status_code != 200 or not rows:
        raise NotReadyError(f"What answers at {url} lists no models, so it is no model server.")
    return rows


def _choose(url: str, models: tuple[str, ...], wanted: str | None) -> str:
    if wanted and wanted not in models:
        raise UsageError(f"{url} does not have {wanted}; it has {', '.join(models)}.")
    if not wanted and len(models) > 1:
        raise UsageError(f"{url} has several models: {', '.join(models)}.", hint=f"--model {models[0]}")
    return wanted or models[0]


def _speak(client: httpx.Client, url: str, model: str) -> None:
    """One token in the API that Claude Code speaks."""
    import httpx

    body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}
    try:
        reply = client.post("/v1/messages", json=body, timeout=FIRST_TOKEN_LIMIT_S)
        answered = reply.status_code == 200 and reply.json().get("type") == "message"
    except (httpx.HTTPError, ValueError, AttributeError) as error:
        raise NotReadyError(f"{url} cannot answer a message.", cause=[str(error)]) from None
    if reply.status_code in (401, 403):
        raise UsageError(f"{url} wants a key.", hint="--key-env NAME, the variable that holds it")
    if reply.status_code == 404:
        raise NotReadyError(
            f"{url} does not speak the API that Claude Code needs (/v1/messages).",
            hint="llama-server, vllm-mlx and Ollama do, in versions of 2026",
        )
    if not answered:
        raise NotReadyError(f"{url} cannot answer a message (status {reply.status_code}).", cause=[reply.text[:300]])


def _window(client: httpx.Client, row: dict[str, Any], model: str) -> tuple[str, int | None]:
    """(whose server it is, the window of one conversation), asked in each server's own way once the model is loaded."""
    import httpx

    def ask(path: str) -> Any:
        try:
            reply = client.get(path)
            return reply.json() if reply.status_code == 200 else None
        except (httpx.HTTPError, ValueError):
            return None

    props = ask("/props")
    if isinstance(props, dict) and isinstance(settings := props.get("default_generation_settings"), dict):
        return "llama-server", _tokens(settings.get("n_ctx"))
    loaded = ask("/api/ps")
    if isinstance(loaded, dict) and isinstance(loaded.get("models"), list):
        for one in loaded["models"]:
            if isinstance(one, dict) and model in (one.get("name"), one.get("model")):
                return "Ollama", _tokens(one.get("context_length"))
        return "Ollama", None
    return "a server", _tokens(row.get("max_model_len"))


def _tokens(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
