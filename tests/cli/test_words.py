"""What is typed before “--”: a command, a model, the prompt, words for the agent."""

from __future__ import annotations

import json

import pytest

from cclocal.agents import AGENTS
from cclocal.agents.session import Asked
from cclocal.cli.words import understand
from cclocal.errors import UsageError
from cclocal.session.serve import again
from cclocal.settings import Settings
from tests.conftest import Claude
from tests.world import World

MODELS = ("tiny", "gemma", "coder")


@pytest.mark.parametrize(
    ("typed", "words", "asked"),
    [
        ("gemma", "--model gemma", Asked()),
        ("gemma fix", "--model gemma", Asked("fix")),
        ("--gemma fix", "--gemma", Asked("fix")),
        ("--model gemma fix", "--model gemma", Asked("fix")),
        ("--ctx 64k gemma fix --lean", "--ctx 64k --model gemma --lean", Asked("fix")),
        ("--ctx=64k gemma", "--ctx=64k --model gemma", Asked()),
        ("tiny -p hi", "--model tiny", Asked("hi", prints=True)),
        ("-p hi", "", Asked("hi", prints=True)),
        ("--continue", "", Asked(continues=True)),
        ("gemma -c and-now", "--model gemma", Asked("and-now", continues=True)),
        ("gemma --resume", "--model gemma", Asked(resumes="")),
        ("gemma -r 1234 go", "--model gemma", Asked("go", resumes="1234")),
        ("gemma --resume=1234", "--model gemma", Asked(resumes="1234")),
        # a model is no id of a conversation
        ("--resume gemma", "--model gemma", Asked(resumes="")),
        ("./my.gguf hi", "--model ./my.gguf", Asked("hi")),
        ("owner/name:Q8_0", "--model owner/name:Q8_0", Asked()),
        ("qwen3:4b", "--model qwen3:4b", Asked()),
        ("attach 8124 --resume x", "attach 8124", Asked(resumes="x")),
        ("attach 8124 fix --lean", "attach 8124 --lean", Asked("fix")),
        ("--url http://a:1 fix", "--url http://a:1", Asked("fix")),
        # a command's name comes first, and its words are its own
        ("plan gemma", "plan gemma", Asked()),
        ("stats -c", "stats -c", Asked()),
        ("--lean plan", "--lean plan", Asked()),
        ("--unknown value tiny", "--unknown value tiny", Asked()),
    ],
)
def test_what_is_typed(typed: str, words: str, asked: Asked) -> None:
    found = understand(typed.split(), MODELS)
    assert (" ".join(found.words), found.asked) == (words, asked)


@pytest.mark.parametrize("typed", [["hello"], ["fix the test"], ["gemma", "a", "b"], ["gemma2"]])
def test_a_word_that_is_neither_is_a_mistake(typed: list[str]) -> None:
    with pytest.raises(UsageError):
        understand(typed, MODELS)


@pytest.mark.parametrize(
    ("agent", "asked", "arguments"),
    [
        ("claude", Asked("hi", prints=True), "-p hi"),
        ("claude", Asked("hi", continues=True), "--continue hi"),
        ("claude", Asked("hi", prints=True, resumes="1"), "-p --resume 1 hi"),
        ("claude", Asked("hi", resumes=""), "hi --resume"),
        ("codex", Asked("hi"), "hi"),
        ("codex", Asked("hi", prints=True), "exec hi"),
        ("codex", Asked("hi", prints=True, continues=True), "exec resume --last hi"),
        ("codex", Asked(resumes=""), "resume"),
        ("codex", Asked(resumes="1"), "resume 1"),
        ("codex", Asked("hi", prints=True, resumes=""), "exec resume --last hi"),
        ("pi", Asked("hi", prints=True, continues=True), "-p --continue hi"),
        ("pi", Asked(resumes="1"), "--session 1"),
        ("pi", Asked(resumes=""), "--resume"),
    ],
)
def test_each_agent_has_words_of_its_own_for_it(agent: str, asked: Asked, arguments: str) -> None:
    assert AGENTS[agent].arguments(asked) == tuple(arguments.split())


def test_it_reaches_the_agent(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    done = world.run("tiny", "-p", "hi there", "--lean", "--dry-run", "--json", "--", "--verbose")
    argv = json.loads(done.stdout)["agent"]["argv"]
    assert argv[-3:] == ["-p", "hi there", "--verbose"]


def test_one_natural_line_writes_a_file(scripted: World, claude: Claude) -> None:
    """The tiny model on its real engine, by the line of the first help page."""
    (scripted.bin / "llama-server").unlink()
    done = scripted.run("tiny", "-p", "Create the file hello.txt with content: hi", "--cold")
    assert done.returncode == 0, done.stderr
    assert (scripted.project / "hello.txt").read_text() == "hi"
    again = scripted.run("tiny", "-c", "-p", "Create the file two.txt with content: ho", "--cold")
    assert (scripted.project / "two.txt").read_text() == "ho", again.stderr


@pytest.mark.parametrize(
    ("word", "command"),
    [
        ("gemma", "cclocal gemma"),
        ("8132", "cclocal 8132"),
        ("http://127.0.0.1:8080", "cclocal --url http://127.0.0.1:8080"),
    ],
)
def test_the_line_that_starts_the_same_again_is_understood(word: str, command: str) -> None:
    assert again(word, Settings()) == command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("models",), "Did you mean list?"),
        (("tiny", "gemma"), "“gemma” is a model, and another one was named before it."),
        (("tiny", "--server", "-p", "hi"), "--server starts no agent"),
        (("env",), "Which port?"),
        (("plan", "--ram", "lots"), "--ram takes a whole number of GB, such as 32; “lots” is not one."),
        (("config", "set", "agent", "foo"), "agent is one of claude, codex, pi; “foo” is not."),
        ((".",), "is not a complete MLX model"),
    ],
)
def test_a_mistake_is_named_by_what_was_typed(world: World, words: tuple[str, ...], said: str) -> None:
    done = world.run(*words)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize("word", ["g", "st", "plan g"])
def test_models_and_commands_are_completed(world: World, word: str) -> None:
    typed = f"cclocal {word}"
    done = world.run(COMP_WORDS=typed, COMP_CWORD=str(len(typed.split()) - 1), _CCLOCAL_COMPLETE="complete_bash")
    found = set(done.stdout.split())
    assert found >= ({"stats", "stop"} if word == "st" else {"gemma", "gpt-oss"})


def test_a_mistake_in_the_file_keeps_nobody_from_mending_it(world: World) -> None:
    file = world.home / ".config/cclocal/config.toml"
    file.parent.mkdir(parents=True)
    file.write_text("ctx = 3\n")
    launch = world.run("tiny", "--dry-run")
    assert launch.returncode == 2
    assert f"{file}:1: ctx belongs under [defaults]." in launch.stderr
    assert world.run("config", "path").stdout.strip() == str(file)
    assert world.run("ps").returncode == 0
    assert "ctx belongs under [defaults]" in world.run("config").stderr
    rows = json.loads(world.run("doctor", "--json").stdout)
    assert any("ctx belongs under [defaults]" in row["text"] for row in rows if row["state"] == "problem")


def test_a_mistake_in_a_variable_names_the_variable(world: World) -> None:
    assert "CCLOCAL_CTX takes a whole number" in world.run("tiny", "--dry-run", CCLOCAL_CTX="lots").stderr
    assert "--ctx takes a whole number" in world.run("tiny", "--dry-run", "--ctx", "lots").stderr
