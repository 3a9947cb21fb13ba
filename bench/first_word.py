"""The wait before the first word: python bench/first_word.py [--quick] [--llama-server PATH]

One engine, one machine, one run: the same three-turn task with the real Claude Code on PATH, started nine ways: plain;
with the environment that `ollama launch claude` sets; with the environment and flags of a well-known script; by cclocal
cold; by cclocal with the state of an earlier session; the same in another folder; these three with --lean too. With a
codex on PATH also the first turn of Codex: plain, and by cclocal the same three ways. Printed for each turn: the
prompt's tokens that were evaluated until its first word, and the seconds until then, also as a share of the plain
launch's; and the bytes of the first request. Then, with cclocal alone, what the next turn of a conversation of more
than 20,000 tokens reads: in another session, cold and warm, and after a /compact. --conversation prints only that.

The model is the tiny copy circuit padded to 1.03 GB, so that a token of a prompt costs what it costs with a real model
of that size; --quick takes the bare one, for counts alone. The circuit looks back from the reply for what was asked: a
launch that puts thousands of tokens in between (2.1.329's plain one does) gets chat instead of a file, and that is
told. The peers' server is started with the flags that cclocal uses. Needs a claude on PATH. Some fifteen minutes on two
cores, two with --quick.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent))

from cclocal.backends.llama_server.log_reader import turns as log_turns
from cclocal.prompt_cache.capture import Stub
from cclocal.server.start import free_port
from cclocal.wires import WIRES
from tests.talk import STREAM, spoken, talk
from tests.world import World, wait_for
from tools.tiny_model.as_gguf import gguf

TASKS = (
    "Create the file one.txt with content: the first file",
    "Run the command: wc -c one.txt",
    "Create the file two.txt with content: the second file",
)
CODEX_TASK, EXEC = "Run the command: echo the first file > one.txt", ("exec", "--skip-git-repo-check", "--json")
#: The feed-forward layers of zero that make it 1.03 GB.
PADDED = 106_496
CONTEXT_TOKENS = 65536
ACCEPT = ("--permission-mode", "acceptEdits", "--allowedTools", "Bash")
TIMEOUTS = {
    "API_TIMEOUT_MS": "1800000",
    "CLAUDE_STREAM_IDLE_TIMEOUT_MS": "1800000",
    "API_FORCE_IDLE_TIMEOUT": "0",
}


@dataclass(frozen=True)
class Turn:
    """What one turn took until its first word."""

    evaluated_tokens: int
    seconds: float


@dataclass(frozen=True)
class Way:
    """One way to start Claude Code on a server."""

    name: str
    env: Mapping[str, str]
    flags: tuple[str, ...] = ()


def ways(url: str) -> list[Way]:
    """The peers, as they set things up (facts read from their code and documents)."""
    model = {f"ANTHROPIC_DEFAULT_{tier}_MODEL": "model" for tier in ("OPUS", "SONNET", "HAIKU")}
    at = {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_AUTH_TOKEN": "none", "ANTHROPIC_MODEL": "model", **model}
    return [
        Way("plain claude", at),
        Way(
            "as `ollama launch claude`",
            {**at, "ANTHROPIC_API_KEY": "", "ANTHROPIC_AUTH_TOKEN": "ollama", "CLAUDE_CODE_ATTRIBUTION_HEADER": "0"},
        ),
        Way(
            "as a script with 8 tools",
            {
                **at,
                "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                "DISABLE_TELEMETRY": "1",
                "DISABLE_ERROR_REPORTING": "1",
                "DISABLE_AUTOUPDATER": "1",
            },
            ("--tools", "Bash,Read,Edit,Write,Glob,Grep,WebSearch,WebFetch", "--strict-mcp-config"),
        ),
    ]


def first_bytes(words: list[str], env: Mapping[str, str], project: Path) -> int:
    """The size of the first request, sent to a server that refuses it."""
    with Stub(WIRES["anthropic"].REQUEST_KEYS) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        child = subprocess.Popen(
            [*words, "-p", "Hello"],
            env={**env, "ANTHROPIC_BASE_URL": url, "CLAUDE_CODE_MAX_RETRIES": "0"},
            cwd=project,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        server.heard.wait(20)
        child.kill()
        child.wait()
        return server.size_bytes


def our_bytes(world: World, kind: str, *words: str) -> int:
    """The same for cclocal, which captures it itself, and a plain launch too: "bytes" or "plain_bytes"."""
    told = json.loads(world.run("prompt", "--json", *words).stdout)
    return sum(int(block[kind]) for block in told["blocks"])


def turns(words: list[str], env: Mapping[str, str], project: Path) -> tuple[list[Turn], bool]:
    """The task, turn by turn, and whether its files were written."""
    child = subprocess.Popen(
        words,
        env=dict(env),
        cwd=project,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdin
    assert child.stdout
    found = []
    for task in TASKS:
        began = time.monotonic()
        child.stdin.write(spoken(task))
        child.stdin.flush()
        first: Turn | None = None
        for line in child.stdout:
            event = json.loads(line) if line.startswith("{") else {}
            if event.get("type") == "assistant" and first is None:
                first = Turn(int(event["message"]["usage"]["input_tokens"]), time.monotonic() - began)
            if event.get("type") == "result":
                break
        assert first, f"{words[0]} said nothing"
        found.append(first)
    child.stdin.close()
    child.wait()
    files = {"one.txt": "the first file", "two.txt": "the second file"}
    done = all((project / name).exists() and (project / name).read_text() == text for name, text in files.items())
    for name in files:
        (project / name).unlink(missing_ok=True)
    return found, done


@contextlib.contextmanager
def server(words: list[str], log: Path) -> Iterator[str]:
    """The engine with cclocal's own flags, for those who bring none."""
    port = free_port()
    with log.open("wb") as out:
        child = subprocess.Popen(
            [*words, "--port", str(port)], stdout=out, stderr=out, env={"PATH": os.environ["PATH"]}
        )
    url = f"http://127.0.0.1:{port}"

    def up() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{url}/health", trust_env=False).status_code == 200
        return False

    try:
        wait_for(up, "the engine", 120)
        yield url
    finally:
        child.kill()
        child.wait()


