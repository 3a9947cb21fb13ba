"""Claude Code: the whole launch profile, verified on 2.1.197 and 2.1.329 (docs/claude-code.md has the why of each).

Sources: runs of the real binaries against a scripted server that logged every request; tests/agents repeats them.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cclocal.command import (
    AGENT_NAMES,
    AGENT_PREFIXES,
    REHEARSAL,
    Command,
    Endpoint,
    SessionFile,
)
from cclocal.facts import Facts

if TYPE_CHECKING:
    from cclocal.agents import Home, Rehearsal, Session

NAME = "claude"
PROGRAM = "claude"
INSTALL = "npm install -g @anthropic-ai/claude-code@2.1.329"
WIRE: Literal["anthropic", "responses"] = "anthropic"

#: WebSearch asks Anthropic's servers, and on a local model hands its own words back as results; WebFetch asks
#: api.anthropic.com before each page. Neither belongs in a local session.
TOOLS = "Bash,Read,Edit,Write,Glob,Grep"
#: Unscoped Edit and Read would reach any path; print mode refuses Bash in silence unless it is named.
PRE_APPROVED = "Bash,Edit(./**),Read(./**)"
WRITE_IN_PARTS = (
    "When a file is longer than about 150 lines, write it in parts: create it with the first part, "
    "then append the rest in several smaller edits."
)

#: Claude Code compacts at MAX_CONTEXT_TOKENS - min(MAX_OUTPUT_TOKENS, 20000) - 13000 (measured on both versions).
COMPACT_RESERVE_TOKENS = 13000
COMPACT_MAX_OUTPUT_TOKENS = 20000
#: What we keep free beside the reply: the compaction request itself, and counts that are off by a few hundred.
MARGIN_TOKENS = 2048
#: The fixed part of the prompt, plus a few turns: with less than this a session cannot work.
LEAST_PROMPT_TOKENS = 10240
#: AUTO_COMPACT_WINDOW is clamped to at least this by Claude Code.
LEAST_AUTO_COMPACT_TOKENS = 100000
TIMEOUT_MS = 1_800_000
#: Claude Code cuts a hook's output to a preview beyond 10,000 characters (measured on both versions).
HOOK_OUTPUT_BYTES = 9_000

#: The oldest version whose isolation was verified; what an older one reads and sends is unknown.
OLDEST = (2, 1, 197)

#: Arguments after "--" that change what the profile guarantees, and how.
_UNDOES = {
    "--settings": "replaces the settings that keep the session on this machine",
    "--setting-sources": "replaces the settings that keep the session on this machine",
    "--model": "asks for another model than the only one that is loaded",
    "--fallback-model": "asks for another model than the only one that is loaded",
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


#: Arguments that change the system prompt or the tools.
_OTHER_PROMPT = frozenset(
    """--tools --disallowedTools --disallowed-tools --append-system-prompt --system-prompt --system-prompt-file
    --append-system-prompt-file --agents --agent --mcp-config --plugin-dir --chrome --bare --settings --model
    --output-style --permission-mode --json-schema --exclude-dynamic-system-prompt-sections --system-prompt-snapshot
    --restricted --safe-mode --brief --plugin-url --disable-slash-commands --cloud --teleport --version -v --help
    -h""".split()
)
#: Words that make it something else than a session.
_COMMANDS = frozenset(
    """agents auth auto-mode config doctor install mcp migrate-installer plugin plugins project setup-token update
    upgrade""".split()
)


def least_context_tokens(out_tokens: int) -> int:
    """The smallest context window in which a session with replies of `out_tokens` can work."""
    return LEAST_PROMPT_TOKENS + out_tokens + MARGIN_TOKENS


def window_tokens(context_tokens: int, out_tokens: int) -> int:
    """The value of CLAUDE_CODE_MAX_CONTEXT_TOKENS that makes compaction come while a whole reply still fits.

    Compaction then happens at context - out - MARGIN_TOKENS.
    """
    return (
        context_tokens
        - out_tokens
        - MARGIN_TOKENS
        + COMPACT_RESERVE_TOKENS
        + min(out_tokens, COMPACT_MAX_OUTPUT_TOKENS)
    )


def environment(endpoint: Endpoint, context_tokens: int, out_tokens: int) -> dict[str, str]:
    """Every variable the session depends on."""
    model = endpoint.model
    window = window_tokens(context_tokens, out_tokens)
    return {
        "ANTHROPIC_BASE_URL": endpoint.url,
        "ANTHROPIC_AUTH_TOKEN": endpoint.key,
        # Every tier and every subagent asks for the one model that is loaded.
        "ANTHROPIC_MODEL": model,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": model,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": model,
        "CLAUDE_CODE_SUBAGENT_MODEL": model,
        # Nothing from a file may change base URL, token, model or provider.
        "CLAUDE_CODE_PROVIDER_MANAGED_BY_HOST": "1",
        # Quiet: no telemetry, no update, no marketplace, no title request.
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_ERROR_REPORTING": "1",
        "DISABLE_AUTOUPDATER": "1",
        "CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL": "1",
        "CLAUDE_CODE_DISABLE_TERMINAL_TITLE": "1",
        # Lean and byte-stable, so that the KV cache holds from turn to turn.
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
        "CLAUDE_CODE_DISABLE_GIT_INSTRUCTIONS": "1",
        "CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS": "1",
        "CLAUDE_CODE_DISABLE_THINKING": "1",
        "CLAUDE_CODE_EFFORT_LEVEL": "unset",
        # Strict chat templates refuse a system message in mid-conversation.
        "CLAUDE_CODE_MODEL_CAPABILITIES": "-mid_conv_system",
        # `claude --bg` would leave processes that outlive the session.
        "CLAUDE_CODE_DISABLE_AGENT_VIEW": "1",
        # CLAUDE.md of the project, without its settings and hooks (with --add-dir).
        "CLAUDE_CODE_ADDITIONAL_DIRECTORIES_CLAUDE_MD": "1",
        # One window, from the plan.
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(out_tokens),
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(window),
        "CLAUDE_CODE_AUTO_COMPACT_WINDOW": str(max(window, LEAST_AUTO_COMPACT_TOKENS)),
        # A local prefill may take minutes: all three, or a gap of 300 s ends the request.
        "API_TIMEOUT_MS": str(TIMEOUT_MS),
        "CLAUDE_STREAM_IDLE_TIMEOUT_MS": str(TIMEOUT_MS),
        "API_FORCE_IDLE_TIMEOUT": "0",
        # A proxy would carry the loopback traffic, prompt and key included.
        "NO_PROXY": "127.0.0.1,localhost,::1",
    }


def _instructions_above(facts: Facts) -> dict[str, object]:
    """The overlay's part that gives the session the CLAUDE.md of the folders above, by a hook of our own.

    Claude Code itself would read them only with `--add-dir`, which also makes those folders writable.
    """
    if not facts.parent_claude_mds or sum(facts.parent_claude_mds.values()) > HOOK_OUTPUT_BYTES:
        return {}
    say = "; ".join(
        f"echo {shlex.quote(f'Instructions of {path}:')}; cat {shlex.quote(str(path))}; echo"
        for path in facts.parent_claude_mds
    )
    # not on resume: there they are in the conversation already
    return {
        "hooks": {
            "SessionStart": [{"matcher": "startup|clear|compact", "hooks": [{"type": "command", "command": say}]}]
        }
    }


def command(facts: Facts, session: Session) -> tuple[Command, tuple[SessionFile, ...]]:
    variables = environment(session.endpoint, session.context_tokens, session.out_tokens)
    settings = SessionFile(
        "settings.json",
        json.dumps(
            # `env` of a settings file beats the process environment, so ours is said there too.
            {
                "env": variables,
                # one model is loaded: /model with another name is refused in words
                "availableModels": [session.endpoint.model],
                "disableDeepLinkRegistration": "disable",
                **_instructions_above(facts),
            },
            indent=1,
        ),
    )
    argv = (
        str(facts.agent.path) if facts.agent else PROGRAM,
        # "user" is the private folder below: nobody's settings, but the user's CLAUDE.md.
        *("--setting-sources", "user"),
        *("--settings", settings.path),
        "--strict-mcp-config",
        *("--mcp-config", str(facts.mcp_config)),
        *("--add-dir", "."),
        *(("--append-system-prompt", WRITE_IN_PARTS) if session.tools else ()),
        *("--tools", TOOLS if session.tools else ""),
        *(("--allowedTools", PRE_APPROVED) if session.tools else ()),
        # Last, because it takes one value: a variadic flag here would swallow the user's prompt.
        *("--permission-mode", "acceptEdits"),
        *session.arguments,
    )
    env = {"CLAUDE_CONFIG_DIR": str(facts.folders.claude_home), **variables}
    keep = AGENT_NAMES | set(session.passed)
    return Command(argv, env, keep=keep, keep_prefixes=AGENT_PREFIXES), (settings,)


def home(facts: Facts) -> Home:
    from cclocal.agents import Home

    # The folder must be named exactly: from 2.1.329 on, trust is not inherited past a repository's root. A CLAUDE.md
    # that imports files from outside its project would open a dialog: answered with no, once.
    project = {
        "hasTrustDialogAccepted": True,
        "hasClaudeMdExternalIncludesApproved": False,
        "hasClaudeMdExternalIncludesWarningShown": True,
    }
    folders = {facts.cwd, facts.git_root or facts.cwd}
    return Home(
        facts.folders.claude_home,
        seed={
            ".claude.json": {
                "hasCompletedOnboarding": True,
                "projects": {str(folder): project for folder in sorted(folders)},
            }
        },
        links={"CLAUDE.md": facts.user_claude_md},
    )


def rehearsal(facts: Facts, session: Session) -> Rehearsal | None:
    from cclocal.agents import Rehearsal

    flags = {argument.split("=", 1)[0] for argument in session.arguments}
    if not facts.agent or flags & _OTHER_PROMPT or {*session.arguments[:1]} & _COMMANDS:
        return None
    drawn = draws(session.arguments)
    # nothing of this folder and of the user's: that comes after what is the same everywhere
    nowhere = replace(
        facts,
        cwd=Path(REHEARSAL, "project"),
        git_root=None,
        user_claude_md=None,
        parent_claude_mds={},
        folders=replace(facts.folders, data=Path(REHEARSAL)),
    )
    asked = ("Hello",) if drawn else ("-p", "Hello")
    asking = replace(session, endpoint=Endpoint.of_session(None, session.endpoint.model), arguments=asked)
    made, files = command(nowhere, asking)
    # its first request is refused, and that is that
    made = replace(made, env={**made.env, "CLAUDE_CODE_MAX_RETRIES": "0"})
    # how large the window is stands in no prompt
    told = {name: value for name, value in made.env.items() if not name.endswith(("_TOKENS", "_WINDOW"))}
    profile = hashlib.sha256(json.dumps([made.argv[1:], told], sort_keys=True).encode()).hexdigest()[:8]
    about = f"claude {facts.agent.version} {'' if drawn else '-p '}{session.endpoint.model} {profile}"
    return Rehearsal(about, made, files, home(nowhere), drawn)


def notes(facts: Facts, session: Session) -> tuple[str, ...]:
    found = []
    if facts.parent_claude_mds and not _instructions_above(facts):
        paths = " and ".join(map(str, facts.parent_claude_mds))
        found.append(f"{paths} is too long to be read from this folder; start in the repository's root.")
    for argument in session.arguments:
        flag = argument.split("=", 1)[0]
        if flag in _UNDOES:
            found.append(f"{flag} after “--” {_UNDOES[flag]}.")
    return tuple(dict.fromkeys(found))


def unusable(version: str) -> str | None:
    """Why a version of Claude Code is not launched, or None if it may be."""
    if tuple(int(part) for part in version.split(".")[:3]) >= OLDEST:
        return None
    oldest = ".".join(map(str, OLDEST))
    return f"Claude Code {version} is older than {oldest}, the oldest whose isolation was verified"


def draws(arguments: Sequence[str]) -> bool:
    """Whether the agent takes over the terminal, rather than printing an answer."""
    return not {"-p", "--print", "--version", "-v", "--help", "-h"} & set(arguments)
