"""The command line as a person meets it."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cclocal.config_file import COMMANDS
from tests.world import World

#: What a look at the plan must not import: each takes a tenth of a second or more.
HEAVY = {"httpx", "huggingface_hub", "prompt_toolkit", "xllamacpp"}


def modules_of(world: World, *args: str) -> set[str]:
    """Names of the top-level modules that a run of cclocal imports."""
    code = (
        "import sys, atexit, cclocal.cli.main\n"
        "atexit.register(lambda: print('\\nMODULES', *{m.split('.')[0] for m in sys.modules}))\n"
        f"cclocal.cli.main.main({list(args)!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=world.env, cwd=world.project, capture_output=True, text=True, check=True
    )
    return set(done.stdout.rsplit("MODULES", 1)[1].split())


@pytest.mark.parametrize(
    "args", [["-h"], ["--list-models"], ["--tiny", "--dry-run"], ["--gemma", "--dry-run"], ["--version"]], ids=str
)
def test_looking_imports_nothing_heavy(world: World, args: list[str]) -> None:
    world.fake_claude()
    world.fake_server()
    assert not HEAVY & modules_of(world, *args)


@pytest.mark.parametrize("name", sorted(HEAVY))
def test_each_heavy_module_is_one_that_could_be_imported(name: str) -> None:
    assert importlib.util.find_spec(name)


def test_help_does_not_even_import_pydantic_or_psutil(world: World) -> None:
    assert not {"pydantic", "psutil"} & modules_of(world, "-h")


def test_the_first_help_page_is_one_screen(world: World) -> None:
    done = world.run("-h")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) <= 28
    assert max(map(len, lines)) <= 80
    for words in ("gemma-light", "coder7b", "cclocal tiny -p", "--ctx TOKENS", "--dry-run", "cclocal --help"):
        assert words in done.stdout
    assert "\x1b" not in done.stdout


def test_the_whole_help_shows_every_option_and_example(world: World) -> None:
    shown = world.run("--help", COLUMNS="110").stdout
    for words in ("--gemma-light", "--light", "cclocal tiny -p", "config.toml", "--pass-env", "logs", "--cpu-moe"):
        assert words in shown
    assert "<bool>" not in shown


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"help", "version"}))
def test_every_command_has_two_examples(world: World, command: str) -> None:
    shown = world.run(command, "-h", COLUMNS="110").stdout
    examples = shown[shown.index("Examples") :]
    assert examples.count("cclocal ") >= 2
    assert "<bool>" not in shown


def test_version(world: World) -> None:
    assert {world.run(word).stdout for word in ("--version", "-V", "version")} == {"cclocal 0.1.0\n"}


def test_help_is_a_command_too(world: World) -> None:
    assert world.run("help").stdout == world.run("-h").stdout
    assert "--macos" in world.run("help", "plan").stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--gema"], "There is no option --gema. Did you mean --gemma?\n"),
        (["gema"], "“gema” is neither a command nor a model. Did you mean gemma?\n"),
        (["fix", "it"], "“fix” is neither a command nor a model."),
        (["tiny", "fix", "it"], "There are two prompts"),
        (["--model", "gema"], "Perhaps you meant gemma"),
        (["--model", "none.gguf"], "There is no file "),
        (["--tiny", "--gemma"], "Choose one model"),
        (["--tiny", "--model", "gemma"], "Choose one model"),
        (["--tiny", "--verbose", "x"], "cclocal --tiny -- --verbose x"),
        (["--json"], "--json goes with --dry-run"),
        (["--tiny", "--safe"], "--no-safe"),
        (["--tiny", "--pass-env", "CEREBRAS_API_KEY"], "never reaches the agent"),
        (["12", "--ctx", "x"], "--ctx takes a whole number of tokens, such as 65536 or 64k"),
        (["--tiny", "--port", "x"], "--port"),
        (["--tiny", "--port", "99999"], "--port"),
        (["--tiny", "--ctx", "8192"], "too small"),
        (["--tiny", "--ctx", "999999"], "is more than that"),
        (["--tiny", "--backend", "vlm"], "no backend “vlm”"),
        (["--tiny", "--pass-env", "ANTHROPIC_API_KEY"], "never reaches the agent"),
        (["--tiny", "--pass-env", "AWS_PROFILE"], "never reaches the agent"),
        (["--tiny", "--pass-env", "https_proxy"], "never reaches the agent"),
        (["--tiny", "--pass-env", "A=b"], "not the name"),
        ([], "no terminal to ask on"),
        (["--", "-p", "hi"], "no terminal to ask on"),
        (["logs"], "no server log yet"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_said_in_words_with_status_2(world: World, args: list[str], words: str) -> None:
    world.fake_claude()
    world.fake_server()
    done = world.run(*args)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_file_that_is_no_gguf(world: World) -> None:
    (world.project / "x.gguf").write_text("hello")
    done = world.run("--model", "x.gguf")
    assert done.returncode == 2
    assert "does not begin with GGUF" in done.stderr


def test_no_home(world: World) -> None:
    del world.env["HOME"]
    done = world.run("--tiny")
    assert done.returncode == 24
    assert "HOME is not set" in done.stderr


def test_a_home_that_cannot_be_written(world: World) -> None:
    """/proc stands for a read-only disk: nobody can make a folder there, not even root."""
    world.fake_claude()
    world.fake_server()
    done = world.run("--tiny", HOME="/proc")
    assert done.returncode == 24
    assert "Cannot" in done.stderr


def test_a_folder_that_is_gone(world: World) -> None:
    world.fake_claude()
    world.fake_server()
    done = subprocess.run(
        f"mkdir gone && cd gone && rmdir ../gone && {' '.join(world.command)} --tiny",
        shell=True,
        env=world.env,
        cwd=world.project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 24
    assert "no longer exists" in done.stderr


def test_no_model_can_take_an_option_of_ours() -> None:
    from cclocal.config_file import reserved

    files = (Path(__file__).parents[2] / "src/cclocal/cli").glob("*.py")
    text = "\n".join(file.read_text() for file in files)
    ours = {name for names in re.findall(r'"--([a-z-]+(?:/--[a-z-]+)?)"', text) for name in names.split("/--")}
    # these belong to one command alone
    assert ours - {"follow", "lines", "self-test", "tune", "no-tune", "gpus", "nodes"} <= reserved()


def test_the_plan_for_scripts(world: World) -> None:
    world.fake_claude()
    world.fake_server()
    done = world.run("--gemma", "--dry-run", "--json", "--", "-p", "hi", AWS_SECRET_ACCESS_KEY="x")
    plan = json.loads(done.stdout)
    assert plan["model"]["id"] == "gemma"
    assert plan["context_tokens"] == 65536
    assert plan["fetch"]["files"] == ["gemma-4-26B-A4B-it-UD-Q4_K_M.gguf", "mmproj-F16.gguf"]
    assert plan["agent"]["argv"][-2:] == ["-p", "hi"]
    assert "AWS_SECRET_ACCESS_KEY" in plan["agent"]["removed"]
    assert plan["agent"]["env"]["ANTHROPIC_AUTH_TOKEN"] == "<session key>"
    assert plan["sources"]["model"] == "command line"


def test_a_dry_run_starts_and_writes_nothing_but_its_memory(world: World) -> None:
    world.fake_claude()
    world.fake_server()
    done = world.run("--tiny", "--dry-run")
    assert done.returncode == 0
    assert "reached by the agent at http://127.0.0.1:<free port>" in done.stdout
    assert "<session key>" in done.stdout
    files = [p for p in world.home.rglob("*") if p.is_file()]
    assert [p.name for p in files] == ["probes.json"]
    assert not (world.record / "pids.json").exists()


def test_the_catalog_for_scripts(world: World) -> None:
    rows = json.loads(world.run("--list-models", "--json").stdout)
    assert [row["id"] for row in rows if row["default"]] == ["gemma-light"]
    assert rows[1]["flags"] == ["--gemma-light", "--light"]
    assert (rows[1]["context_tokens"], rows[1]["native_context_tokens"]) == (65536, 131072)


def test_the_catalog_for_people_has_room_for_its_notes(world: World) -> None:
    """At 80 columns without a column of names; the speed of a model's last session here stands before its note."""
    logs = world.home / ".local/state/cclocal/logs"
    logs.mkdir(parents=True)
    (logs / "server-01234567.log").write_text(
        "[keeper] 12:00:00 Model gemma-light\n"
        "1.0.0.1 I slot   operator(): id  0 | task 8 | new prompt, n_ctx_slot = 32768, n_keep = 0, task.n_tokens = 9\n"
        "1.0.0.2 I slot print_timing: id  0 | task 8 | prompt eval time =  96.62 ms / 9 tokens\n"
        "1.0.0.3 I slot print_timing: id  0 | task 8 |        eval time = 1000.00 ms / 42 tokens\n"
    )
    narrow = world.run("--list-models", COLUMNS="80").stdout
    assert "Gemma 4 E4B: 42" in narrow
    assert max(len(line) for line in narrow.splitlines()) <= 80
    assert len(narrow.splitlines()) < 120
    wide = world.run("--list-models", COLUMNS="130").stdout
    assert re.search(r"Gemma 4 E4B +5.0 GB +64k of 128k +👁 +\d+ tokens/s here: the default", wide)
    planned = world.run("plan", "gemma-light").stdout
    assert re.search(r"wrote \d+ tokens/s in its last session here", planned)
    # of another machine nothing is known
    assert "tokens/s" not in world.run("plan", "gemma-light", "--ram", "24").stdout


