"""How Claude Code uses a context window."""

from __future__ import annotations

from collections.abc import Mapping

from cclocal.agents.session import Window
from cclocal.settings import Prompt

#: Claude Code compacts at MAX_CONTEXT_TOKENS - min(MAX_OUTPUT_TOKENS, 20000) - 13000 (measured on both versions).
COMPACT_RESERVE_TOKENS = 13000
COMPACT_MAX_OUTPUT_TOKENS = 20000
#: What a compaction adds to the conversation that it summarises (2,809 of the tiny model's tokens, which are short).
COMPACT_PROMPT_TOKENS = 3072
#: The fixed part of the prompt and a turn: with less beside it a session cannot work. By SmolLM2's tokenizer the fixed
#: part has 4,178 tokens, and 2,117 with --lean; a server that counts says exactly what its model's has.
LEAST_PROMPT_TOKENS: Mapping[Prompt, int] = {"full": 5120, "lean": 3072, "chat": 2048}
#: The same with a few turns: what results are cut for.
PROMPT_TOKENS = 8192
#: AUTO_COMPACT_WINDOW is clamped to at least this by Claude Code.
LEAST_AUTO_COMPACT_TOKENS = 100000
#: Claude Code's own limits of one result; both are cut to fit a smaller window.
MOST_RESULT_TOKENS, MOST_RESULT_CHARACTERS = 25_000, 30_000
LEAST_RESULT_TOKENS = 1024
#: For code; prose has four, and digits may be a token each.
CHARACTERS_PER_TOKEN = 2


def window(context_tokens: int, out_tokens: int, prompt: Prompt = "full") -> Window:
    """Claude Code looks at the window between results, so one result must not use what is reserved for compaction.

    It compacts so early that one more result, the request to summarise and the summary still fit. A result is at most a
    fifth of the window beside a reply and the prompt.
    """
    fifth = (context_tokens - PROMPT_TOKENS - out_tokens - COMPACT_PROMPT_TOKENS) // 5
    result = max(LEAST_RESULT_TOKENS, min(fifth, MOST_RESULT_TOKENS))
    return Window(
        least_tokens=LEAST_PROMPT_TOKENS[prompt] + out_tokens + COMPACT_PROMPT_TOKENS + LEAST_RESULT_TOKENS,
        compacts_at_tokens=context_tokens - out_tokens - COMPACT_PROMPT_TOKENS - result,
        result_tokens=result,
    )


def result_characters(context_tokens: int, out_tokens: int) -> int:
    """The longest output of a command, which Claude Code counts in characters."""
    return min(CHARACTERS_PER_TOKEN * window(context_tokens, out_tokens).result_tokens, MOST_RESULT_CHARACTERS)
