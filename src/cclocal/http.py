"""The one maker of HTTP clients, and addresses of this machine."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cclocal.command import UNIX

if TYPE_CHECKING:
    import httpx

#: The answers that are asked for are a page of text at most; the tokens of a long prompt are a megabyte.
MOST_REPLY_BYTES = 64 << 20


def client(
    url: str = "", key: str = "", *, limit_s: float = 10.0, read_s: float | None = None, ca: str = ""
) -> httpx.Client:
    """A client for a model server, with its key in both of the headers that servers read.

    `url` may be unix:PATH. No proxy and no .netrc of the user's is used: prompts and keys must go only to the server.
    Certificates are checked by the system's authorities, the usual ones, SSL_CERT_FILE, and the file `ca`. `limit_s`
    bounds each step of a request in seconds, `read_s` the wait for an answer if that may take longer. Raises OSError
    for a `ca` that cannot be read, or has no certificate.
    """
    import httpx

    headers = {"authorization": f"Bearer {key}", "x-api-key": key} if key else {}
    limits = httpx.Timeout(limit_s, read=read_s or limit_s)
    transport = None
    if url.startswith(UNIX):
        transport, url = httpx.HTTPTransport(uds=url.removeprefix(UNIX)), "http://127.0.0.1"
    elif url.startswith("https:"):
        # the system's, with SSL_CERT_FILE, as the relay does
        context = ssl.create_default_context()
        for file in authorities(ca):
            context.load_verify_locations(file)
        transport = httpx.HTTPTransport(verify=context)
    client = httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=limits, transport=transport)
    client.event_hooks = {"response": [_bound]}
    return client


def _bound(reply: httpx.Response) -> None:
    """Have the reading of an answer raise httpx.ReadError when it is longer than any answer to us can be."""
    import httpx

    class Bounded(httpx.SyncByteStream):
        def __init__(self, stream: httpx.SyncByteStream) -> None:
            self.stream = stream

        def __iter__(self) -> Iterator[bytes]:
            passed = 0
            for piece in self.stream:
                passed += len(piece)
                if passed > MOST_REPLY_BYTES:
                    raise httpx.ReadError(f"its answer is longer than {MOST_REPLY_BYTES >> 20} MiB")
                yield piece

        def close(self) -> None:
            self.stream.close()

    assert isinstance(reply.stream, httpx.SyncByteStream)
    reply.stream = Bounded(reply.stream)


def authorities(ca: str = "") -> list[str]:
    """The files with the usual authorities, for systems whose Python knows none, and with the user's own."""
    import certifi

    return [certifi.where(), *([ca] if ca else [])]


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
