"""The documentation as a site: built as `make site` builds it, its links followed, looked at in a real browser."""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.browser import DESKTOP, PHONE, dom, needs_browser
from tests.conftest import ROOT

#: Shows a page in a frame of a window's width, which a headless browser does not make so narrow, and says what it sees.
FRAME = """<!doctype html><iframe id="page" src="{page}" style="border:0;width:{width}px;height:900px"></iframe>
<script>
document.getElementById("page").onload = (event) => {{
  const shown = event.target.contentDocument.documentElement;
  document.body.dataset.title = shown.querySelector("h1").textContent;
  document.body.dataset.wide = shown.scrollWidth - shown.clientWidth;
}};
</script>"""


class Links(HTMLParser):
    """The targets and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values["id"]} if "id" in values else set()
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if (tag == "link" and values.get("rel") == "stylesheet") or "src" in values:
            self.loads.append(values.get("href") or values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        [*command, "--config-file", str(ROOT / "tools/mkdocs.yml")],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_no_link_is_broken_and_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = {path: Links(path.read_text("utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 30
    for path, page in pages.items():
        assert not [one for one in page.loads if urlsplit(one).scheme in ("http", "https")], path
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme == "https", f"{path.name}: {link}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{path.name}: {link}"
            if parts.fragment and target in pages:
                assert parts.fragment in pages[target].ids, f"{path.name}: {link}"


def test_it_can_be_searched(site: Path) -> None:
    found = json.loads((site / "search/search_index.json").read_text("utf-8"))["docs"]
    assert any("keeper" in entry["text"] and entry["location"].startswith("trust.html") for entry in found)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def served(site: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@needs_browser
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_every_page_fits_the_window(site: Path, served: str, width: int) -> None:
    for page in ("index.html", "catalog.html", "reference.html", "trust.html", "origins.html"):
        (site / f"frame-{width}.htm").write_text(FRAME.format(page=page, width=width))
        shown = dom(f"{served}/frame-{width}.htm")
        assert re.search('data-title="[^"]+"', shown), page
        assert 'data-wide="0"' in shown, (page, re.findall('data-wide="[^"]*"', shown))