def test_colours_only_where_wanted(world: World) -> None:
    assert "\x1b[" not in world.run("--list-models").stdout
    assert "\x1b[" not in world.run("--gema").stderr


def test_the_c_locale_is_no_obstacle(world: World) -> None:
    done = world.run("--gema", LANG="C", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 2
    assert "UnicodeEncodeError" not in done.stderr
    assert world.run("-h", LANG="C", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0").returncode == 0
    assert world.run("--list-models", LANG="C", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0").returncode == 0


def test_completion_knows_the_models(world: World) -> None:
    done = world.run(
        _CCLOCAL_COMPLETE="complete_bash",
        COMP_WORDS="cclocal --gem",
        COMP_CWORD="1",
        _TYPER_COMPLETE_ARGS="cclocal --gem",
    )
    assert "--gemma-light" in done.stdout.split()


def test_the_memory_of_a_file_without_starting_anything(world: World) -> None:
    from cclocal import tiny

    world.fake_server()
    built = tiny.build(world.project)
    done = world.run("plan", str(built), "--ctx", "32768", "--kv", "f16", "--slots", "1", "--ubatch", "512", "--json")
    told = json.loads(done.stdout)
    assert told["kv_bytes"] == 32768 * 6 * 512 * 2
    assert told["state_bytes"] == 0
    assert told["need_bytes"] == sum(told[f"{p}_bytes"] for p in ("weights", "kv", "state", "compute", "other"))
    assert told["need_bytes"] < told["budget_bytes"]
    assert (told["verdict"], told["max_context_tokens"], told["bound"]) == ("roomy", 131072, False)
    assert not (world.record / "pids.json").exists()
    half = json.loads(world.run("plan", str(built), "--ctx", "32768", "--kv", "q8_0", "--json").stdout)
    assert half["kv_bytes"] == told["kv_bytes"] * 34 // 64


def test_the_memory_of_the_catalog(world: World) -> None:
    world.fake_server()
    rows = json.loads(world.run("plan", "--ram", "24", "--macos", "26", "--json").stdout)
    # nothing is on disk, and all of it is planned
    verdicts = {row["model"]: row["verdict"] for row in rows}
    assert verdicts.items() >= {"tiny": "roomy", "gpt-oss": "roomy", "gemma": "too_big", "coder": "too_big"}.items()
    # models whose dimensions are not published: nothing is made up
    unknown = [row for row in rows if row["verdict"] == "unknown"]
    assert {row["model"] for row in unknown} == {
        *("gemma-31b", "gpt-oss-120b", "muse-glimmer", "qwen38-next", "deepseek-flash", "glm-flash")
    }
    assert all(row["max_context_tokens_f16"] is None for row in unknown)
    for row in rows:
        if row not in unknown:
            assert row["max_context_tokens_q8_0"] >= row["max_context_tokens_f16"]
    assert "largest, f16" in world.run("plan").stdout
    assert world.run("plan", "tiny", "--kv", "q9").returncode == 2
    assert "Perhaps you meant gemma" in world.run("plan", "gema").stderr


def test_a_plan_for_another_machine(world: World) -> None:
    small = json.loads(world.run("plan", "gemma", "--no-vision", "--ram", "24", "--macos", "15", "--json").stdout)
    newer = json.loads(world.run("plan", "gemma", "--no-vision", "--ram", "24", "--macos", "26", "--json").stdout)
    large = json.loads(world.run("plan", "gemma", "--no-vision", "--ram", "64", "--macos", "26", "--json").stdout)
    assert [row["verdict"] for row in (small, newer, large)] == ["too_big", "too_big", "roomy"]
    assert small["max_context_tokens"] < newer["max_context_tokens"] < large["max_context_tokens"] == 262144
    assert {"raise", "both"} & {remedy["name"] for remedy in newer["remedies"]}
    shown = world.run("plan", "gemma", "--no-vision", "--ram", "24", "--macos", "26").stdout
    for words in ("weights", "KV cache", "left over", "│ budget 16.8 GiB", "What would help", "wired limit"):
        assert words in shown
    table = world.run("plan", "--ram", "16", "--macos", "26").stdout
    assert "--gemma " in table
    assert "none" in table
    assert world.run("plan", "gemma", "--ram", "24", "--macos", "tahoe").returncode == 2


def test_a_file_is_a_model_too(world: World, tmp_path: Path) -> None:
    from cclocal import tiny

    file = tmp_path / "x.gguf"
    file.write_bytes(tiny.gguf())
    words = ("--ctx", "32768", "--kv", "f16", "--slots", "1", "--ubatch", "512", "--json")
    told = json.loads(world.run("plan", str(file), *words).stdout)
    assert told["kv_bytes"] > 0
    assert told["need_bytes"] == sum(told[f"{part}_bytes"] for part in ("weights", "kv", "state", "compute", "other"))
    assert told["bound"] is False
    assert {"budget_bytes", "max_context_tokens", "verdict"} <= told.keys()
    file.write_bytes(b"GGUF" + b"\xff" * 99)
    broken = world.run("plan", str(file))
    assert broken.returncode == 2
    assert "cannot be used" in broken.stderr
    assert "Traceback" not in broken.stderr
    assert world.run("plan", str(tmp_path / "none.gguf")).returncode == 2


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "tiny", "--ctx", "131328"),
        ("plan", "tiny", "--macos", "²"),
        ("plan", ""),
        ("plan", "./x-00001-of-00000.gguf"),
        ("plan", "no such/model"),
        ("--kv", "q8_0", "plan", "tiny"),
        ("--gemma", "logs"),
    ],
)
def test_plans_that_make_no_sense(world: World, words: tuple[str, ...]) -> None:
    world.fake_server()
    done = world.run(*words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_file_that_is_not_whole_is_said(world: World, tmp_path: Path) -> None:
    from cclocal import tiny

    world.fake_server()
    file = tmp_path / "half.bin"
    file.write_bytes(tiny.gguf()[:1_000_000])
    done = world.run("plan", str(file))
    assert done.returncode == 2
    assert "are there" in done.stderr


def test_a_plan_goes_by_the_users_defaults(world: World) -> None:
    world.fake_server()
    config = world.home / ".config/cclocal/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[defaults]\nkv = "q8_0"\nctx = 16384\n')
    told = json.loads(world.run("plan", "tiny", "--json").stdout)
    assert (told["kv_type"], told["context_tokens"]) == ("q8_0", 16384)
    told = json.loads(world.run("plan", "tiny", "--json", CCLOCAL_KV="q4_0").stdout)
    assert told["kv_type"] == "q4_0"


def test_numbers_are_never_cut(world: World) -> None:
    world.fake_server()
    narrow = world.run("plan", COLUMNS="40").stdout
    assert "262,144" in narrow
    assert "…" not in narrow
    assert "largest context" in world.run("plan", "gemma", COLUMNS="40").stdout


def test_a_damaged_memory_of_earlier_starts_is_no_failure(world: World) -> None:
    world.fake_server()
    state = world.home / ".local/state/cclocal/memory.json"
    state.parent.mkdir(parents=True)
    for text in ('{"corrections": [1]}', '{"last": {}}', "[]", "nonsense"):
        state.write_text(text)
        assert world.run("plan", "tiny").returncode == 0
        assert world.run("plan", "--last").returncode == 2


def test_nothing_was_started_yet(world: World) -> None:
    done = world.run("plan", "--last")
    assert done.returncode == 2
    assert "No start has been measured yet" in done.stderr


def test_every_lasting_default_is_an_option_and_a_variable(world: World) -> None:
    from cclocal.settings import flags, lasting

    shown = world.run("--help", COLUMNS="200").stdout
    for name in lasting():
        assert f"--{flags(name)[0]}" in shown
        assert f"CCLOCAL_{name.upper()}" in shown


def test_a_ctrl_c_that_python_loses_in_a_callback_is_sent_again() -> None:
    program = (
        "import sys, time\n"
        "from cclocal.cli.main import press_again\n"
        "sys.unraisablehook = press_again\n"
        "class Callback:\n"
        "    def __del__(self):\n"
        "        raise KeyboardInterrupt\n"
        "try:\n"
        "    Callback()\n"
        "    time.sleep(20)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=15, check=False)
    assert done.returncode == 130, done.stderr
    assert not done.stderr
