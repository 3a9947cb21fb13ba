"""The fixed part of an agent's prompt, read once and kept: the next session's first word comes in seconds.

The part is what two rehearsed sessions have in common, token by token. llama.cpp compares tokens itself, so a state
that does not fit a prompt is only of less use, never wrong; that it is of this very model, engine and kind of cache is
in its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from cclocal.agents import Rehearsal
from cclocal.backends.llama_server import spec as llama_server
from cclocal.command import SERVER_NAMES, Command
from cclocal.errors import CclocalError, FolderError, ServerDiedError
from cclocal.paths import Folders, make_folder, read_table, write_private
from cclocal.planning.plan import Plan
from cclocal.prompt_cache import prefill as primer
from cclocal.prompt_cache.capture import Request, first_requests, system_text
from cclocal.server.readiness import Waiting, check_alive, last_line, patiently
from cclocal.server.start import Held

if TYPE_CHECKING:
    import httpx

#: Less than this is read faster than it is restored.
LEAST_TOKENS = 512
#: With less free than this nothing is added to the disk.
SPARE_BYTES = 4 * 10**9
#: All states together; the least recently used go first.
CAP_BYTES = 8 * 10**9
_LIMIT_S = 30.0
#: So long is waited for a rehearsal once the server is ready.
_PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Kept:
    """A state on disk: how many tokens it holds, and a digest of them."""

    path: Path
    size_bytes: int
    tokens: int
    digest: str


class Warmth:
    """Brings a session's server its fixed prompt. Made before the server is: a rehearsal takes a second or two.

    Raises FolderError if there is no place to keep anything.
    """

    def __init__(self, bound: Plan, rehearsal: Rehearsal, folders: Folders, environ: Mapping[str, str]) -> None:
        self.folders, self.environ = folders, environ
        self.requests: list[Request] = []
        self.stopped = threading.Event()
        try:
            make_folder(folders.warm if bound.warm_saves else folders.cache)
        except FolderError as error:
            error.hint = "--cold keeps nothing"
            raise
        about = f"{rehearsal.about} | {bound.warm_key} | {_identity(bound)}"
        self.about, self.name = about, hashlib.sha256(about.encode()).hexdigest()[:24]
        self.thread = threading.Thread(target=self._rehearse, args=(rehearsal,), daemon=True)
        self.thread.start()

    @classmethod
    def of(cls, bound: Plan, folders: Folders, environ: Mapping[str, str]) -> Warmth | None:
        """For a session whose prompt is kept; None for any other."""
        return cls(bound, bound.rehearsal, folders, environ) if bound.rehearsal else None

    def _rehearse(self, rehearsal: Rehearsal) -> None:
        with contextlib.suppress(CclocalError, OSError):
            self.requests = first_requests(rehearsal, self.folders, self.environ, self.stopped)

    def close(self) -> None:
        """End a rehearsal that is still going on."""
        self.stopped.set()
        self.thread.join(_PATIENCE_S)

    def bring(self, bound: Plan, held: Held, on_wait: Callable[[Waiting], None]) -> str | None:
        """Restore the state, or have it made. Returns what to say of it. Raises ServerDiedError.

        Made before the agent is there: a save that had to wait for a slot would leave the agent's own requests waiting
        behind it for ever (llama.cpp takes up one of those that wait when a slot falls free, and a save frees none).
        """
        import httpx

        self.thread.join(_PATIENCE_S)
        self.close()
        endpoint = bound.readiness.endpoint
        headers = {"authorization": f"Bearer {endpoint.key}"}
        if bound.backend != llama_server.NAME:
            # nothing can be kept, and its tokens are its own affair: it is asked what the agent will ask
            for request in self.requests[:1]:
                # vllm-mlx keeps what it read for streams alone
                body = {**request, "model": endpoint.model, "max_tokens": 1, "stream": True}
                self._ask_in_background(bound, "/v1/messages", body)
            return None
        try:
            with httpx.Client(base_url=endpoint.url, headers=headers, trust_env=False, timeout=_LIMIT_S) as client:
                return self._bring(client, bound, held, on_wait)
        except ServerDiedError:
            raise
        except (
            *(httpx.HTTPError, CclocalError, subprocess.SubprocessError, OSError),
            *(ValueError, KeyError, TypeError, AttributeError),
        ):
            # the keeper tells of a server's end a moment after its connections are cut
            held.poll(_PATIENCE_S / 5)
            check_alive(held)
            # a session without it is a slower one
            return None

    def _bring(self, client: httpx.Client, bound: Plan, held: Held, on_wait: Callable[[Waiting], None]) -> str | None:
        tokens = _common([_tokens(client, request) for request in self.requests])
        if not LEAST_TOKENS <= len(tokens) < bound.window_tokens:
            return None
        state = self._valid() if bound.warm_saves else None
        # a template may put the date in front: then yesterday's is of no use
        if state and state.digest == _digest(tokens) and self._restore(client, state):
            return f"{state.tokens:,} tokens of the prompt are kept from an earlier session."
        body = {"prompt": tokens, "n_predict": 0, "cache_prompt": True, "id_slot": 0}
        if not bound.warm_saves or _free_bytes(self.folders) < SPARE_BYTES:
            # nobody waits for what nothing is left of
            self._ask_in_background(bound, "/completion", body)
            return None
        began = time.monotonic()

        def look() -> None:
            check_alive(held)
            phase = f"reading the {len(tokens):,} tokens of the prompt that stay the same, once"
            on_wait(Waiting(phase, time.monotonic() - began, last_line(held.log)))

        patiently(lambda: client.post("/completion", json=body, timeout=None).raise_for_status(), look)
        self._save(client, tokens)
        return None

    def _save(self, client: httpx.Client, tokens: list[int]) -> None:
        """Keep the state, with what is needed to trust it later."""
        folder = self.folders.warm
        part = folder / f"{self.name}.{os.getpid()}.part"
        try:
            saved = client.post("/slots/0?action=save", json={"filename": part.name}, timeout=None)
            if saved.raise_for_status().json()["n_saved"] != len(tokens):
                return
            part.chmod(0o600)
            with part.open("rb") as file:
                checksum = hashlib.file_digest(file, "sha256").hexdigest()
            note = {
                "size_bytes": part.stat().st_size,
                "sha256": checksum,
                "tokens": len(tokens),
                "digest": _digest(tokens),
                "about": self.about,
            }
            part.replace(folder / f"{self.name}.bin")
            # last: a state with a note is whole
            write_private(folder / f"{self.name}.json", json.dumps(note))
        finally:
            part.unlink(missing_ok=True)
        make_room(self.folders)

    def _ask_in_background(self, bound: Plan, path: str, body: Mapping[str, Any]) -> None:
        """Have it read for whoever types slower than it is read; print mode has asked before it could be done."""
        if not bound.draws:
            return
        endpoint = bound.readiness.endpoint
        # this process will be the agent
        told = {"url": endpoint.url, "key": endpoint.key, "path": path, "body": body, "agent": os.getpid()}
        # a session without it is a slower one
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                [sys.executable, "-I", "-S", primer.__file__],
                input=json.dumps(told).encode(),
                env=Command((), keep=frozenset(SERVER_NAMES)).environ(self.environ),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
                timeout=_LIMIT_S,
            )

    def _valid(self) -> Kept | None:
        """The state of this session's name, if it is what was written."""
        path = self.folders.warm / f"{self.name}.bin"
        told = read_table(path.with_suffix(".json"))
        try:
            with path.open("rb") as file:
                whole = path.stat().st_size == told.get("size_bytes")
                if whole and hashlib.file_digest(file, "sha256").hexdigest() == told.get("sha256"):
                    return Kept(path, path.stat().st_size, int(told["tokens"]), str(told["digest"]))
        except (OSError, KeyError, ValueError, TypeError):
            return None
        return None

    def _restore(self, client: httpx.Client, state: Kept) -> bool:
        reply = client.post("/slots/0?action=restore", json={"filename": state.path.name})
        if reply.status_code != 200:
            # damaged in a way that a checksum does not tell
            state.path.with_suffix(".json").unlink(missing_ok=True)
            return False
        # which is used least is told by its time
        state.path.touch()
        return True


