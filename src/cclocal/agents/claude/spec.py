"""Claude Code: the launch profile, verified on 2.1.197 and 2.1.329 (docs/claude-code.md has the reasons).

Sources: runs of the real binaries against a scripted server that logged every request; tests/agents repeats them.
"""

from __future__ import annotations

import re

from packaging.version import Version

from cclocal.agents.claude.capture import capture as capture
from cclocal.agents.claude.capture import capture_run as capture_run
from cclocal.agents.claude.capture import plain as plain
from cclocal.agents.claude.command import PROGRAM as PROGRAM
from cclocal.agents.claude.command import command as command
from cclocal.agents.claude.command import config_dir as config_dir
from cclocal.agents.claude.command import context_of, instructions_above
from cclocal.agents.claude.command import is_interactive as is_interactive
from cclocal.agents.claude.environment import window as window
from cclocal.agents.session import AgentSession

NAME = "claude"
INSTALL = "npm install -g @anthropic-ai/claude-code@2.1.329"
TITLE = "Claude Code"
LOOK = "cclocal.agents.claude.look"
WIRE = "anthropic"
#: Mouse, focus and theme reports off, the cursor shown.
TERMINAL_RESET = "\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1004l\x1b[?2031l\x1b[?25h"
#: Claude Code uses its long prompt, or another window, for ids that look like Anthropic's.
TAKEN = re.compile(r"claude|sonnet|haiku|opus|\[1m\]", re.IGNORECASE)
FORBIDDEN = re.compile(
    r"(ANTHROPIC|CLAUDE|CLAUDECODE|BUN|DISABLE)(_.*)?|API_(TIMEOUT_MS|FORCE_IDLE_TIMEOUT)|USE_STAGING_OAUTH"
    r"|MAX_THINKING_TOKENS",
    re.IGNORECASE,
)

#: The oldest version whose isolation was verified; what an older one reads and sends is unknown.
OLDEST = Version("2.1.197")

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


def ask_once(prompt: str) -> tuple[str, ...]:
    return ("-p", prompt)


def resume_arguments() -> tuple[str, ...]:
    return ("--continue",)


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
    return tuple(dict.fromkeys(found))


def unusable(version: str) -> str | None:
    if Version(version) >= OLDEST:
        return None
    return f"Claude Code {version} is older than {OLDEST}, the oldest whose isolation was verified"
