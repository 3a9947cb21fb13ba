"""A real browser without a window, for the pages that we make."""

from __future__ import annotations

import shutil
import subprocess
import tempfile

import pytest

from tests.conftest import CI

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
#: CI has it always: a missing browser must not pass for a page that was looked at.
needs_browser = pytest.mark.skipif(not (CHROMIUM or CI), reason="needs Chromium")
DESKTOP, PHONE = 1280, 390


def dom(url: str, width: int = DESKTOP) -> str:
    """A page after its scripts ran, in a window so many pixels wide."""
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [
                *(
                    CHROMIUM,
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-dev-shm-usage",
                    f"--user-data-dir={home}",
                ),
                *(f"--window-size={width},900", "--virtual-time-budget=5000", "--dump-dom", url),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    return done.stdout
