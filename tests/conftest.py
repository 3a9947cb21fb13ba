"""The real parts of the suite, and worlds to use them in.

With CI=true every engine form, every agent version and every row of the matrices is run; of agent and engine together
two pairs instead of all four, the newest on the wheel and the oldest on the binary. Elsewhere: the engine of the
wheel, one Claude Code (the one on PATH, else 2.1.331) and one row of each matrix; the summary says what was left out.

Two markers: `wide` is a row that only CI=true runs; `starts` is set here on every test that starts a program of ours
in a user's home of its own. `make quick` runs the others.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from hypothesis import settings

from tests.world import EVERY_CORE, FAKES, HAS_SANDBOX, World, run_on

# a busy machine is no failure
settings.register_profile("cclocal", deadline=None)
settings.load_profile("cclocal")

# nohup and a shell's & start us with these ignored, and everything we start would inherit that
for _number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
    signal.signal(_number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
CI = os.environ.get("CI") == "true"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cclocal-dev"
NEWEST, OLDEST = "2.1.331", "2.1.197"


@dataclass(frozen=True)
class Claude:
    path: Path
    version: str


@dataclass(frozen=True)
class Engine:
    name: str
    binary: Path | None


def _cached_claude(version: str) -> Claude:
    return Claude(CACHE / f"claude-code-{version}" / "bin" / "claude", version)


def _claudes() -> list[Claude]:
    if CI:
        return [_cached_claude(NEWEST), _cached_claude(OLDEST)]
    if found := shutil.which("claude"):
        said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
        return [Claude(Path(found).absolute(), said.split()[0])]
    return [_cached_claude(NEWEST)]


def _engines() -> list[Engine]:
    wheel = Engine("wheel", None)
    return [wheel, Engine("binary", CACHE / "llama-server-0.3.36/build/bin/llama-server")] if CI else [wheel]


CLAUDES, ENGINES = _claudes(), _engines()
#: name → (the backend, the program on PATH, what it is)
BACKENDS = {engine.name: ("llama-server", "llama-server", engine.binary) for engine in ENGINES}
if CI:
    BACKENDS["vllm-mlx"] = ("vllm-mlx", "vllm-mlx", CACHE / "vllm-mlx-0.6.0/bin/vllm-mlx")
    if (OLLAMA := CACHE / "ollama-0.17.4/bin/ollama").exists():
        BACKENDS["ollama"] = ("ollama", "ollama", OLLAMA)
#: The other agents: name → (its program, words that have it run a command once, those that go on with a conversation)
OTHERS: dict[str, tuple[Path, tuple[str, ...], tuple[str, ...]]] = {}
for _name, _version, _once, _again in (
    ("codex", "0.169.0", ("exec",), ("exec", "resume", "--last")),
    ("pi", "0.73.1", ("-p",), ("--continue", "-p")),
):
    _cached = CACHE / f"{_name}-{_version}/node_modules/.bin/{_name}"
    if CI or _cached.exists() or shutil.which(_name):
        OTHERS[_name] = _cached if CI or _cached.exists() else Path(str(shutil.which(_name))), _once, _again


#: Marks a test that needs user namespaces and bubblewrap.
SANDBOXED = pytest.mark.skipif(not HAS_SANDBOX, reason="the strict sandbox does not work here")
#: Marks a row that only CI=true runs.
wide = partial(pytest.param, marks=pytest.mark.wide)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--film", action="store_true", help="write the README's film and pictures anew")


class NamesFailuresAtOnce:
    """Writes the name of a test as soon as it fails: the summary of a long run comes late."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal:
            terminal.ensure_newline()
            terminal.write_line(f"FAILED so far: {report.nodeid}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several test processes its own share of the cores.

    Engines compute with a thread per core and wait for each other in busy loops: two of them on the same cores take
    ten times as long as one after the other.
    """
    run_on(own_cores())
    if "PYTEST_XDIST_WORKER" not in os.environ:
        config.pluginmanager.register(NamesFailuresAtOnce(config))


def own_cores() -> list[int]:
    """The share of this one of several test processes."""
    workers, name = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")), os.environ.get("PYTEST_XDIST_WORKER", "gw0")
    return EVERY_CORE[int(name.removeprefix("gw")) :: workers]


@pytest.fixture(params=CLAUDES, ids=lambda c: c.version)
def claude(request: pytest.FixtureRequest) -> Claude:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=ENGINES, ids=lambda e: e.name)
def engine(request: pytest.FixtureRequest) -> Engine:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def world() -> Iterator[World]:
    """A user's world, and the invariant after every test that used it: nothing is left behind.

    Its path is as short as a user's: on a longer one an engine cannot listen on a unix socket.
    """
    root = Path(tempfile.mkdtemp(prefix="cc-", dir="/tmp"))
    world = World(root)
    try:
        yield world
        world.assert_clean()
    finally:
        world.close()
        run_on(own_cores())
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def real(world: World, claude: Claude, engine: Engine) -> World:
    """The real agent on the real engine."""
    world.real("claude", claude.path)
    world.real("llama-server", engine.binary)
    return world


@pytest.fixture
def scripted(world: World, claude: Claude) -> World:
    """The real agent on a scripted server that records every request."""
    world.real("claude", claude.path)
    world.fake_server()
    return world


def in_a_namespace(*words: str) -> list[str]:
    """What runs a program in namespaces of its own: the arguments of unshare, and what it starts before the program.

    Where none can be made the test is skipped; with CI=true it fails.
    """
    command = ["unshare", *(() if os.geteuid() == 0 else ("--user", "--map-root-user")), *words]
    tried = subprocess.run([*command, "true"], capture_output=True, check=False) if shutil.which("unshare") else None
    if tried is None or tried.returncode != 0:
        if CI:
            pytest.fail(f"unshare does not run here: {tried}")
        pytest.skip(f"no namespace can be made here: {' '.join(words)}")
    return command


def ordinary_user() -> tuple[str, ...]:
    """What runs a program as a user without any capability, who has the files of the user that runs the tests."""
    command = ("unshare", "--user", "--map-user=1234", "--map-group=1234")
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.fail("unshare does not run here") if CI else pytest.skip("unshare does not run here")
    return command


def elsewhere(world: World, hosts: str) -> tuple[str, ...]:
    """What runs a program on a network with a public web server (fakes/elsewhere.py) that has these names."""
    (world.root / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
    server = (str(FAKES / "elsewhere.py"), str(world.root / "hosts"), str(world.record / "asked"))
    return (*in_a_namespace("--net", "--mount"), sys.executable, *server)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what starts programs, and leave the wide matrices to CI."""
    for item in items:
        if {"world", "claude", "engine"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("starts")
    if not CI:
        wide = [item for item in items if item.get_closest_marker("wide")]
        config.hook.pytest_deselected(items=wide)
        items[:] = [item for item in items if item not in wide]
        return
    crossed = [item for item in items if _is_crossed(item)]
    config.hook.pytest_deselected(items=crossed)
    items[:] = [item for item in items if item not in crossed]


def _is_crossed(item: pytest.Item) -> bool:
    """Whether this is one of the two pairs of agent and engine that are left out of a whole product."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    if not {"claude", "engine"} <= params.keys():
        return False
    return bool((params["claude"].version == NEWEST) == (params["engine"].name == ENGINES[-1].name))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not CI:
        terminalreporter.write_line(
            f"left out (CI=true runs them too): a llama-server and an Ollama from source, vllm-mlx, other Claude Codes "
            f"than {CLAUDES[0].version}, system call traces, the wide matrices"
        )
