"""The page of a session: what `cclocal stats --html` writes, looked at in a real browser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.browser import DESKTOP, PHONE, dom, needs_browser
from tests.world import World

LOG = Path(__file__).parents[1] / "agents/logs/llama-server.log"
SESSION = "5be0c1d2"


@pytest.fixture
def ended(world: World) -> World:
    """A home with the log of one session that ended."""
    state = world.home / ".local/state/cclocal"
    (state / "logs").mkdir(parents=True)
    shutil.copy(LOG, state / "logs" / f"server-{SESSION}.log")
    (state / "server.log").symlink_to(f"logs/server-{SESSION}.log")
    return world


def test_when_a_turn_began_and_its_window_are_told(ended: World) -> None:
    rows = json.loads(ended.run("stats", "--json").stdout)["turns"]
    assert [row["window_tokens"] for row in rows] == [32768] * len(rows)
    began = [row["began_s"] for row in rows]
    assert began == sorted(began)
    assert began[-1] == 76.607


@needs_browser
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_a_session_is_drawn_without_a_network(ended: World, width: int) -> None:
    done = ended.run("stats", "--html")
    assert done.stdout == f"cclocal-{SESSION}.html\n", done.stderr
    page = ended.project / done.stdout.strip()
    assert page.stat().st_size < 300_000
    shown = dom(page.as_uri(), width)
    # one chart of each kind, and a row for each turn below the headings
    assert 'data-drawn="3"' in shown
    turns = json.loads(ended.run("stats", "--json").stdout)["turns"]
    assert shown.count("<tr>") == len(turns) + 1
    assert f"<td>{turns[-1]['prompt_tokens']:,}</td>" in shown


@needs_browser
def test_a_text_from_a_log_is_no_script(ended: World) -> None:
    log = ended.home / f".local/state/cclocal/logs/server-{SESSION}.log"
    with log.open("a") as file:
        file.write('[keeper] 12:00:00 </script><script>document.body.dataset.evil = "1"</script>\n')
    shown = dom((ended.project / ended.run("stats", "--html").stdout.strip()).as_uri())
    assert 'data-drawn="3"' in shown
    assert "data-evil" not in shown
