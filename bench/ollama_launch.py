"""The same Ollama, the same model, the same task: `ollama launch claude` against `cclocal --backend ollama`.

    python bench/ollama_launch.py [OLLAMA]

A daemon with its default settings, and one that was told 65,536 tokens; the model is the tiny copy circuit, so no speed
of a real model is measured, only what is sent, what is served and what comes of it. Each runs the real Claude Code with
`-p --output-format json` in a home and a project of its own. Printed: whether the file was written, the prompt's tokens
(as sent, from the daemon's log where it cut them, else as counted), the window that Claude Code believes in, the window
that Ollama served, seconds. Needs OLLAMA (tools/ollama.sh) and a claude on PATH. Some five minutes on two cores.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent.parent))

from cclocal import tiny
from cclocal.server.start import free_port

CONTENT = "it works"
PROMPT = f"Create the file proof.txt with content: {CONTENT}"
MODEL = "mine"
LIMIT_S = 900


@dataclass(frozen=True)
class Outcome:
    """What came of one run."""

    written: bool
    sent_tokens: int
    believed_tokens: int
    served_tokens: int
    seconds: float


class Daemon:
    """An Ollama of its own, with its log and the largest window it was seen to serve."""

    def __init__(self, program: Path, root: Path, context_tokens: int | None) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.host = self.url.removeprefix("http://")
        self.log, self.served = root / "ollama.log", 0
        env = {"HOME": str(root), "PATH": os.environ["PATH"], "OLLAMA_HOST": self.host}
        env |= {"OLLAMA_CONTEXT_LENGTH": str(context_tokens)} if context_tokens else {}
        with self.log.open("wb") as out:
            self.process = subprocess.Popen([program, "serve"], env=env, stdout=out, stderr=out, start_new_session=True)
        self.client = httpx.Client(base_url=self.url, trust_env=False, timeout=60)
        while True:
            try:
                self.client.get("/api/version")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        file = tiny.build(root)
        digest = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
        self.client.post(f"/api/blobs/{digest}", content=file.read_bytes()).raise_for_status()
        body = {"model": MODEL, "files": {file.name: digest}, "template": tiny.ollama_template(), "stream": False}
        self.client.post("/api/create", json=body | {"parameters": {"temperature": 0}}).raise_for_status()
        self.watching = True
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self.watching:
            try:
                rows = self.client.get("/api/ps").json().get("models") or []
            except (httpx.HTTPError, ValueError):
                rows = []
            self.served = max([self.served, *(int(row.get("context_length") or 0) for row in rows)])
            time.sleep(0.2)

    def sent_tokens(self) -> int:
        """The largest prompt that was cut; 0 if none was."""
        found = re.findall(r"truncating input prompt.* prompt=(\d+)", self.log.read_text("utf-8", "replace"))
        return max(map(int, found), default=0)

    def end(self) -> None:
        self.watching = False
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def run(words: list[str], daemon: Daemon, root: Path, path: str) -> Outcome:
    project, home = root / "project", root / "home"
    for folder in (project, home):
        folder.mkdir()
    env: Mapping[str, str] = {
        "HOME": str(home),
        "PATH": path,
        "LANG": "C.UTF-8",
        "OLLAMA_HOST": daemon.host,
        "OLLAMA_MODELS": str(root / ".ollama/models"),
    }
    began = time.monotonic()
    done = subprocess.run(
        [*words, "-p", PROMPT, "--output-format", "json", *(() if "launch" not in words else ACCEPT)],
        env=env,
        cwd=project,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    seconds = time.monotonic() - began
    told = last_json(done.stdout)
    usage = told.get("usage") or {}
    counted = int(usage.get("input_tokens") or 0) + int(usage.get("cache_read_input_tokens") or 0)
    turns = max(1, int(told.get("num_turns") or 1))
    windows = [int(row.get("contextWindow") or 0) for row in (told.get("modelUsage") or {}).values()]
    written = project / "proof.txt"
    return Outcome(
        written=written.is_file() and written.read_text().strip() == CONTENT,
        sent_tokens=daemon.sent_tokens() or counted // turns,
        believed_tokens=max(windows, default=0),
        served_tokens=daemon.served,
        seconds=seconds,
    )


#: What cclocal allows by itself: without it the peer would stop at the question.
ACCEPT = ("--permission-mode", "acceptEdits")


def last_json(text: str) -> dict[str, Any]:
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                return dict(json.loads(line))
            except ValueError:
                continue
    return {}


def main() -> None:
    default = Path.home() / ".cache/cclocal-dev/ollama-0.17.4/bin/ollama"
    program = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    claude = shutil.which("claude")
    if not program.exists() or not claude:
        sys.exit("needs OLLAMA (tools/ollama.sh) and a claude on PATH")
    path = f"{program.parent}:{Path(claude).parent}:/usr/bin:/bin"
    print("| started by | Ollama's own window | file written | prompt sent | Claude Code believes | served | seconds |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for context in (None, 65536):
        for name, words in (
            ("ollama launch claude", [str(program), "launch", "claude", "--model", MODEL, "--"]),
            (
                "cclocal --backend ollama",
                [sys.executable, "-P", "-m", "cclocal", "--backend", "ollama", "--model", MODEL, "--"],
            ),
        ):
            with tempfile.TemporaryDirectory() as folder:
                daemon = Daemon(program, Path(folder), context)
                try:
                    found = run(words, daemon, Path(folder), path)
                finally:
                    daemon.end()
            print(
                f"| `{name}` | {context or 4096:,} | {'yes' if found.written else 'NO'} | {found.sent_tokens:,} "
                f"| {found.believed_tokens:,} | {found.served_tokens:,} | {found.seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
