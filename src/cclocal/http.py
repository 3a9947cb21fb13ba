"""The one maker of HTTP clients, and addresses of this machine."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import httpx


def client(url: str = "", key: str = "", *, limit_s: float = 10.0, read_s: float | None = None) -> httpx.Client:
    """A client for a model server, with its key in both of the headers that servers read.

    No proxy and no .netrc of the user's is used: prompts and keys must go only to the server. `limit_s`
    bounds each step of a request in seconds, `read_s` the wait for an answer if that may take longer.
    """
    import httpx

    headers = {"authorization": f"Bearer {key}", "x-api-key": key} if key else {}
    limits = httpx.Timeout(limit_s, read=read_s or limit_s)
    return httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=limits)


def web_client(*, limit_s: float = 30.0) -> httpx.Client:
    """A client for public registries: it uses the user's proxy and follows redirects."""
    import httpx

    return httpx.Client(timeout=limit_s, follow_redirects=True)


def is_loopback(url: str) -> bool:
    """Whether an address is of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
