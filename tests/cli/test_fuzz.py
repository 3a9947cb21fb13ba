"""Whatever is typed, and whatever is in the files: an exit status of ours, one message, and no traceback."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from cclocal import tiny
from cclocal.config_file import COMMANDS
from cclocal.settings import options
from tests.conftest import CI
from tests.world import FAKES, World

PHASES = (Phase.explicit, Phase.generate)
Case = Callable[[list[str], dict[str, str]], dict[str, Any]]

#: Documented in cclocal.errors; 1 is the result of `check` and `doctor`.
OURS = {0, 1, 2, 20, 21, 22, 23, 24, 25, 30, 31, 32, 33, 34, 35, 36, 40, 130, 141}
FLAGS = sorted(word for _, option in options().values() for part in option.declarations for word in part.split("/"))
FLAGS += """--dry-run --json --list-models --version -h --help -p -c --continue --resume -V --list --rm --check --fetch
    --yes -- --tiny --gemma --ram --macos --last""".split()
WORDS = """tiny gemma coder owner/name:Q4 qwen3:4b . .. / ~ 0 -1 8124 64k 1e9 all set unset ctx true strict
    http://127.0.0.1:1 https://[ pypi localhost:1 m.gguf a.json config.json x.gguf dir/m.gguf""".split()
WORDS += ["", "é\udcff"]

texts = st.text(st.characters(exclude_characters="\x00", max_codepoint=0xD7FF), max_size=40)
words = st.one_of(st.sampled_from(FLAGS), st.sampled_from(WORDS), texts, texts.map("--{}".format))
lines = st.lists(words, max_size=6)
commands = st.sampled_from([*COMMANDS, *COMMANDS, *[""] * 8])


MODEL = tiny.gguf()[:20_000]
#: A damage is a place in the file and its new byte; a file ends after so many bytes.
damages = st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=8)
ends = st.one_of(st.integers(0, 3000), st.just(len(MODEL)))


deep = st.integers(1, 100_000).map(lambda n: '{"mcpServers":' * n)
jsons = st.one_of(deep, st.text(max_size=60), st.recursive(st.none() | st.text(max_size=5), st.lists).map(json.dumps))


@pytest.fixture(scope="module")
def case() -> Iterator[Case]:
    """Runs a command line in a folder with some files, where nothing is fetched and no server comes up."""
    root = Path(tempfile.mkdtemp(prefix="cc-", dir="/tmp"))
    world = World(root)
    world.fake_server(die_at_start=3)
    env = {**world.env, "TMPDIR": str(root), "HF_HUB_OFFLINE": "1"}
    program = [sys.executable, "-P", str(FAKES / "cases.py")]
    with subprocess.Popen(program, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:

        def run(argv: list[str], files: dict[str, str]) -> dict[str, Any]:
            assert child.stdin
            assert child.stdout
            child.stdin.write(json.dumps({"argv": argv, "files": files}) + "\n")
            child.stdin.flush()
            found: dict[str, Any] = json.loads(child.stdout.readline())
            return found

        yield run
        assert child.stdin
        child.stdin.close()
    shutil.rmtree(root, ignore_errors=True)


def cases(most: int) -> Callable[[Any], Any]:
    """So many cases with CI=true, a tenth elsewhere: the same in each run of the same tests on the same packages.

    Hypothesis also tries the constants of all modules that are loaded, so the cases of one test run alone may differ.
    A case that fails is shown as it is, not made smaller: each takes a while.
    """
    return settings(
        max_examples=most if CI else most // 10,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=PHASES,
    )


def check(argv: list[str], did: dict[str, Any]) -> None:
    """One message with a status of ours, and nothing that a terminal would obey."""
    about = f"{argv}: {did}"
    assert did["code"] in OURS, about
    assert "Traceback" not in did["err"] + did["out"], about
    if did["code"] not in (0, 1, 130, 141):
        assert len(re.findall("^✗ ", did["err"], re.MULTILINE)) == 1, about
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", did["err"] + did["out"]), about


@pytest.mark.timeout(600)
@cases(1200)
@given(command=commands, rest=lines)
def test_whatever_is_typed(case: Case, command: str, rest: list[str]) -> None:
    argv = [*([command] if command else []), *rest]
    if {"edit", "-f", "--follow", "--self-test"} & {*argv}:
        return
    check(argv, case(argv, {}))


@pytest.mark.timeout(600)
@cases(500)
@example(damage=[(4, 210)], end=len(MODEL), command="plan")  # a version that is not known
@given(damage=damages, end=ends, command=st.sampled_from(["--dry-run", "plan", "list"]))
def test_whatever_is_in_a_model_file(case: Case, damage: list[tuple[int, int]], end: int, command: str) -> None:
    argv = ["--model", "./m.gguf", "--dry-run"] if command == "--dry-run" else [command, "./m.gguf"]
    data = bytearray(MODEL)
    for at, byte in damage:
        data[at] = byte
    check(argv, case(argv, {"m.gguf": data[:end].decode("latin-1")}))


@pytest.mark.timeout(600)
@cases(300)
@given(text=jsons)
def test_whatever_is_in_a_json_file(case: Case, text: str) -> None:
    data = text.encode("utf-8", "surrogatepass").decode("latin-1")
    argv = ["tiny", "--mcp", "a.json", "--dry-run"]
    check(argv, case(argv, {"a.json": data}))
    argv = ["plan", "./"]
    check(argv, case(argv, {"config.json": data}))


def test_a_full_disk_behind_the_output(world: World) -> None:
    for words in (["-h"], ["--list-models"], ["plan", "--json"]):
        with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
            done = subprocess.run(
                [*world.command, *words], env=world.env, stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
        assert done.returncode == 21
        assert done.stderr == "✗ The output cannot be written: No space left on device.\n"
