"""Claude Code: the launch profile, verified on 2.1.197, 2.1.329 and 2.1.331 (docs/claude-code.md has the reasons).

Sources: runs of the real binaries against a scripted server that logged every request; tests/agents repeats them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from packaging.version import Version

from cclocal.agents.claude.command import PROGRAM as PROGRAM
from cclocal.agents.claude.command import Context, context_of, environment, instructions_above, program_of
from cclocal.agents.claude.command import command as command
from cclocal.agents.claude.command import config_dir as config_dir
from cclocal.agents.claude.command import window as window
from cclocal.agents.session import AgentSession, Asked, ByHand, Capture, CaptureRun, ConfigDir, Sends
from cclocal.command import AGENT_NAMES, SHOWN, Binding, Command, Endpoint
from cclocal.facts import AgentFound
from cclocal.settings import BASH, OFF
from cclocal.wires.wire import Calls

NAME = "claude"
INSTALL = "npm install -g @anthropic-ai/claude-code@2.1.331"
TITLE = "Claude Code"
CONVERSATIONS = "projects/*/*.jsonl"
CONTINUES = frozenset("-c --continue -r --resume".split())
LOOK = "cclocal.agents.claude.look"
WIRE = "anthropic"
CALLS = Calls(("Bash", "command"), ("Write", "file_path", "content"))
#: Mouse, focus and theme reports off, the cursor shown.
TERMINAL_RESET = "\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1004l\x1b[?2031l\x1b[?25h"
HAS: frozenset[str] = frozenset(("web", "mcp", "also", "subagents"))
OWN_LEVELS: Mapping[str, str] = {
    BASH: "Claude Code's own: commands write ./ only and reach no network; its other tools keep to ./",
    OFF: "commands can read, write and reach whatever you can",
}
#: Claude Code uses its long prompt, or another window, for ids that look like Anthropic's.
TAKEN = re.compile(r"claude|sonnet|haiku|opus|\[1m\]", re.IGNORECASE)
FORBIDDEN = re.compile(
    r"(ANTHROPIC|CLAUDE|CLAUDECODE|BUN|DISABLE)(_.*)?|API_(TIMEOUT_MS|FORCE_IDLE_TIMEOUT)|USE_STAGING_OAUTH"
    r"|MAX_THINKING_TOKENS",
    re.IGNORECASE,
)

#: The oldest version whose isolation was verified; what an older one reads and sends is unknown.
OLDEST = Version("2.1.197")
VERIFIED: tuple[str, ...] = ("2.1.197", "2.1.329", "2.1.331")
SENDS = Sends(("Bash", "Edit", "Glob", "Grep", "Read", "Write"))
IGNORED_IN_HOME = (".claude/settings.json", ".claude.json")
IGNORED_IN_FOLDER = (".claude/settings.json", ".claude/settings.local.json", ".mcp.json")
#: Claude Code's documentation, "settings files": they have the highest precedence
MANAGED = (
    "/etc/claude-code/managed-settings.json",
    "/Library/Application Support/ClaudeCode/managed-settings.json",
)

#: Arguments after "--" that change what the profile guarantees, and how.
_UNDOES = {
    "--settings": "replaces the settings that keep the session on this machine",
    "--setting-sources": "replaces the settings that keep the session on this machine",
    "--model": "asks for a model other than the one that is loaded",
    "--fallback-model": "asks for a model other than the one that is loaded",
    "--mcp-config": "adds MCP servers, whose tools every request then carries",
    "--tools": "replaces the tool set",
    "--allowedTools": "replaces what is pre-approved",
    "--allowed-tools": "replaces what is pre-approved",
    "--permission-mode": "replaces the permission mode",
    "--dangerously-skip-permissions": "lets every tool do anything without asking",
    "--append-system-prompt": "replaces the hint to write large files in parts",
    "--system-prompt": "replaces the system prompt",
    "--add-dir": "lets the agent write in that folder too",
    "--plugin-dir": "adds plugins to the session",
    "--agents": "adds agents, whose descriptions every request then carries",
    "--chrome": "adds the browser's tools to every request",
    "--bare": "replaces the whole launch profile",
}


def is_interactive(arguments: Sequence[str]) -> bool:
    return not {"-p", "--print", "--version", "-v", "--help", "-h"} & set(arguments)


def ask_for_file(path: str, content: str) -> str:
    return CALLS.ask_to_write(path, content)


def arguments(asked: Asked) -> tuple[str, ...]:
    prints, prompt = ("-p",) if asked.prints else (), (asked.prompt,) if asked.prompt else ()
    if asked.continues:
        return (*prints, "--continue", *prompt)
    if asked.resumes:
        return (*prints, "--resume", asked.resumes, *prompt)
    # a word after it would be taken for the id
    return (*prints, *prompt, *(("--resume",) if asked.resumes is not None else ()))


def notes(session: AgentSession) -> tuple[str, ...]:
    context = context_of(session)
    found = []
    if context.parent_claude_mds and not instructions_above(context):
        paths = " and ".join(map(str, context.parent_claude_mds))
        found.append(f"{paths} is too long to be loaded from this folder; start in the repository's root.")
    for argument in session.arguments:
        flag = argument.split("=", 1)[0]
        if flag in _UNDOES and not (session.lean and flag == "--append-system-prompt"):
            found.append(f"{flag} after “--” {_UNDOES[flag]}.")
    if session.lean and {"-c", "--continue", "-r", "--resume"} & set(session.arguments):
        found.append("A conversation that was begun without --lean keeps its long prompt until it is compacted.")
    return tuple(dict.fromkeys(found))


def by_hand(session: AgentSession, endpoint: Endpoint) -> ByHand:
    every = environment(endpoint, session.context_tokens, session.out_tokens)
    # a plain launch has no host that manages its provider
    own = {name: value for name, value in every.items() if name != "CLAUDE_CODE_PROVIDER_MANAGED_BY_HOST"}
    return ByHand(own, (PROGRAM,))


def unusable(found: AgentFound, arguments: Sequence[str], *, level: str) -> str | None:
    if Version(found.version) >= OLDEST:
        problem = found.context.sandbox_problem if isinstance(found.context, Context) else ""
        return f"Claude Code's own sandbox does not work here: {problem}" if problem and level == BASH else None
    return f"Claude Code {found.version} is older than {OLDEST}, the oldest whose isolation was verified"


# -- how to see its first request: its command in an empty folder, as cclocal starts it or plain

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
#: How the variables end that tell the size of the window, which is in no prompt.
_WINDOW_VARIABLES = ("_TOKENS", "_WINDOW", "_LENGTH")


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
    env = {name: value for name, value in run.command.env.items() if not name.endswith(_WINDOW_VARIABLES)}
    digest = hashlib.sha256(json.dumps([run.command.argv[1:], env], sort_keys=True).encode()).hexdigest()[:8]
    version = session.found.version if session.found else ""
    kind = f"{'plain ' if is_plain else ''}claude {version} {'' if made.is_interactive else '-p '}"
    return replace(made, about=f"{kind}{model} {digest}")


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
    endpoint = Endpoint.of_relay(binding, capture.model)
    # its first request is refused, and it must not send it again
    no_retries = {"CLAUDE_CODE_MAX_RETRIES": "0"}
    if capture.is_plain:
        every = environment(endpoint, session.context_tokens, session.out_tokens)
        env = {name: value for name, value in every.items() if name in _QUIET}
        env = {"CLAUDE_CONFIG_DIR": str(session.home), **env, **no_retries}
        config = ConfigDir(session.home, config_dir(session).seed)
        return CaptureRun(Command((program_of(session), *arguments), env, AGENT_NAMES), {}, config, stdin)
    made, files = command(session, endpoint, binding)
    return CaptureRun(replace(made, env={**made.env, **no_retries}), files, config_dir(session), stdin)


def _first_words(arguments: Sequence[str], words: str) -> tuple[tuple[str, ...], str]:
    """(the arguments that have a session of this kind say its first words, what it gets on standard input)."""
    if is_interactive(arguments):
        return (words,), ""
    pairs = (*pairwise(arguments), *(tuple(argument.split("=", 1)) for argument in arguments))
    if ("--input-format", "stream-json") in pairs:
        # a program holds the conversation: then 2.1.331 describes the tools in other words
        message = {"type": "user", "message": {"role": "user", "content": words}}
        return ("-p", *STREAMING), json.dumps(message) + "\n"
    return ("-p", words), ""
