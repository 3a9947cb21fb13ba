"""What is installed from a wheel is whole: the catalog and the MCP configuration are in it, and the command runs."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import CLAUDES
from tests.world import World

ROOT = Path(__file__).parent.parent.parent


def test_the_wheel_is_whole(world: World, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)], check=True
    )
    wheel = next(tmp_path.glob("cclocal-*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("data/models.toml", "data/mcp-local.json", "tiny/model.zip", "tiny/template.gotmpl", "py.typed"):
        assert f"cclocal/{name}" in names
    target = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True)
    done = subprocess.run(
        [sys.executable, "-m", "cclocal", "--list-models", "--json"],
        env={**world.env, "PYTHONPATH": str(target)},
        cwd=world.project,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)[0]["id"] == "tiny"
    where = "import cclocal, cclocal.paths as f; print(cclocal.__file__, f.packaged('models.toml'))"
    found = subprocess.run(
        [sys.executable, "-c", where],
        env={**world.env, "PYTHONPATH": str(target)},
        cwd=world.project,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert found.count(str(target)) == 2


@pytest.mark.wide
def test_a_release_can_be_cut(tmp_path: Path) -> None:
    """`make dist`, with the main job from the wheel in a bare environment."""
    done = subprocess.run(
        [ROOT / "tools/dist.sh", sys.executable, tmp_path, CLAUDES[0].path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the wheel writes a file in a bare environment" in done.stdout