def peer_flags(world: World, model: Path) -> list[str]:
    """What cclocal starts the engine with, but for the key, its address and the kept prompts."""
    told = json.loads(world.run("--model", str(model), "--ctx", str(CONTEXT_TOKENS), "--dry-run", "--json").stdout)
    words = [str(word) for word in told["server"]["argv"]]
    for flag in ("--api-key-file", "--host", "--port", "--slot-save-path"):
        if flag in words:
            at = words.index(flag)
            del words[at : at + 2]
    return words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--conversation", action="store_true")
    options = parser.parse_args()
    claude = shutil.which("claude")
    if not claude:
        sys.exit("needs a claude on PATH")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        model = root / "model.gguf"
        model.write_bytes(gguf() if options.quick else gguf(PADDED))
        world = World(root / "world")
        world.real("claude", Path(claude))
        if options.llama_server:
            world.real("llama-server", options.llama_server)
        rows: list[tuple[str, int, list[Turn], bool]] = []
        ours = [*world.command, "--model", str(model), "--ctx", str(CONTEXT_TOKENS)]
        if options.conversation:
            conversation_rows(world, model)
            world.close()
            return
        with contextlib.ExitStack() as stack:
            for at in range(3):
                url = stack.enter_context(server(peer_flags(world, model), root / f"server-{at}.log"))
                way = ways(url)[at]
                project, home = root / f"project-{at}", root / f"home-{at}"
                project.mkdir()
                home.mkdir()
                seed = {"hasCompletedOnboarding": True, "projects": {str(project): {"hasTrustDialogAccepted": True}}}
                (home / ".claude.json").write_text(json.dumps(seed))
                env = {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8", **TIMEOUTS, **way.env}
                size = first_bytes([claude, *way.flags], env, project)
                rows.append((way.name, size, *turns([claude, *way.flags, *STREAM, *ACCEPT], env, project)))
                show(rows)
                # one engine at a time
                stack.close()
        for name, flags in (("cclocal", []), ("cclocal --lean", ["--lean"])):
            size = our_bytes(world, "bytes", *flags, "--", "-p")
            words = [*ours, *flags]
            rows.append((f"{name}, cold", size, *turns([*words, "--cold", "--", *STREAM], world.env, world.project)))
            show(rows)
            # the session that leaves the state behind
            turns([*words, "--", *STREAM], world.env, world.project)
            rows.append((f"{name}, warm", size, *turns([*words, "--", *STREAM], world.env, world.project)))
            show(rows)
            other = root / f"another project, {name}"
            other.mkdir()
            rows.append((f"{name}, warm, another folder", size, *turns([*words, "--", *STREAM], world.env, other)))
            show(rows)
        if codex := shutil.which("codex"):
            world.real("codex", Path(codex))
            codex_rows(world, Path(codex), model, root)
        conversation_rows(world, model)
        world.close()


def conversation_rows(world: World, model: Path) -> None:
    """A conversation of more than 20,000 tokens, and what its next turn reads."""
    words = ("--model", str(model), "--ctx", str(CONTEXT_TOKENS))
    print("\n| the next turn of a conversation | its tokens | read | of it | seconds |\n|---|---:|---:|---:|---:|")

    def row(name: str, turn: Mapping[str, float]) -> None:
        read, whole = turn["read_tokens"], turn["prompt_tokens"]
        print(f"| {name} | {whole:,} | {read:,} | {read / whole:.1%} | {turn['first_s']:.1f} |", flush=True)

    def newest() -> Mapping[str, float]:
        world.wait_for_end()
        found: list[dict[str, float]] = json.loads(world.run("stats", "--json").stdout)["turns"]
        return found[-1]

    with talk(world, *words) as session:
        for first in (1, 1000, 2000, 3000):
            session.say(f"Run the command: seq {first} {first + 899}")
        session.say("How are you?")
    row("in the same session", newest())
    for name, flags in (("another session, --cold", ["--cold"]), ("another session", [])):
        world.run(*words, *flags, "--", "-p", "--continue", f"How are you in {name}?")
        row(name, newest())
    with talk(world, *words, agent=("--continue",)) as session:
        session.say("/compact")
        session.say("How are you?")
    row("after /compact", newest())


def codex_rows(world: World, codex: Path, model: Path, root: Path) -> None:
    """The same for the first turn of Codex."""
    rows: list[tuple[str, int, list[Turn], bool]] = []
    with server(peer_flags(world, model), log := root / "server-codex.log") as url:
        project, home = root / "project-codex", root / "home-codex"
        project.mkdir()
        home.mkdir()
        provider = f'{{name="local",base_url="{url}/v1",wire_api="responses"}}'
        chosen = ('model_provider="local"', 'model="model"', f"model_providers.local={provider}")
        words = [str(codex), *(word for one in chosen for word in ("-c", one))]
        env = {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        size = our_bytes(world, "plain_bytes", "--agent", "codex")
        rows.append(("plain codex", size, *codex_turn([*words, *EXEC], env, project, log)))
        show(rows)
    ours = [*world.command, "--agent", "codex", "--model", str(model), "--ctx", str(CONTEXT_TOKENS)]
    size, log = our_bytes(world, "bytes", "--agent", "codex"), world.home / ".local/state/cclocal/server.log"
    other = root / "another project, codex"
    other.mkdir()
    for name, flags, folder in (
        ("cold", ["--cold"], world.project),
        ("", [], world.project),
        ("warm", [], world.project),
        ("warm, another folder", [], other),
    ):
        turn = codex_turn([*ours, *flags, "--", *EXEC], world.env, folder, log)
        # the one without a name leaves the state behind
        if name:
            rows.append((f"cclocal --agent codex, {name}", size, *turn))
            show(rows)


def codex_turn(words: Sequence[str], env: Mapping[str, str], project: Path, log: Path) -> tuple[list[Turn], bool]:
    """The first task, by `codex exec`, and whether its file was written."""
    began, first_s = time.monotonic(), 0.0
    with subprocess.Popen(
        [*words, CODEX_TASK],
        env=dict(env),
        cwd=project,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stdout
        for line in child.stdout:
            if not first_s and ('"agent_message"' in line or '"command_execution"' in line):
                first_s = time.monotonic() - began
    read = [turn for turn in log_turns(log.read_text("utf-8", "replace"))[0] if turn["written_tokens"] > 1]
    file = project / "one.txt"
    done = file.exists() and file.read_text() == "the first file\n"
    file.unlink(missing_ok=True)
    return [Turn(read[0]["read_tokens"], first_s)], done


def show(rows: list[tuple[str, int, list[Turn], bool]]) -> None:
    """The newest row, under a heading if it is the first."""
    if len(rows) == 1:
        columns = (
            "started",
            "bytes sent",
            "tokens read for turn 1",
            "2",
            "3",
            "of plain",
            "seconds, turn 1",
            "2",
            "3",
            "of plain",
        )
        print("|", " | ".join((*columns, "files")), "|")
        print("|---|" + "---:|" * (len(columns) - 1) + "---|")
    name, size, found, done = rows[-1]
    plain = rows[0][2][0]
    tokens = " | ".join(f"{turn.evaluated_tokens:,}" for turn in found)
    seconds = " | ".join(f"{turn.seconds:.1f}" for turn in found)
    share, faster = found[0].evaluated_tokens / plain.evaluated_tokens, found[0].seconds / plain.seconds
    none = " | –" * (len(TASKS) - len(found))
    print(
        f"| {name} | {size:,} | {tokens}{none} | {share:.0%} | {seconds}{none} | {faster:.0%} "
        f"| {'yes' if done else 'no'} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
