"""The command that starts Claude Code, its variables and settings, its configuration folder."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cclocal.agents.claude.window import COMPACT_MAX_OUTPUT_TOKENS, COMPACT_RESERVE_TOKENS, LEAST_AUTO_COMPACT_TOKENS
from cclocal.agents.claude.window import result_characters as result_characters
from cclocal.agents.claude.window import window as window
from cclocal.agents.session import AgentSession, ConfigDir
from cclocal.command import AGENT_NAMES, AGENT_PREFIXES, Binding, Command, CommandAndFiles, Endpoint
from cclocal.settings import BASH, STRICT
from cclocal.turns import NOTES

PROGRAM = "claude"
#: Without WebSearch, which asks Anthropic's servers and with a local model returns invented results, and without
#: WebFetch, which asks api.anthropic.com before each page.
TOOLS = "Bash,Read,Edit,Write,Glob,Grep"
#: Without Glob and Grep, which a shell replaces.
LEAN_TOOLS = "Bash,Read,Edit,Write"
#: Unscoped Edit and Read would reach any path; print mode silently refuses Bash unless it is named.
PRE_APPROVED = "Bash,Edit(./**),Read(./**)"
WRITE_IN_PARTS = (
    "When a file is longer than about 150 lines, write it in parts: create it with the first part, "
    "then append the rest in several smaller edits."
)

#: Replaces Claude Code's own, which is eight times as long.
LEAN_PROMPT = (
    "You are a coding agent in the user's terminal. Do what is asked with the tools, no more and no less: look before "
    "you act (Bash with ls, grep or git), read a file before you edit it, prefer Edit to writing a file anew, and "
    "run what you changed. Paths are relative to the working directory, which pwd tells. Never make up a result. If "
    "something fails, say so and try another way. Answer in a few plain sentences. " + WRITE_IN_PARTS
)

#: What it runs on Linux; on a Mac sandbox-exec, which is always there.
OWN_NEEDS = ("bwrap", "socat")
#: The session's file with the MCP servers that the user named.
_MCP_CONFIG = "mcp.json"
#: Commands run in it or not at all: neither a missing program nor the model's own word may switch it off.
OWN_SANDBOX = {
    "enabled": True,
    "failIfUnavailable": True,
    "allowUnsandboxedCommands": False,
    "autoAllowBashIfSandboxed": True,
    "network": {"allowedDomains": []},
}

#: Claude Code cuts a hook's output to a preview beyond 10,000 characters (measured on both versions).
HOOK_OUTPUT_BYTES = 9_000

#: Seconds between two runs of the status line, which takes about 30 ms.
STATUS_EVERY_S = 2

#: Entries of the configuration folder that last: conversations, what --resume and --rewind need, running sessions.
_KEPT = frozenset(
    """projects sessions shell-snapshots todos tasks plans file-history history.jsonl paste-cache
    image-cache debug .last-cleanup""".split()
)
#: Entries that it makes again by itself at each start. Bash sources the files of session-env.
_RENEWED = frozenset("session-env plugins backups statsig telemetry cache ide downloads".split())
#: Keys of .claude.json that only record what was shown and how it looks.
_KNOWN = frozenset(
    """firstStartTime firstStartVersion machineID userID opusProMigrationComplete sonnet1m45MigrationComplete
    hasResetAutoModeOptInForDefaultOffer migrationVersion numStartups lastReleaseNotesSeen theme editorMode verbose
    promptQueueUseCount hasUsedBackslashReturn hasSeenTasksHint memoryUsageCount""".split()
)

TIMEOUT_MS = 1_800_000


@dataclass(frozen=True, slots=True)
class Context:
    """What was looked up on this machine for Claude Code.

    user_claude_md: the user's own CLAUDE.md, which reaches a session although their settings files do not.
    imported: the files that it imports.
    parent_claude_mds: CLAUDE.md of the folders from the repository's root down to the working folder, without that of
    the working folder itself, and their sizes in bytes. status_line: the program behind the line below the prompt.
    nudge: the program that sends the agent on after a reply that announced a call and made none. pictures: the program
    that answers in words where a file is named that the model cannot see.
    sandbox_problem: why its own sandbox cannot hold a command here; empty if it can.
    """

    user_claude_md: Path | None = None
    imported: tuple[Path, ...] = ()
    parent_claude_mds: Mapping[Path, int] = field(default_factory=dict)
    mcp_config: Path = Path("mcp-local.json")
    status_line: tuple[str, ...] = ()
    nudge: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    sandbox_problem: str = ""


def context_of(session: AgentSession) -> Context:
    context = session.found.context if session.found else None
    return context if isinstance(context, Context) else Context()


def instructions_above(context: Context) -> dict[str, object]:
    """The hook that gives the session the CLAUDE.md of the folders above.

    Claude Code itself would read them only with `--add-dir`, which also makes those folders writable.
    """
    if not context.parent_claude_mds or sum(context.parent_claude_mds.values()) > HOOK_OUTPUT_BYTES:
        return {}
    # printf, because echo of some shells interprets backslashes
    say = "; ".join(
        f"printf '%s\\n' {shlex.quote(f'Instructions of {path}:')}; cat {shlex.quote(str(path))}; echo"
        for path in context.parent_claude_mds
    )
    # not on resume: there they are in the conversation already
    return {"SessionStart": [{"matcher": "startup|clear|compact", "hooks": [{"type": "command", "command": say}]}]}


def _nudge(session: AgentSession, log: str) -> dict[str, object]:
    """The hook that is asked whether the agent may stop."""
    program = context_of(session).nudge
    if not program or not session.nudge:
        return {}
    return {"Stop": [{"hooks": [{"type": "command", "command": shlex.join((*program, log))}]}]}


def _pictures(session: AgentSession) -> dict[str, object]:
    """The hooks that are asked before a file is read, or named in a message."""
    program = context_of(session).pictures
    if not program or session.sees is None:
        return {}
    hook = [{"type": "command", "command": shlex.join((*program, session.sees))}]
    return {"PreToolUse": [{"matcher": "Read", "hooks": hook}], "UserPromptSubmit": [{"hooks": hook}]}


def _prompt(session: AgentSession) -> tuple[str, ...]:
    """The flags that decide what the model reads first."""
    if not session.tools:
        return ("--tools", "")
    more = (",WebFetch" if session.web else "") + (",Agent" if session.subagents else "")
    if session.lean:
        return ("--system-prompt", LEAN_PROMPT, "--tools", LEAN_TOOLS + more)
    return ("--append-system-prompt", WRITE_IN_PARTS, "--tools", TOOLS + more)


def _pre_approved(session: AgentSession) -> str:
    """What the agent does without asking: what the user gave it by name is part of it."""
    servers = (f"mcp__{re.sub(r'[^A-Za-z0-9_-]', '_', name)}" for name in session.mcp)
    return ",".join((PRE_APPROVED, *(("WebFetch",) if session.web else ()), *servers))


def _status_line(session: AgentSession, model: str, log: str) -> dict[str, object]:
    """What the server is doing, below the prompt: a program that is run again while a reply is waited for."""
    program = context_of(session).status_line
    if not program:
        return {}
    words = (*program, session.log_reader, log, str(session.context_tokens), model)
    line = {"type": "command", "command": shlex.join(words), "padding": 0, "refreshInterval": STATUS_EVERY_S}
    return {"statusLine": line}


def environment(endpoint: Endpoint, context_tokens: int, out_tokens: int) -> dict[str, str]:
    """Every variable that the session depends on."""
    model = endpoint.model
    planned = window(context_tokens, out_tokens)
    # what makes compaction start at `compacts_at_tokens`
    limit = planned.compacts_at_tokens + COMPACT_RESERVE_TOKENS + min(out_tokens, COMPACT_MAX_OUTPUT_TOKENS)
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
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(limit),
        "CLAUDE_CODE_AUTO_COMPACT_WINDOW": str(max(limit, LEAST_AUTO_COMPACT_TOKENS)),
        "CLAUDE_CODE_FILE_READ_MAX_OUTPUT_TOKENS": str(planned.result_tokens),
        "BASH_MAX_OUTPUT_LENGTH": str(result_characters(context_tokens, out_tokens)),
        # A local prefill may take minutes: all three, or a gap of 300 s ends the request.
        "API_TIMEOUT_MS": str(TIMEOUT_MS),
        "CLAUDE_STREAM_IDLE_TIMEOUT_MS": str(TIMEOUT_MS),
        "API_FORCE_IDLE_TIMEOUT": "0",
        # A proxy would carry the loopback traffic, prompt and key included.
        "NO_PROXY": "127.0.0.1,localhost,::1",
    }


def command(session: AgentSession, endpoint: Endpoint, binding: Binding) -> CommandAndFiles:
    context = context_of(session)
    variables = environment(endpoint, session.context_tokens, session.out_tokens)
    settings = {
        # `env` of a settings file beats the process environment, so ours is repeated there
        "env": variables,
        # the models that the server has: /model with any other name is refused in words
        "availableModels": [endpoint.model, *session.also],
        "disableDeepLinkRegistration": "disable",
        # what 2.1.329 reads instead of BASH_MAX_OUTPUT_LENGTH
        "bashOutputMaxChars": result_characters(session.context_tokens, session.out_tokens),
        **_status_line(session, endpoint.model, binding.log),
    }
    if session.level == BASH:
        settings["sandbox"] = OWN_SANDBOX
    if session.web:
        settings["skipWebFetchPreflight"] = True
    # in our sandbox the log can only be read; an empty file of the session is the agent's to write
    notes = {NOTES: ""} if session.level == STRICT else {}
    nudge = _nudge(session, binding.file(NOTES) if notes else binding.log)
    if hooks := {**instructions_above(context), **nudge, **_pictures(session)}:
        settings["hooks"] = hooks
    argv = (
        program_of(session),
        # "user" is the private folder below: it has no settings, but the user's CLAUDE.md
        *("--setting-sources", "user"),
        *("--settings", binding.file("settings.json")),
        "--strict-mcp-config",
        # the browser's tools do not come from MCP configurations
        "--no-chrome",
        *("--mcp-config", binding.file(_MCP_CONFIG) if session.mcp else str(context.mcp_config)),
        *("--add-dir", "."),
        *_prompt(session),
        *(("--allowedTools", _pre_approved(session)) if session.tools else ()),
        # last, because it takes one value: a flag with several would swallow the user's prompt
        *("--permission-mode", "acceptEdits"),
        *session.arguments,
    )
    env = {"CLAUDE_CONFIG_DIR": str(session.home), **variables}
    files = {"settings.json": json.dumps(settings, indent=1), **notes}
    if session.mcp:
        files[_MCP_CONFIG] = json.dumps({"mcpServers": session.mcp}, indent=1)
    return Command(argv, env, AGENT_NAMES | set(session.passed), AGENT_PREFIXES), files


def program_of(session: AgentSession) -> str:
    return str(session.found.path) if session.found else PROGRAM


def config_dir(session: AgentSession) -> ConfigDir:
    # The folder must be named exactly: from 2.1.329 on, trust is not inherited past a repository's root. A CLAUDE.md
    # that imports files from outside its project would open a dialog, which is answered with no.
    project = {
        "hasTrustDialogAccepted": True,
        "hasClaudeMdExternalIncludesApproved": False,
        "hasClaudeMdExternalIncludesWarningShown": True,
    }
    return ConfigDir(
        session.home,
        seed={
            ".claude.json": {
                "hasCompletedOnboarding": True,
                "projects": {str(folder): project for folder in sorted(session.folders)},
            }
        },
        links={"CLAUDE.md": context_of(session).user_claude_md},
        reads=context_of(session).imported,
        keeps=_KEPT,
        renewed=_RENEWED,
        known=_KNOWN,
    )
