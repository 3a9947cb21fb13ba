"""A session as one HTML page that needs no server and no network: its turns drawn by Chart.js, which is inside."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any


def session_page(report: dict[str, Any]) -> str:
    """The page of a session. `report`: what `cclocal stats --json` prints."""
    folder = files(__package__)
    # "</script>" in a text would end the script
    data = json.dumps(report).replace("<", "\\u003c")
    page = folder.joinpath("session.html").read_text("utf-8")
    chart = folder.joinpath("chart.umd.min.js").read_text("utf-8")
    return page.replace("/* chart.js */", chart).replace("/* report */", data)
