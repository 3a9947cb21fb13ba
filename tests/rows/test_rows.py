"""A backend and an agent answer for themselves: a small one of each works everywhere, by a row in this folder only."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cclocal import tiny
from cclocal.agents import AGENTS, Agent, look_of
from cclocal.backends import BACKENDS, Backend, Runtime, runtime_of
from cclocal.wires import WIRES, Wire
from tests.planning.recorded import facts
from tests.world import FAKES, World

ROOT = Path(__file__).parents[2]
AGENT = f"""#!{sys.executable}
import json, os, sys, urllib.request
words = {{"role": "user", "content": sys.argv[-1]}}
body = {{"model": os.environ["SMALL_MODEL"], "max_tokens": 9, "messages": [words]}}
request = urllib.request.Request(os.environ["SMALL_URL"] + "/v1/messages", json.dumps(body).encode(),
    {{"content-type": "application/json", "x-api-key": os.environ["SMALL_KEY"]}})
print(json.loads(urllib.request.urlopen(request).read())["type"], sys.argv[1:], sorted(os.environ))
open("proof.txt", "w").write("it works on this machine")
"""


@pytest.fixture
def small(world: World) -> World:
    """A world where the small ones are installed, and nothing else is."""
    (world.bin / "small-agent").write_text(AGENT)
    (world.bin / "small-agent").chmod(0o755)
    world.program("small-server", "llama_server", obeys=True)
    (world.project / "my.gguf").write_bytes(tiny.gguf())
    return world


def run(world: World, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """cclocal with the two rows added, in the project."""
    return subprocess.run(
        [sys.executable, "-m", "tests.rows.main", *words],
        env={**world.env, "PYTHONPATH": str(ROOT), **env},
        cwd=world.project,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )


SMALL = ("--model", "my.gguf", "--backend", "small", "--agent", "small-agent")


def test_a_dry_run(small: World) -> None:
    done = run(small, *SMALL, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["backend"]["name"] == "small"
    assert plan["agent"]["name"] == "small-agent"
    assert {"small is small.", "The small agent talks to itself."} <= set(plan["notes"])
    assert plan["agent"]["env"]["SMALL_KEY"] == "<session key>"
    shown = run(small, *SMALL, "--dry-run").stdout
    assert "small, at small-server, version 1" in shown


def test_a_launch(small: World) -> None:
    done = run(small, *SMALL, "--", "once", "Hello", ANTHROPIC_API_KEY="real")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("message ['once', 'Hello']")
    assert "ANTHROPIC_API_KEY" not in done.stdout
    seeded = json.loads((small.home / ".local/share/cclocal/small-agent/small.json").read_text())
    assert seeded == {"model": "local"}
    state = small.home / ".local/state/cclocal/used.json"
    assert "my.gguf" in state.read_text()


def test_a_check_and_what_it_leaves(small: World) -> None:
    done = run(small, "check", "my.gguf", "--backend", "small", "--agent", "small-agent", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["agent"], report["backend"]) == ("small-agent", "small")
    assert "Small agent works with it." in [row["meaning"] for row in report["rows"]]
    assert "small-agent" in next(iter(json.loads((small.home / ".local/state/cclocal/proofs.json").read_text())))


def test_the_list(small: World) -> None:
    run(small, *SMALL, "--", "once", "Hello")
    rows = json.loads(run(small, "--list", "--json").stdout)["models"]
    assert [Path(row["path"]).name for row in rows] == ["my.gguf"]


def test_what_it_cannot_do_is_refused_in_its_own_words(small: World) -> None:
    done = run(small, *SMALL, "--slots", "2", "--", "once", "x")
    assert done.returncode == 31
    assert "small has one slot" in done.stderr
    assert "install small" in done.stderr
    assert "never reaches" in run(small, *SMALL, "--pass-env", "SMALL_URL").stderr
    other = run(small, "--model", "my.gguf", "--backend", "small", "--agent", "codex", "--", "exec", "x")
    assert other.returncode == 31
    assert "small does not speak the API of this agent (responses)" in other.stderr
    (small.bin / "small-agent").unlink()
    missing = run(small, *SMALL, "--", "once", "x")
    assert missing.returncode == 35
    assert "install small-agent" in missing.stderr


# -- every row


def members(protocol: type) -> set[str]:
    return {name for name in (*vars(protocol), *protocol.__annotations__) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("row", "protocol"),
    [
        *((backend, Backend) for backend in BACKENDS.values()),
        *((agent, Agent) for agent in AGENTS.values()),
        *((wire, Wire) for wire in WIRES.values()),
    ],
    ids=lambda value: getattr(value, "NAME", ""),
)
def test_a_row_has_every_member(row: object, protocol: type) -> None:
    for name in members(protocol):
        assert hasattr(row, name), name
        if inspect.isfunction(wanted := getattr(protocol, name, None)):
            own = list(inspect.signature(getattr(row, name)).parameters)
            assert own == list(inspect.signature(wanted).parameters)[1:], name


@pytest.mark.parametrize("name", BACKENDS)
def test_a_runtime_defines_only_what_is_asked_of_it(name: str) -> None:
    runtime = runtime_of(name)
    assert isinstance(runtime, Runtime)
    assert {member for member in vars(type(runtime)) if not member.startswith("_")} <= set(vars(Runtime))


def test_every_name_of_a_row_leads_somewhere() -> None:
    for backend in BACKENDS.values():
        assert WIRES.keys() >= backend.WIRES
        assert Path(backend.LOG_READER).is_file()
        assert backend.install_hint((), facts("linux-cpu"))
    for name, agent in AGENTS.items():
        assert agent.WIRE in WIRES
        assert inspect.isfunction(look_of(name).look)


def test_every_room_is_on_the_map_and_in_the_contract() -> None:
    """AGENTS.md has a row for each room, and import-linter knows the rooms that must not name a row."""
    rooms = {path.name for path in (ROOT / "src/cclocal").iterdir() if (path / "__init__.py").exists()}
    rows = [line for line in (ROOT / "AGENTS.md").read_text().splitlines() if line.startswith("| `")]
    assert len(rows) <= 17
    for room in rooms:
        assert any(f"`{room}/`" in row for row in rows), room
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (named,) = [set(one["source_modules"]) for one in contracts if one["name"].startswith("Rows:")]
    everything = {f"cclocal.{path.stem}" for path in (ROOT / "src/cclocal").iterdir() if path.suffix in ("", ".py")}
    left_out = {"cclocal.__init__", "cclocal.__main__", "cclocal.__pycache__", "cclocal.backends", "cclocal.agents"}
    assert everything - left_out - {"cclocal.py", "cclocal.data"} == named


def test_no_file_is_long() -> None:
    """A file of over 300 lines does two things. The keeper must be a single file."""
    for path in (ROOT / "src/cclocal").rglob("*.py"):
        lines = len(path.read_text().splitlines())
        assert lines <= 300 or path.name == "keeper.py", f"{path.name} has {lines}"


def test_the_stand_ins_are_programs() -> None:
    assert {path.name for path in FAKES.glob("*.py")} >= {"claude.py", "llama_server.py", "hub.py"}
