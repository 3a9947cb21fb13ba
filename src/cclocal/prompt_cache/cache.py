"""The fixed part of an agent's prompt in a session's server: restored, or evaluated and saved, or asked for ahead.

The part is what two captured sessions have in common, token by token. llama.cpp compares tokens itself, so a state that
does not match a prompt is only of less use, never wrong. A saved state is a file NAME.bin with a note NAME.json, which
is written last: a state without a note is incomplete.
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
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from cclocal import http
from cclocal.agents import AGENTS
from cclocal.agents.session import Capture
from cclocal.backends import runtime_of
from cclocal.command import SERVER_NAMES, Command
from cclocal.errors import AgentMissingError, CclocalError, FolderError, UsageError
from cclocal.paths import Env, make_folder, read_table, write_private
from cclocal.planning.make import shorter_prompts
from cclocal.planning.plan import Plan
from cclocal.programs import last_line
from cclocal.prompt_cache import prefill
from cclocal.prompt_cache.capture import LIMIT_S, Request, first_requests
from cclocal.prompt_cache.conversation import find, identity, is_whole, note_restores
from cclocal.server.keep import PREFIX, SPARE_BYTES, checksum, remove_oldest
from cclocal.server.readiness import Waiting, patiently
from cclocal.server.start import Server
from cclocal.wires import WIRES

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
#: A shorter part is evaluated faster than it is restored.
LEAST_TOKENS = 512
#: What an engine may read of a prompt whose state it restored: a sliding window goes back to a checkpoint.
MOST_READ_TOKENS = 64
#: The states of all prompts together; the least recently used are removed first.
CAP_BYTES = 8 * 10**9
_REQUEST_LIMIT_S = 30.0
#: Seconds in which the keeper reports a server's end after its connections are cut.
_END_LIMIT_S = 1.0


class PromptCache:
    """Fills a session's server with the fixed part of the prompt. Made before the server: a capture takes seconds.

    Raises FolderError if there is no place to save anything.
    """

    def __init__(self, plan: Plan, capture: Capture, env: Env) -> None:
        self.plan, self.env = plan, env
        self.requests: list[Request] = []
        self.stopped = threading.Event()
        #: the file with the prompt's KV cache, named by its tokens, the model and the engine
        self.state: Path
        #: what a server that is started again must be asked first, to have this prompt
        self.restore: list[tuple[str, str, str]] = []
        #: what the server has of the prompt, or of the conversation: tokens, the bytes of their state, its file
        self.kept: dict[str, int | str] = {}
        try:
            make_folder(env.folders.saved_prompts if plan.can_save_prompt else env.folders.cache)
        except FolderError as error:
            error.hint = "--cold saves nothing"
            raise
        self.about = capture.about
        self.thread = threading.Thread(target=self._capture, args=(capture,), daemon=True)
        self.thread.start()

    def _capture(self, capture: Capture) -> None:
        with contextlib.suppress(CclocalError, OSError):
            self.requests = first_requests(self.plan.agent, capture, self.env, self.stopped)

    def check_roles(self) -> None:
        """Raises AgentMissingError if the model's chat template refuses what this version of the agent sends.

        Waits for the recording, which takes seconds once per version, and only for a template that may refuse.
        """
        if not self.plan.is_strict:
            return
        self.thread.join(LIMIT_S)
        agent, found = AGENTS[self.plan.agent], self.plan.session.found
        if any(WIRES[agent.WIRE].has_late_system(request) for request in self.requests):
            raise AgentMissingError(
                f"{agent.TITLE} {found.version if found else ''} sends a system message in mid-conversation, which the "
                f"chat template of {self.plan.model.name} refuses.",
                hint=f"{agent.INSTALL}    or another model",
            )

    def close(self) -> None:
        """End a capture that is still running."""
        self.stopped.set()
        self.thread.join(LIMIT_S)

    def fill(self, server: Server, on_wait: Callable[[Waiting], None]) -> str | None:
        """Restore the state, or make it. Returns a note for the user.

        Raises ServerDiedError, or UsageError if the prompt leaves no room in the window.

        Done before the agent starts: a save that has to wait for a slot would leave the agent's own requests waiting
        behind it for ever (llama.cpp takes one waiting task when a slot becomes free, and a save frees none).
        """

        def wait_for(ask: Callable[[], T], phase: str) -> T:
            began = time.monotonic()

            def look() -> None:
                server.check_alive()
                on_wait(Waiting(phase, time.monotonic() - began, last_line(server.log)))

            return patiently(ask, look)

        # until it is done or at its own limit: it happens once per version, and is remembered
        wait_for(self.thread.join, "recording the agent's first request, once")
        endpoint = self.plan.endpoint(server.binding)
        if self.plan.prompt_caching == "ask ahead":
            wire = WIRES[AGENTS[self.plan.agent].WIRE]
            for request in self.requests[:1]:
                self._ask_in_background(server, wire.PATH, wire.ahead(request, endpoint.model))
            return None
        try:
            with http.client(endpoint.url, endpoint.key, limit_s=_REQUEST_LIMIT_S) as client:
                return self._fill(client, server, wait_for)
        except UsageError:
            raise
        except Exception:
            server.poll(_END_LIMIT_S)
            server.check_alive()
            # without it the session only starts more slowly
            return None

    def _fill(
        self, client: httpx.Client, server: Server, wait_for: Callable[[Callable[[], Any], str], Any]
    ) -> str | None:
        runtime = runtime_of(self.plan.variant.backend)
        if self.plan.can_save_prompt:
            _make_room(self.env.folders.saved_prompts)
        if found := wait_for(lambda: find(self.plan, self.env), "checking what was kept of the conversation"):
            state, count = found
            if runtime.restore_prompt(client, state.name):
                state.touch()
                self.restore = [runtime.restore_request(state.name)]
                self.kept = {"tokens": count, "bytes": state.stat().st_size, "state": state.name}
                return f"{count:,} tokens of the conversation were restored from its last session."
        wire = WIRES[AGENTS[self.plan.agent].WIRE]
        prompts = [runtime.prompt_tokens(client, wire.as_chat(request)) for request in self.requests]
        self._check_room(max(map(len, prompts), default=0))
        same = takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))
        tokens = [column[0] for column in same]
        # by what is in it: another version of the agent that sends the same reads nothing again
        about = f"{self.plan.cache_key} | {identity(self.plan)} | {_digest(tokens)}"
        self.state = self.env.folders.saved_prompts / f"{hashlib.sha256(about.encode()).hexdigest()[:24]}.bin"
        if not LEAST_TOKENS <= len(tokens) < self.plan.session.context_tokens:
            return None
        if self.plan.can_save_prompt and self._is_saved(tokens):
            works = runtime.restore_prompt(client, self.state.name)
            if works and not self.plan.knows_restores:
                read = wait_for(lambda: runtime.read_prompt(client, tokens), "trying the restored prompt, once")
                works = read <= max(MOST_READ_TOKENS, len(tokens) // 10)
                note_restores(self.plan, "prompt", works, self.env)
                if not works:
                    # the prompt has just been read, so the session is warm all the same
                    self._forget()
                    return None
            if works:
                # the time of its file decides which is removed first
                self.state.touch()
                self.kept = {"tokens": len(tokens), "bytes": self.state.stat().st_size}
                self.restore = [runtime.restore_request(self.state.name)]
                return f"{len(tokens):,} tokens of the prompt were restored from an earlier session."
            # it is damaged in a way that the checksum does not show
            self._forget()
        if not self.plan.can_save_prompt or shutil.disk_usage(self.state.parent).free < SPARE_BYTES:
            # Nothing will be saved, so prefill in the background instead of blocking the start.
            body = {"prompt": tokens, "n_predict": 0, "cache_prompt": True, "id_slot": 0}
            self._ask_in_background(server, "/completion", body)
            return None
        phase = f"preparing the prompt, {len(tokens):,} tokens (first time only)"
        wait_for(lambda: runtime.read_prompt(client, tokens), phase)
        part = self.state.with_suffix(f".{os.getpid()}.part")
        try:
            if runtime.save_prompt(client, part.name) == len(tokens):
                self._keep(part, tokens)
                self.restore = [runtime.restore_request(self.state.name)]
        finally:
            part.unlink(missing_ok=True)
        return None

    def _check_room(self, prompt_tokens: int) -> None:
        """Raises UsageError if the prompt alone, counted by the model's own tokenizer, fills the window."""
        plan, session = self.plan, self.plan.session
        agent = AGENTS[plan.agent]
        most = agent.window(session.context_tokens, session.out_tokens).compacts_at_tokens
        if prompt_tokens >= most:
            helps = shorter_prompts(agent, plan.settings, session.context_tokens, session.out_tokens)
            raise UsageError(
                f"The prompt of {agent.TITLE} has {prompt_tokens:,} of {plan.model.name}'s tokens; in a window of "
                f"{session.context_tokens:,} a conversation is compacted at {most:,}.",
                hint=" or ".join(["a larger --ctx", *helps]),
            )

    def _forget(self) -> None:
        """Never use this state again."""
        self.state.with_suffix(".json").unlink(missing_ok=True)

    def _is_saved(self, tokens: list[int]) -> bool:
        """Whether the state is what was written, and of these tokens: a template may put the date first."""
        note = read_table(self.state.with_suffix(".json"))
        return note.get("digest") == _digest(tokens) and is_whole(self.state, note)

    def _keep(self, part: Path, tokens: list[int]) -> None:
        """Keep what a server wrote, with a checksum. Raises OSError or FolderError."""
        part.chmod(0o600)
        note = {
            "size_bytes": part.stat().st_size,
            "sha256": checksum(str(part)),
            "tokens": len(tokens),
            "digest": _digest(tokens),
            "about": self.about,
        }
        part.replace(self.state)
        self.kept = {"tokens": len(tokens), "bytes": self.state.stat().st_size}
        write_private(self.state.with_suffix(".json"), json.dumps(note))
        _make_room(self.state.parent)

    def _ask_in_background(self, server: Server, path: str, body: dict[str, object]) -> None:
        """Prefill in the background. Skipped in print mode, where the agent sends its request at once."""
        if not self.plan.is_interactive:
            return
        endpoint = self.plan.agent_endpoint(server.binding)
        # this process becomes the agent
        table = {"url": endpoint.url, "key": endpoint.key, "path": path, "body": body, "agent": os.getpid()}
        # without it the session only starts more slowly
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                [sys.executable, "-I", "-S", prefill.__file__],
                input=json.dumps(table).encode(),
                env=Command((), keep=frozenset(SERVER_NAMES)).environ(self.env.environ),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
                timeout=_REQUEST_LIMIT_S,
            )


def _digest(tokens: list[int]) -> str:
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def _make_room(folder: Path) -> None:
    """Remove incomplete states, and the least recently used until the others are below the cap."""
    for path in folder.iterdir():
        is_left = path.suffix == ".part" and not psutil.pid_exists(int(f"0{path.stem.rpartition('.')[2]}"))
        if is_left or (path.suffix == ".bin" and not path.with_suffix(".json").exists()):
            path.unlink(missing_ok=True)
    remove_oldest((str(path) for path in folder.glob("*.bin") if not path.name.startswith(PREFIX)), CAP_BYTES)
