"""How to see Claude Code's first request: its command in an empty folder, as cclocal starts it or plain."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from cclocal.agents.claude.command import Context, command, config_dir, context_of, is_interactive, program_of
from cclocal.agents.claude.environment import environment
from cclocal.agents.session import AgentSession, Capture, CaptureRun, ConfigDir
from cclocal.command import AGENT_NAMES, SHOWN, Binding, Command, Endpoint

#: The variables of a plain launch that is captured: the server's address, and no request to anybody else.
_QUIET = frozenset(
    """ANTHROPIC_BASE_URL ANTHROPIC_AUTH_TOKEN ANTHROPIC_MODEL CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC
    DISABLE_TELEMETRY DISABLE_ERROR_REPORTING DISABLE_AUTOUPDATER CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL
    CLAUDE_CODE_DISABLE_TERMINAL_TITLE NO_PROXY""".split()
)
#: The arguments of a program that holds a conversation.
STREAMING = ("--input-format", "stream-json", "--output-format", "stream-json", "--verbose")
#: Arguments that change the system prompt or the tools.
_OTHER_PROMPT = frozenset(
    """--tools --disallowedTools --disallowed-tools --append-system-prompt --system-prompt --system-prompt-file
    --append-system-prompt-file --agents --agent --mcp-config --plugin-dir --chrome --bare --settings --model
    --output-style --permission-mode --json-schema --exclude-dynamic-system-prompt-sections --system-prompt-snapshot
    --restricted --safe-mode --brief --plugin-url --disable-slash-commands --cloud --teleport --version -v --help
    -h""".split()
)
#: Commands of claude that start no session.
_COMMANDS = frozenset(
    """agents auth auto-mode config doctor install mcp migrate-installer plugin plugins project setup-token update
    upgrade""".split()
)


def capture(session: AgentSession, model: str) -> Capture | None:
    flags = {argument.split("=", 1)[0] for argument in session.arguments}
    if not session.found or flags & _OTHER_PROMPT or {*session.arguments[:1]} & _COMMANDS:
        return None
    return _captured(session, model, is_plain=False)


def plain(session: AgentSession, model: str) -> Capture:
    return _captured(session, model, is_plain=True)


def _captured(session: AgentSession, model: str, *, is_plain: bool) -> Capture:
    made = Capture("", session, model, is_plain, is_interactive(session.arguments))
    run = capture_run(made, SHOWN, "<first words>")
    # the size of the window is in no prompt
    env = {name: value for name, value in run.command.env.items() if not name.endswith(_WINDOW_VARIABLES)}
    digest = hashlib.sha256(json.dumps([run.command.argv[1:], env], sort_keys=True).encode()).hexdigest()[:8]
    version = session.found.version if session.found else ""
    kind = f"{'plain ' if is_plain else ''}claude {version} {'' if made.is_interactive else '-p '}"
    return replace(made, about=f"{kind}{model} {digest}")


_WINDOW_VARIABLES = ("_TOKENS", "_WINDOW", "_LENGTH")


def capture_run(capture: Capture, binding: Binding, words: str) -> CaptureRun:
    """In an empty folder, without the user's instructions: those come after the part that is the same everywhere."""
    place = Path(binding.folder)
    arguments, stdin = _first_words(capture.session.arguments, words)
    found = capture.session.found
    bare = Context(mcp_config=context_of(capture.session).mcp_config)
    session = replace(
        capture.session,
        found=found and replace(found, context=bare),
        cwd=place / "project",
        git_root=None,
        home=place / "claude",
        arguments=arguments,
    )
    endpoint = Endpoint.of_session(binding, capture.model)
    # its first request is refused, and it must not send it again
    no_retries = {"CLAUDE_CODE_MAX_RETRIES": "0"}
    if capture.is_plain:
        every = environment(endpoint, session.context_tokens, session.out_tokens)
        env = {name: value for name, value in every.items() if name in _QUIET}
        env = {"CLAUDE_CONFIG_DIR": str(session.home), **env, **no_retries}
        config = ConfigDir(session.home, config_dir(session).seed)
        return CaptureRun(Command((program_of(session), *arguments), env, AGENT_NAMES), (), config, stdin)
    made, files = command(session, endpoint, binding)
    return CaptureRun(replace(made, env={**made.env, **no_retries}), files, config_dir(session), stdin)


def _first_words(arguments: Sequence[str], words: str) -> tuple[tuple[str, ...], str]:
    """(the arguments that have a session of this kind say its first words, what it gets on standard input)."""
    if is_interactive(arguments):
        return (words,), ""
    if _streams(arguments):
        message = {"type": "user", "message": {"role": "user", "content": words}}
        return ("-p", *STREAMING), json.dumps(message) + "\n"
    return ("-p", words), ""


def _streams(arguments: Sequence[str]) -> bool:
    """Whether a program holds the conversation: then 2.1.329 describes the tools in other words."""
    pairs = (*pairwise(arguments), *(tuple(argument.split("=", 1)) for argument in arguments))
    return ("--input-format", "stream-json") in pairs
