"""The hosts that a sandboxed agent may reach beside the model. Pure, standard library only.

A rule is HOST:PORT; *:443 stands for every public host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

#: What package managers and git reach, by the name that --allow-net takes.
SETS = {
    "pypi": ("pypi.org:443", "files.pythonhosted.org:443"),
    "npm": ("registry.npmjs.org:443",),
    "crates": ("crates.io:443", "index.crates.io:443", "static.crates.io:443"),
    "go": ("proxy.golang.org:443", "sum.golang.org:443"),
    "github": (
        *("github.com:443", "api.github.com:443", "codeload.github.com:443", "raw.githubusercontent.com:443"),
        *("objects.githubusercontent.com:443", "release-assets.githubusercontent.com:443"),
    ),
}
#: Every public web server; for --web.
WEB = "*:443"
#: How the rules begin that name a port of this machine: it is open inside, at the same address.
LOCAL = "127.0.0.1:"
#: A name or an IPv4 address, or an IPv6 address in brackets, and a port.
PLACE = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?):([0-9]{1,5})", re.IGNORECASE)


def rules(words: Iterable[str]) -> tuple[str, ...]:
    """The rules that HOST:PORT, and names of sets, stand for. Raises ValueError with a word that is neither."""
    found: list[str] = []
    for word in words:
        place = PLACE.fullmatch(word)
        if word in SETS:
            found += SETS[word]
        elif place and 0 < int(place[2]) < 65536:
            found.append(re.sub(r"\Alocalhost:", LOCAL, word.lower()))
        else:
            raise ValueError(word)
    return tuple(dict.fromkeys(found))


def proxy_variables(port: int) -> dict[str, str]:
    """What tells programs of a proxy: curl, git, Python, npm, cargo and Go, and Node's own fetch."""
    url, local = f"http://127.0.0.1:{port}", "127.0.0.1,localhost,::1"
    found = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"), url)
    return {**found, **dict.fromkeys(("NO_PROXY", "no_proxy"), local), "NODE_USE_ENV_PROXY": "1"}


def local_ports(known: Sequence[str]) -> tuple[int, ...]:
    """The ports of this machine that are named."""
    return tuple(int(rule.removeprefix(LOCAL)) for rule in known if rule.startswith(LOCAL))


def allows(known: Sequence[str], host: str, port: int) -> str:
    """The rule that allows a place; empty if none does."""
    place = f"{host}:{port}".lower()
    return place if place in known else f"*:{port}" if f"*:{port}" in known else ""


def flag_for(host: str, port: int) -> str:
    """What to type so that this place is allowed."""
    place = f"{host}:{port}".lower()
    return f"--allow-net {next((name for name, places in SETS.items() if place in places), place)}"
