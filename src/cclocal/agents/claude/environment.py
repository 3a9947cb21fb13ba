"""Claude Code's variables, and how it uses a context window: everything that the server's one window decides."""

from __future__ import annotations

from cclocal.agents.session import Window
from cclocal.command import Endpoint

#: Claude Code compacts at MAX_CONTEXT_TOKENS - min(MAX_OUTPUT_TOKENS, 20000) - 13000 (measured on both versions).
COMPACT_RESERVE_TOKENS = 13000
COMPACT_MAX_OUTPUT_TOKENS = 20000
#: What a compaction adds to the conversation that it summarises (2,809 of the tiny model's tokens, which are short).
COMPACT_PROMPT_TOKENS = 3072
#: The fixed part of the prompt, plus a few turns: with less than this a session cannot work.
LEAST_PROMPT_TOKENS = 8192
#: AUTO_COMPACT_WINDOW is clamped to at least this by Claude Code.
LEAST_AUTO_COMPACT_TOKENS = 100000
#: Claude Code's own limits of one result; both are cut to fit a smaller window.
MOST_RESULT_TOKENS, MOST_RESULT_CHARACTERS = 25_000, 30_000
LEAST_RESULT_TOKENS = 1024
#: For code; prose has four, and digits may be a token each.
CHARACTERS_PER_TOKEN = 2
TIMEOUT_MS = 1_800_000


def window(context_tokens: int, out_tokens: int) -> Window:
    """Claude Code looks at the window between results, so one result must not use what is reserved for compaction.

    It compacts so early that one more result, the request to summarise and the summary still fit.
    """
    result = _result_tokens(context_tokens, out_tokens)
    return Window(
        least_tokens=LEAST_PROMPT_TOKENS + out_tokens + COMPACT_PROMPT_TOKENS + LEAST_RESULT_TOKENS,
        compacts_at_tokens=context_tokens - out_tokens - COMPACT_PROMPT_TOKENS - result,
        result_tokens=result,
    )


def _result_tokens(context_tokens: int, out_tokens: int) -> int:
    """A fifth of the window beside a reply and the least prompt."""
    fifth = (context_tokens - LEAST_PROMPT_TOKENS - out_tokens - COMPACT_PROMPT_TOKENS) // 5
    return max(LEAST_RESULT_TOKENS, min(fifth, MOST_RESULT_TOKENS))


def result_characters(context_tokens: int, out_tokens: int) -> int:
    """The longest output of a command, which Claude Code counts in characters."""
    return min(CHARACTERS_PER_TOKEN * _result_tokens(context_tokens, out_tokens), MOST_RESULT_CHARACTERS)


def _compact_limit(context_tokens: int, out_tokens: int) -> int:
    """The value of CLAUDE_CODE_MAX_CONTEXT_TOKENS that makes compaction start at `compacts_at_tokens`."""
    reserve = COMPACT_RESERVE_TOKENS + min(out_tokens, COMPACT_MAX_OUTPUT_TOKENS)
    return window(context_tokens, out_tokens).compacts_at_tokens + reserve


def environment(endpoint: Endpoint, context_tokens: int, out_tokens: int) -> dict[str, str]:
    """Every variable that the session depends on."""
    model = endpoint.model
    limit = _compact_limit(context_tokens, out_tokens)
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
        "CLAUDE_CODE_FILE_READ_MAX_OUTPUT_TOKENS": str(_result_tokens(context_tokens, out_tokens)),
        "BASH_MAX_OUTPUT_LENGTH": str(result_characters(context_tokens, out_tokens)),
        # A local prefill may take minutes: all three, or a gap of 300 s ends the request.
        "API_TIMEOUT_MS": str(TIMEOUT_MS),
        "CLAUDE_STREAM_IDLE_TIMEOUT_MS": str(TIMEOUT_MS),
        "API_FORCE_IDLE_TIMEOUT": "0",
        # A proxy would carry the loopback traffic, prompt and key included.
        "NO_PROXY": "127.0.0.1,localhost,::1",
    }
