"""Claude Code: the whole launch profile, verified on 2.1.197 and 2.1.329 (docs/claude-code.md has the why of each).

Sources: runs of the real binaries against a scripted server that logged every request; tests/agents repeats them.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cclocal.command import (
    AGENT_NAMES,
    AGENT_PREFIXES,
    REHEARSAL,
    WORDS,
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
#: What a shell does as well is left to it.
LEAN_TOOLS = "Bash,Read,Edit,Write"
#: Unscoped Edit and Read would reach any path; print mode refuses Bash in silence unless it is named.
PRE_APPROVED = "Bash,Edit(./**),Read(./**)"
WRITE_IN_PARTS = (
    "When a file is longer than about 150 lines, write it in parts: create it with the first part, "
    "then append the rest in several smaller edits."
)

#: Instead of Claude Code's own, which is eight times as long.
LEAN_PROMPT = (
    "You are a coding agent in the user's terminal. Do what is asked with the tools, no more and no less: look before "
    "you act (Bash with ls, grep or git), read a file before you edit it, prefer Edit to writing a file anew, and "
    "run what you changed. Paths are relative to the working directory, which pwd tells. Never make up a result. If "
    "something fails, say so and try another way. Answer in a few plain sentences. " + WRITE_IN_PARTS
)

#: Claude Code compacts at MAX_CONTEXT_TOKENS - min(MAX_OUTPUT_TOKENS, 20000) - 13000 (measured on both versions).
COMPACT_RESERVE_TOKENS = 13000
COMPACT_MAX_OUTPUT_TOKENS = 20000
#: What a compaction adds to the conversation it sums up (2,809 counted with the tiny model's tokens, which are short).
COMPACT_PROMPT_TOKENS = 3072
#: The fixed part of the prompt, plus a few turns: with less than this a session cannot work.
LEAST_PROMPT_TOKENS = 8192
#: AUTO_COMPACT_WINDOW is clamped to at least this by Claude Code.
LEAST_AUTO_COMPACT_TOKENS = 100000
#: Claude Code's own limits of one result; both are cut to fit a smaller window.
MOST_RESULT_TOKENS, MOST_RESULT_CHARACTERS = 25_000, 30_000
LEAST_RESULT_TOKENS = 1024
#: Of code; prose has four, and digits may be a token each.
CHARACTERS_PER_TOKEN = 2
TIMEOUT_MS = 1_800_000
#: Claude Code cuts a hook's output to a preview beyond 10,000 characters (measured on both versions).
HOOK_OUTPUT_BYTES = 9_000

#: How often the status line is asked for again; it takes some 30 ms.
STATUS_EVERY_S = 2

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


#: What even a plain launch is given when it is only looked at: where to ask, and to ask nobody else.
_QUIET = frozenset(
    """ANTHROPIC_BASE_URL ANTHROPIC_AUTH_TOKEN ANTHROPIC_MODEL CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC
    DISABLE_TELEMETRY DISABLE_ERROR_REPORTING DISABLE_AUTOUPDATER CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL
    CLAUDE_CODE_DISABLE_TERMINAL_TITLE NO_PROXY""".split()
)
#: How a program holds a conversation.
STREAMING = ("--input-format", "stream-json", "--output-format", "stream-json", "--verbose")
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


#: What of its configuration folder lasts: conversations, what --resume and --rewind need, what running sessions use.
_KEPT = frozenset(
    """projects sessions session-env shell-snapshots todos tasks plans file-history history.jsonl paste-cache
    image-cache debug .last-cleanup""".split()
)
#: What it makes again by itself at each start.
_RENEWED = frozenset("plugins backups statsig telemetry cache ide downloads".split())
#: Keys of .claude.json that say nothing but what was shown and how things look.
_KNOWN = frozenset(
    """firstStartTime firstStartVersion machineID userID opusProMigrationComplete sonnet1m45MigrationComplete
    hasResetAutoModeOptInForDefaultOffer migrationVersion numStartups lastReleaseNotesSeen theme editorMode verbose
    promptQueueUseCount hasUsedBackslashReturn hasSeenTasksHint memoryUsageCount""".split()
)


def least_context_tokens(out_tokens: int) -> int:
    """The smallest context window in which a session with replies of `out_tokens` can work."""
    return LEAST_PROMPT_TOKENS + out_tokens + COMPACT_PROMPT_TOKENS + LEAST_RESULT_TOKENS


def result_tokens(context_tokens: int, out_tokens: int) -> int:
    """The longest result of one tool: a fifth of the window beside a reply and the least prompt.

    Claude Code looks at the window between results, so one must not take what is kept for the compaction.
    """
    fifth = (context_tokens - LEAST_PROMPT_TOKENS - out_tokens - COMPACT_PROMPT_TOKENS) // 5
    return max(LEAST_RESULT_TOKENS, min(fifth, MOST_RESULT_TOKENS))


def result_characters(context_tokens: int, out_tokens: int) -> int:
    """The same for the output of a command, which Claude Code counts in characters."""
    return min(CHARACTERS_PER_TOKEN * result_tokens(context_tokens, out_tokens), MOST_RESULT_CHARACTERS)


def conversation_tokens(context_tokens: int, out_tokens: int) -> int:
    """How long a conversation grows before it is compacted.

    So long that one more result, the request to sum it all up and the summary still fit into the window.
    """
    return context_tokens - out_tokens - COMPACT_PROMPT_TOKENS - result_tokens(context_tokens, out_tokens)


def window_tokens(context_tokens: int, out_tokens: int) -> int:
    """The value of CLAUDE_CODE_MAX_CONTEXT_TOKENS that makes compaction come at `conversation_tokens`."""
    reserve = COMPACT_RESERVE_TOKENS + min(out_tokens, COMPACT_MAX_OUTPUT_TOKENS)
    return conversation_tokens(context_tokens, out_tokens) + reserve


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
        "CLAUDE_CODE_FILE_READ_MAX_OUTPUT_TOKENS": str(result_tokens(context_tokens, out_tokens)),
        "BASH_MAX_OUTPUT_LENGTH": str(result_characters(context_tokens, out_tokens)),
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
    # a shell's echo may take backslashes for something
    say = "; ".join(
        f"printf '%s\\n' {shlex.quote(f'Instructions of {path}:')}; cat {shlex.quote(str(path))}; echo"
        for path in facts.parent_claude_mds
    )
    # not on resume: there they are in the conversation already
    return {
        "hooks": {
            "SessionStart": [{"matcher": "startup|clear|compact", "hooks": [{"type": "command", "command": say}]}]
        }
    }


def _prompt(session: Session) -> tuple[str, ...]:
    """The flags that decide what the agent reads first."""
    if not session.tools:
        return ("--tools", "")
    if session.lean:
        return ("--system-prompt", LEAN_PROMPT, "--tools", LEAN_TOOLS)
    return ("--append-system-prompt", WRITE_IN_PARTS, "--tools", TOOLS)


def _status_line(facts: Facts, session: Session) -> dict[str, object]:
    """What the server is doing, below the prompt; a program, asked again while a reply is waited for."""
    if not facts.status_line:
        return {}
    words = (*facts.status_line, session.log, str(session.context_tokens), session.endpoint.model)
    line = {"type": "command", "command": shlex.join(words), "padding": 0, "refreshInterval": STATUS_EVERY_S}
    return {"statusLine": line}


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
                # what 2.1.329 goes by instead of BASH_MAX_OUTPUT_LENGTH
                "bashOutputMaxChars": result_characters(session.context_tokens, session.out_tokens),
                **_status_line(facts, session),
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
        # the browser's tools come from elsewhere than MCP configurations
        "--no-chrome",
        *("--mcp-config", str(facts.mcp_config)),
        *("--add-dir", "."),
        *_prompt(session),
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
        keeps=_KEPT,
        renewed=_RENEWED,
        known=_KNOWN,
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
        status_line=(),
    )
    asked, said = _first_words(session)
    asking = replace(session, endpoint=Endpoint.of_session(None, session.endpoint.model), arguments=asked, log="")
    made, files = command(nowhere, asking)
    # its first request is refused, and that is that
    made = replace(made, env={**made.env, "CLAUDE_CODE_MAX_RETRIES": "0"})
    # how large the window is stands in no prompt
    told = {name: value for name, value in made.env.items() if not name.endswith(("_TOKENS", "_WINDOW", "_LENGTH"))}
    about = f"claude {facts.agent.version} {'' if drawn else '-p '}{session.endpoint.model} {_digest(made.argv, told)}"
    return Rehearsal(about, made, files, home(nowhere), drawn, said)


def plain(facts: Facts, session: Session) -> Rehearsal:
    """The agent as it is with nothing but a server's address, to compare with: no flags, no overlay of ours.

    Quiet, so that nothing is sent anywhere while it is rehearsed.
    """
    from cclocal.agents import Home, Rehearsal

    drawn = draws(session.arguments)
    endpoint = Endpoint.of_session(None, session.endpoint.model)
    env = {
        "CLAUDE_CONFIG_DIR": f"{REHEARSAL}/claude",
        **{
            name: value
            for name, value in environment(endpoint, session.context_tokens, session.out_tokens).items()
            if name in _QUIET
        },
        "CLAUDE_CODE_MAX_RETRIES": "0",
    }
    asked, said = _first_words(session)
    made = Command((str(facts.agent.path) if facts.agent else PROGRAM, *asked), env, keep=AGENT_NAMES)
    trusted = home(replace(facts, cwd=Path(REHEARSAL, "project"), git_root=None, user_claude_md=None))
    version = facts.agent.version if facts.agent else ""
    about = f"plain claude {version} {'' if drawn else '-p '}{endpoint.model} {_digest(made.argv, made.env)}"
    return Rehearsal(about, made, (), Home(Path(REHEARSAL, "claude"), trusted.seed), drawn, said)


def _first_words(session: Session) -> tuple[tuple[str, ...], str]:
    """(the arguments that make a session of this kind say its first words, what it gets on standard input)."""
    if draws(session.arguments):
        return (WORDS,), ""
    if _streams(session.arguments):
        message = {"type": "user", "message": {"role": "user", "content": WORDS}}
        return ("-p", *STREAMING), json.dumps(message) + "\n"
    return ("-p", WORDS), ""


def _digest(argv: Sequence[str], env: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps([argv[1:], dict(env)], sort_keys=True).encode()).hexdigest()[:8]


def _streams(arguments: Sequence[str]) -> bool:
    """Whether a program holds the conversation: then the tools are described in other words (2.1.329)."""
    pairs = (*pairwise(arguments), *(tuple(argument.split("=", 1)) for argument in arguments))
    return ("--input-format", "stream-json") in pairs


def notes(facts: Facts, session: Session) -> tuple[str, ...]:
    found = []
    if facts.parent_claude_mds and not _instructions_above(facts):
        paths = " and ".join(map(str, facts.parent_claude_mds))
        found.append(f"{paths} is too long to be read from this folder; start in the repository's root.")
    for argument in session.arguments:
        flag = argument.split("=", 1)[0]
        if flag in _UNDOES and not (session.lean and flag == "--append-system-prompt"):
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
