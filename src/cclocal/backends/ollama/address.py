"""Where Ollama answers, by OLLAMA_HOST."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Mapping


def ollama_url(environ: Mapping[str, str]) -> str:
    """The address by OLLAMA_HOST and Ollama's own rules (its envconfig/config.go).

    No port is 11434, or 80 and 443 with a scheme; one that is no number counts as missing; the address of all
    interfaces means this machine.
    """
    text = environ.get("OLLAMA_HOST", "").strip().strip("\"'").strip()
    scheme, mark, rest = text.partition("://")
    scheme, rest = (scheme, rest) if mark else ("http", text)
    usual = {"http": "80", "https": "443"}.get(scheme, "11434") if mark else "11434"
    place = rest.partition("/")[0]
    match = re.fullmatch(r"(\[[^\]]*\]|[^:]*):([^:]*)", place)
    host, port = (match[1], match[2]) if match else (place, usual)
    host = host.strip("[]") or "127.0.0.1"
    port = port if port.isdecimal() and int(port) <= 65535 else usual
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        host = {4: "127.0.0.1", 6: "::1"}[address.version] if address.is_unspecified else str(address)
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
