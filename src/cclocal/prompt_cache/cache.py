"""The fixed part of an agent's prompt in a session's server: restored, or evaluated and saved, or asked for ahead.

The part is what two captured sessions have in common, token by token. llama.cpp compares tokens itself, so a state that
does not match a prompt is only of less use, never wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cclocal import http
from cclocal.agents import AGENTS
from cclocal.agents.session import Capture
from cclocal.backends import runtime_of
from cclocal.command import SERVER_NAMES, Command
from cclocal.errors import CclocalError, FolderError, ServerDiedError
from cclocal.paths import Env, make_folder
from cclocal.planning.plan import Plan
from cclocal.programs import last_line
from cclocal.prompt_cache import prefill, store
from cclocal.prompt_cache.capture import LIMIT_S, Request, first_requests
from cclocal.server.readiness import POLL_S, Waiting, patiently
from cclocal.server.start import Server
from cclocal.wires import WIRES

if TYPE_CHECKING:
    import httpx

#: A shorter part is evaluated faster than it is restored.
LEAST_TOKENS = 512
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
        try:
            make_folder(env.folders.saved_prompts if plan.can_save_prompt else env.folders.cache)
        except FolderError as error:
            error.hint = "--cold saves nothing"
            raise
        self.about = f"{capture.about} | {plan.cache_key} | {_identity(plan)}"
        self.name = hashlib.sha256(self.about.encode()).hexdigest()[:24]
        self.thread = threading.Thread(target=self._capture, args=(capture,), daemon=True)
        self.thread.start()

    @classmethod
    def of(cls, plan: Plan, env: Env) -> PromptCache | None:
        """For a session whose prompt is cached; None for any other."""
        return cls(plan, plan.capture, env) if plan.capture else None

    def _capture(self, capture: Capture) -> None:
        with contextlib.suppress(CclocalError, OSError):
            self.requests = first_requests(self.plan.agent, capture, self.env, self.stopped)

    def close(self) -> None:
        """End a capture that is still running."""
        self.stopped.set()
        self.thread.join(LIMIT_S)

    def fill(self, server: Server, on_wait: Callable[[Waiting], None]) -> str | None:
        """Restore the state, or make it. Returns a note for the user. Raises ServerDiedError.

        Done before the agent starts: a save that has to wait for a slot would leave the agent's own requests waiting
        behind it for ever (llama.cpp takes one waiting task when a slot becomes free, and a save frees none).
        """
        import httpx

        self._wait_for_capture(server, on_wait)
        endpoint = self.plan.endpoint(server.binding)
        if self.plan.prompt_caching == "ask ahead":
            wire = WIRES[AGENTS[self.plan.agent].WIRE]
            for request in self.requests[:1]:
                self._ask_in_background(server, wire.PATH, wire.ahead(request, endpoint.model))
            return None
        try:
            with http.client(endpoint.url, endpoint.key, limit_s=_REQUEST_LIMIT_S) as client:
                return self._fill(client, server, on_wait)
        except ServerDiedError:
            raise
        except (
            *(httpx.HTTPError, CclocalError, subprocess.SubprocessError, OSError),
            *(ValueError, KeyError, TypeError, AttributeError),
        ):
            server.poll(_END_LIMIT_S)
            server.check_alive()
            # without it the session only starts more slowly
            return None

    def _wait_for_capture(self, server: Server, on_wait: Callable[[Waiting], None]) -> None:
        """Until the capture is done or at its own limit: it happens once per version, and is remembered."""
        began = time.monotonic()
        while self.thread.is_alive():
            server.check_alive()
            phase = "recording the agent's first request, once"
            on_wait(Waiting(phase, time.monotonic() - began, last_line(server.log)))
            self.thread.join(POLL_S)

    def _fill(self, client: httpx.Client, server: Server, on_wait: Callable[[Waiting], None]) -> str | None:
        runtime = runtime_of(self.plan.variant.backend)
        tokens = _common([runtime.prompt_tokens(client, request) for request in self.requests])
        if not LEAST_TOKENS <= len(tokens) < self.plan.slot_tokens:
            return None
        state = store.find(self.name, self.env) if self.plan.can_save_prompt else None
        # a template may put the date first: then yesterday's state is of no use
        if state and state.digest == store.digest(tokens):
            if runtime.restore_prompt(client, state.path.name):
                store.used(state)
                return f"{state.tokens:,} tokens of the prompt were restored from an earlier session."
            store.forget(state)
        if not self.plan.can_save_prompt or not store.has_space(self.env):
            # Nothing will be saved, so prefill in the background instead of blocking the start.
            body = {"prompt": tokens, "n_predict": 0, "cache_prompt": True, "id_slot": 0}
            self._ask_in_background(server, "/completion", body)
            return None
        began = time.monotonic()

        def look() -> None:
            server.check_alive()
            phase = f"prefilling the {len(tokens):,} fixed tokens of the prompt, once"
            on_wait(Waiting(phase, time.monotonic() - began, last_line(server.log)))

        patiently(lambda: runtime.read_prompt(client, tokens), look)
        try:
            if runtime.save_prompt(client, store.part_name(self.name)) == len(tokens):
                store.keep(self.name, tokens, self.about, self.env)
        finally:
            (self.env.folders.saved_prompts / store.part_name(self.name)).unlink(missing_ok=True)
        return None

    def _ask_in_background(self, server: Server, path: str, body: dict[str, object]) -> None:
        """Prefill in the background. Skipped in print mode, where the agent sends its request at once."""
        if not self.plan.is_interactive:
            return
        endpoint = self.plan.endpoint(server.binding)
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


def _identity(plan: Plan) -> str:
    """The model's file, and a chat template file: another one of the same name is another model."""
    found = []
    for name in filter(None, (plan.request.model_file, plan.variant.chat_template_file)):
        with contextlib.suppress(OSError):
            stat = Path(name).stat()
            found.append(f"{name} {stat.st_size} {stat.st_mtime_ns}")
    return " ".join(found)


def _common(prompts: list[list[int]]) -> list[int]:
    """The tokens that all prompts begin with."""
    shared = 0
    for column in zip(*prompts, strict=False):
        if len(set(column)) > 1:
            break
        shared += 1
    return prompts[0][:shared] if prompts else []
