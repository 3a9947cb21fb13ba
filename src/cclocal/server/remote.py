"""A server that runs already: whether it speaks an agent's API, which models it has, how large its window is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cclocal import http
from cclocal.backends import BACKENDS, Reported, runtime_of
from cclocal.errors import NotReadyError, UsageError
from cclocal.http import is_loopback
from cclocal.models.hub import first_line
from cclocal.wires import Wire
from cclocal.wires.wire import Refusal

if TYPE_CHECKING:
    import httpx

#: Seconds for the first token of a server that may have to load its model first. vLLM on several machines that lost one
#: of them still answers /health and lists its models, but no message (shown with 0.32).
FIRST_TOKEN_LIMIT_S = 120.0
_ASK_LIMIT_S = 5.0
#: Servers that cclocal starts none of, by what they call the owner of a model.
_KINDS = {"vllm": "vLLM", "sglang": "SGLang"}
#: How they refuse a prompt (vLLM 0.32; it counts no further than one token beyond its window).
REFUSALS = (
    Refusal(
        "too long",
        r"maximum context length is (?P<window>\d+) tokens\..*contains at least (?P<tokens>\d+) input tokens",
    ),
)


def check_url(url: str, *, insecure: bool) -> str:
    """The address without a path. Raises UsageError for a wrong one, or one over which prompts could be read."""
    try:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise UsageError(f"“{url}” is not an address.", hint="--url http://127.0.0.1:8080") from None
    # without a scheme only a port tells an address from any other word
    is_word = "//" not in url and not port
    if parts.scheme not in ("http", "https") or not host or is_word or parts.username or parts.query or parts.fragment:
        raise UsageError(f"“{url}” is not the address of a server.", hint="--url http://127.0.0.1:8080")
    if parts.path.rstrip("/") not in ("", "/v1"):
        raise UsageError(f"“{url}” has a path; give only the address of the server.")
    if parts.scheme == "http" and not insecure and not is_loopback(parts.geturl()):
        raise UsageError(
            f"{host} is another machine, and http is not encrypted: prompts, files and keys could be read on the way.",
            hint="https://, or --insecure-http if the network is yours",
        )
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{port or (443 if parts.scheme == 'https' else 80)}"


def look(
    url: str,
    key: str,
    wire: Wire,
    requested: str | None,
    *,
    ca: str = "",
    shown: str = "",
    limit_s: float = FIRST_TOKEN_LIMIT_S,
) -> tuple[str, Reported]:
    """Ask a server what it is, down to one token from the model, where that does not cost a prompt that it keeps.

    `ca`: a file with an authority's certificate. `shown`: the address in messages, if it is another. limit_s: for that
    token.
    Returns (the model, what the server reports of itself).
    Raises NotReadyError if it does not answer or does not speak the agent's API, UsageError if the model or the key is
    wrong.
    """
    import httpx

    with http.client(url, key, limit_s=_ASK_LIMIT_S, ca=ca) as client:
        url = shown or url
        try:
            listed = client.get("/v1/models")
        except httpx.HTTPError as error:
            cause = first_line(error)
            if "CERTIFICATE_VERIFY_FAILED" in cause:
                hint = "--ca FILE, the certificate of the authority that signed it (PEM)"
                raise NotReadyError(f"The certificate of {url} is not trusted.", cause=[cause], hint=hint) from None
            raise NotReadyError(f"Nothing answers at {url}.", cause=[cause]) from None
        rows = _rows(url, listed)
        if requested and requested not in rows:
            raise UsageError(f"{url} does not have {requested}; it has {', '.join(rows)}.")
        model = requested or next(iter(rows))
        if not requested and len(rows) > 1:
            raise UsageError(f"{url} has several models: {', '.join(rows)}.", hint=f"--model {model}")
        found = _reported(client, rows[model], model)
        _check_wire(client, url, wire, {} if found.refuses_empty else wire.one_token(model), limit_s)
        is_told = type(found.context_tokens) is int and found.context_tokens > 0
        return model, found if is_told else found._replace(context_tokens=None)


def _rows(url: str, reply: httpx.Response) -> dict[str, dict[str, Any]]:
    if reply.status_code in (401, 403):
        raise UsageError(f"{url} requires a key.", hint="--key-env NAME, the variable that holds it")
    try:
        rows = {str(row["id"]): dict(row) for row in reply.json()["data"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        rows = {}
    if reply.status_code != 200 or not rows:
        raise NotReadyError(f"The program at {url} lists no models, so it is not a model server.")
    return rows


def _check_wire(client: httpx.Client, url: str, wire: Wire, body: Mapping[str, Any], limit_s: float) -> None:
    """Ask in the agent's API: for one token, or with an empty body, which must be refused as incomplete.

    Raises NotReadyError or UsageError for any other answer.
    """
    import httpx

    try:
        reply = client.post(wire.PATH, json=dict(body), timeout=limit_s)
    except httpx.ReadTimeout:
        raise NotReadyError(
            f"{url} lists its models, but a message had no answer in {limit_s:.0f} s: it loads a model, it is busy, or "
            "one of its machines is gone.",
            hint="its own log says which; --wait MINUTES gives it longer",
        ) from None
    except httpx.HTTPError as error:
        raise NotReadyError(f"{url} cannot answer a message.", cause=[first_line(error)]) from None
    if reply.status_code in (401, 403):
        raise UsageError(f"{url} requires a key.", hint="--key-env NAME, the variable that holds it")
    if reply.status_code == 404:
        raise NotReadyError(
            f"{url} does not speak the API that the agent needs ({wire.PATH}).",
            hint=f"use {' or '.join(BACKENDS)}, in a version of 2026 or newer",
        )
    is_expected = "required" in reply.text if not body else wire.is_reply(reply.status_code, reply.text)
    if not is_expected:
        raise NotReadyError(f"{url} cannot answer a message (status {reply.status_code}).", cause=[reply.text[:300]])


def _reported(client: httpx.Client, row: dict[str, Any], model: str) -> Reported:
    """What it says of itself: each backend knows how its servers report it."""
    import httpx

    def get(path: str) -> Any:
        try:
            reply = client.get(path)
            return reply.json() if reply.status_code == 200 else None
        except (httpx.HTTPError, ValueError, RecursionError):
            return None

    for name in BACKENDS:
        if found := runtime_of(name).reported(get, model):
            return found
    kind = _KINDS.get(str(row.get("owned_by")), "")
    told = get("/version") if kind else None
    version = told.get("version") if isinstance(told, dict) else None
    named = f"{kind} {version}" if re.fullmatch(r"[\w.+-]{1,40}", str(version or ""), re.ASCII) else kind
    return Reported(named or "a server", row.get("max_model_len"))
