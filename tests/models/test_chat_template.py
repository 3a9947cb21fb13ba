"""How a chat template tells what writes its model's calls. The snippets are as in the models' published templates."""

from __future__ import annotations

import pytest

from cclocal.models.headers import Traits, traits
from tools.tiny_model.circuit import CHAT_TEMPLATE


@pytest.mark.parametrize(
    ("snippet", "tool", "reasoning"),
    [
        ("{{ '<|tool_call>call:' + name }}{{ '<|channel>thought' }}", "gemma4", "gemma4"),
        ("<|start|>assistant<|channel|>commentary to=functions", "harmony", "harmony"),
        ("<tool_call>{{ name }}<arg_key>k</arg_key>{{ '<think>' }}", "glm47", "glm4"),
        ("<tool_call>\n<function=name>\n<parameter=p>", "qwen3_coder", None),
        ("<tool_call>\n<function=name>{{ '<think>' }}", "qwen3_coder", "qwen3"),
        ("[AVAILABLE_TOOLS][TOOL_CALLS]", "mistral", None),
        ('<tool_call>\n{"name": ', "hermes", None),
        ("{{ message.content }}", None, None),
    ],
)
def test_marks_tell_the_parser(snippet: str, tool: str | None, reasoning: str | None) -> None:
    assert traits(snippet) == Traits(tool, reasoning)


def test_thinking_is_switched_off_where_there_is_a_switch() -> None:
    assert traits("{% if enable_thinking %}<think>{% endif %}").template_kwargs == {"enable_thinking": False}
    assert traits(CHAT_TEMPLATE) == Traits("hermes")
