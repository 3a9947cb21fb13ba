"""The fixed part of an agent's prompt in a session's server: restored, or evaluated and saved, or asked for ahead.

The part is what two captured sessions have in common, token by token. llama.cpp compares tokens itself, so a state that
does not match a prompt is only of less use, never wrong.
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
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any, TypeVar

from cclocal import http
from cclocal.agents import AGENTS
from cclocal.agents.session import Capture
from cclocal.backends import BACKENDS, runtime_of
from cclocal.command import SERVER_NAMES, Command
from cclocal.errors import AgentMissingError, CclocalError, FolderError, UsageError
from cclocal.paths import Env, make_folder
from cclocal.planning.make import shorter_prompts
from cclocal.planning.plan import Plan
from cclocal.programs import last_line
from cclocal.prompt_cache import prefill
from cclocal.prompt_cache.capture import LIMIT_S, Request, first_requests
from cclocal.prompt_cache.conversation import find, identity, last_request, note_restores
from cclocal.prompt_cache.state import PromptState, digest, make_room
from cclocal.server.keep import SPARE_BYTES
from cclocal.server.readiness import Waiting, patiently
from cclocal.server.start import Server
from cclocal.wires import WIRES

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
#: Waits for a call, with a phase for the user.
Wait = Callable[[Callable[[], Any], str], Any]
#: A shorter part is evaluated faster than it is restored.
LEAST_TOKENS = 512
#: What an engine may read of a prompt whose state it restored: a sliding window goes back to a checkpoint.
MOST_READ_TOKENS = 64
#: A prompt is read in steps of llama.cpp's batch; what is read is saved after so many seconds: the user may leave.
STEP_TOKENS, PART_S = 2048, 10.0
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
            if words := self._read_conversation(server):
                return words
            wire = WIRES[AGENTS[self.plan.agent].WIRE]
            for request in self.requests[:1]:
                self._ask_in_background(server, wire.PATH, wire.ahead(request, endpoint.model))
            return None
        try:
            with http.client(endpoint.url, endpoint.key, limit_s=_REQUEST_LIMIT_S) as client:
                note = self._fill(client, server, wait_for)
            return note if "state" in self.kept else self._read_conversation(server) or note
        except UsageError:
            raise
        except Exception:
            server.poll(_END_LIMIT_S)
            server.check_alive()
            # without it the session only starts more slowly
            return None

    def _fill(self, client: httpx.Client, server: Server, wait_for: Wait) -> str | None:
        runtime = runtime_of(self.plan.variant.backend)
        if self.plan.can_save_prompt:
            make_room(self.env.folders.saved_prompts)
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
        about = f"{self.plan.cache_key} | {identity(self.plan)} | {digest(tokens)}"
        name = f"{hashlib.sha256(about.encode()).hexdigest()[:24]}.bin"
        state = PromptState(self.env.folders.saved_prompts / name, tokens, self.about)
        if not LEAST_TOKENS <= len(tokens) < self.plan.session.context_tokens:
            return None
        have = state.count() if self.plan.can_save_prompt else 0
        if have and not self._restores(state, have, client, wait_for):
            state.forget()
            if have == len(tokens) and not self.plan.knows_restores:
                # the prompt has just been read, so the session is warm all the same
                return None
            have = 0
        if have == len(tokens):
            self.kept, self.restore = state.kept(), [runtime.restore_request(name)]
            return f"{have:,} tokens of the prompt were restored from an earlier session."
        if not self.plan.can_save_prompt or shutil.disk_usage(state.path.parent).free < SPARE_BYTES:
            # Nothing will be saved, so prefill in the background instead of blocking the start.
            body = {"prompt": tokens, "n_predict": 0, "cache_prompt": True, "id_slot": 0}
            self._ask_in_background(server, "/completion", body)
            return None
        self._read_and_save(state, have, client, wait_for)
        return None

    def _restores(self, state: PromptState, count: int, client: httpx.Client, wait_for: Wait) -> bool:
        """Whether the engine can go on from a state; the first time, by how much of the prompt it reads again."""
        runtime = runtime_of(self.plan.variant.backend)
        works = runtime.restore_prompt(client, state.path.name)
        if works and not self.plan.knows_restores:
            beginning = state.tokens[:count]
            read = wait_for(lambda: runtime.read_prompt(client, beginning), "trying the restored prompt, once")
            works = read <= max(MOST_READ_TOKENS, count // 10)
            note_restores(self.plan, "prompt", works, self.env)
        return works

    def _read_and_save(self, state: PromptState, have: int, client: httpx.Client, wait_for: Wait) -> None:
        """Have the prompt read, step by step, and saved; of a slow model also what was read until then."""
        runtime, whole = runtime_of(self.plan.variant.backend), len(state.tokens)
        least_s = float(self.env.environ.get("CCLOCAL_TEST_PART_S") or PART_S)
        saved, saved_at = 0, time.monotonic()
        for end in (*range(have + STEP_TOKENS, whole, STEP_TOKENS), whole):
            done = f", {have:,} of {whole:,} tokens" if have else f", {whole:,} tokens"
            beginning = state.tokens[:end]
            wait_for(partial(runtime.read_prompt, client, beginning), f"preparing the prompt{done} (first time only)")
            have = end
            if end < whole and time.monotonic() - saved_at < least_s:
                continue
            part = state.path.with_suffix(f".{os.getpid()}.part")
            try:
                count = runtime.save_prompt(client, part.name)
                if count is None:
                    for what in ("prompt", "conversation"):
                        note_restores(self.plan, what, works=False, env=self.env)
                    return
                if count == end:
                    state.keep(part, end)
                    saved = end
            finally:
                part.unlink(missing_ok=True)
            saved_at = time.monotonic()
        if saved == whole:
            self.kept, self.restore = state.kept(), [runtime.restore_request(state.path.name)]

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

    def _read_conversation(self, server: Server) -> str | None:
        """Have the conversation that the session goes on with read in the background, by its last request.

        Returns a note for the user, None if there is nothing to read, or if the agent asks at once.
        """
        is_of_use = self.plan.is_interactive and BACKENDS[self.plan.variant.backend].KEEPS_TURNS
        found = last_request(self.plan, self.env) if is_of_use else None
        if found is None:
            return None
        path, body = found
        wire = next(wire for wire in WIRES.values() if path == wire.PATH)
        kept = {key: body[key] for key in wire.REQUEST_KEYS if key in body}
        self._ask_in_background(server, path, wire.ahead(kept, self.plan.endpoint(server.binding).model))
        return "The conversation is read while you type; the line below the prompt says how far."

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