def _identity(bound: Plan) -> str:
    """The model's file, and a template of one's own: another one of the same name is another model."""
    told = []
    for name in filter(None, (bound.model_file, bound.variant.chat_template_file)):
        with contextlib.suppress(OSError):
            stat = Path(name).stat()
            told.append(f"{name} {stat.st_size} {stat.st_mtime_ns}")
    return " ".join(told)


def _digest(tokens: list[int]) -> str:
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def _tokens(client: httpx.Client, request: Request) -> list[int]:
    """A request's prompt as the server itself would make it of it, in tokens."""
    rendered = client.post("/apply-template", json=as_openai(request)).raise_for_status().json()["prompt"]
    body = {"content": rendered, "add_special": True, "parse_special": True}
    return [int(token) for token in client.post("/tokenize", json=body).raise_for_status().json()["tokens"]]


def as_openai(request: Request) -> dict[str, Any]:
    """A request as llama.cpp's server converts it: system blocks without anything between them, tools as functions.

    Source: its server_chat_convert_anthropic_to_oai.
    """
    system = system_text(request)
    tools = [
        {
            "type": "function",
            "function": {
                "name": tool.get("name", ""),
                "description": tool.get("description", ""),
                "parameters": tool.get("input_schema", {}),
            },
        }
        for tool in request.get("tools", ())
    ]
    messages = [{"role": "system", "content": system}] if system else []
    return {"messages": [*messages, *request["messages"]], "tools": tools}


def _common(prompts: list[list[int]]) -> list[int]:
    """The tokens that all prompts begin with."""
    shared = 0
    for column in zip(*prompts, strict=False):
        if len(set(column)) > 1:
            break
        shared += 1
    return prompts[0][:shared] if prompts else []


def _free_bytes(folders: Folders) -> int:
    return shutil.disk_usage(folders.warm).free


def make_room(folders: Folders) -> None:
    """Remove what is no whole state, and what was used least until the rest is below the cap."""
    states: list[tuple[float, int, Path]] = []
    for path in folders.warm.iterdir():
        with contextlib.suppress(OSError):
            if path.suffix == ".part" and not psutil.pid_exists(int(f"0{path.stem.rpartition('.')[2]}")):
                path.unlink()
            elif path.suffix == ".bin" and path.with_suffix(".json").exists():
                states.append((path.stat().st_mtime, path.stat().st_size, path))
            elif path.suffix == ".bin":
                path.unlink()
    total = 0
    for _, size, path in sorted(states, reverse=True):
        total += size
        if total > CAP_BYTES:
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
