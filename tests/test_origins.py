"""Every promise of the guides names a test that exists, or says that none shows it."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (ROOT / "docs/origins.md").read_text("utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| Promise")
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_a_promise_is_shown_by_a_test(row: list[str]) -> None:
    _, where, shown = row
    assert where != "—"
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", shown)
    assert named or shown.rstrip(" |") == "—"
    for path, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE), f"{path}::{name}"


def test_few_promises_are_shown_by_no_test() -> None:
    assert len(ROWS) > 100
    assert len([row for row in ROWS if "`tests/" not in row[2]]) <= 7
