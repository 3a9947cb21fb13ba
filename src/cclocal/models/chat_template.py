"""What a chat template says about a model: how it writes tool calls, and whether its thinking can be switched off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: A mark in a template → vllm-mlx's parser for tool calls in that format. The first match counts: several formats
#: share <tool_call>. Source: vllm-mlx 0.6.0's tool_parsers, and the models' published templates.
_TOOL_MARKS = (
    ("<|tool_call>", "gemma4"),
    ("<|channel|>", "harmony"),
    ("<arg_key>", "glm47"),
    ("<function=", "qwen3_coder"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|python_tag|>", "llama"),
    ("<｜tool▁calls▁begin｜>", "deepseek_v3"),
    ("<|tool_calls_section_begin|>", "kimi"),
    ("<minimax:tool_call>", "minimax"),
    ("<TOOLCALL>", "nemotron"),
    ("<tool_call>", "hermes"),
)
#: The same for vllm-mlx's parser of thinking.
_THOUGHT_MARKS = (
    ("<|channel>", "gemma4"),
    ("<|channel|>", "harmony"),
    ("[THINK]", "mistral"),
    ("<think>", "qwen3"),
)
#: Tool parsers whose models have a reasoning parser of their own for <think>.
_OWN_THOUGHTS = {"glm47": "glm4", "deepseek_v3": "deepseek_r1"}


@dataclass(frozen=True, slots=True)
class Traits:
    """What was read from a template. None = no parser is known for it."""

    tool_parser: str | None = None
    reasoning_parser: str | None = None
    template_kwargs: Mapping[str, bool | str | int] = field(default_factory=dict)


def traits(template: str) -> Traits:
    """What a chat template (Jinja) says about its model."""
    tool = next((parser for mark, parser in _TOOL_MARKS if mark in template), None)
    thought = next((parser for mark, parser in _THOUGHT_MARKS if mark in template), None)
    if thought == "qwen3":
        thought = _OWN_THOUGHTS.get(tool or "", thought)
    # off unless the user asks for it
    kwargs = {"enable_thinking": False} if "enable_thinking" in template else {}
    return Traits(tool, thought, kwargs)
