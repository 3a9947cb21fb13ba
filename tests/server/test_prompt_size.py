"""A server that cuts a prompt beyond its window without a word: the relay refuses it instead."""

from __future__ import annotations

import pytest

from cclocal.server.framing import Refused
from cclocal.server.prompt_size import PromptSize
from cclocal.wires import WIRES

WINDOW = 1000
PATH = WIRES["anthropic"].PATH
OPTIONS = {"cuts_beyond": WINDOW, "too_long": {PATH: WIRES["anthropic"].ERRORS["too long"]}}


def usage(tokens: int) -> bytes:
    return b'{"type":"message_delta","usage":{"input_tokens": %d,"output_tokens": 5}}' % tokens


def test_a_prompt_is_measured_by_earlier_turns() -> None:
    prompts = PromptSize(OPTIONS)
    # nothing is known yet
    prompts.check(PATH, b"x" * 100_000)
    prompts.learner(2000)(usage(500))
    prompts.check(PATH, b"x" * 3900)
    with pytest.raises(
        Refused, match=r"prompt is too long: 1025 tokens > 1000 maximum \(by its bytes, .*turns\)"
    ) as told:
        prompts.check(PATH, b"x" * 4100)
    assert told.value.status == "400 Bad Request"


def test_a_count_that_is_cut_in_two_is_read() -> None:
    prompts = PromptSize(OPTIONS)
    text = usage(500)
    for at in range(len(text)):
        learn = prompts.learner(2000)
        learn(text[:at])
        learn(text[at:])
        assert prompts.tokens_per_byte == 0.25


def test_after_a_prompt_was_cut_none_of_its_size_is_sent_again() -> None:
    prompts = PromptSize(OPTIONS)
    prompts.learner(2000)(usage(500))
    # 1,000 of perhaps 1,500: the server tells no more
    prompts.learner(3000)(usage(WINDOW))
    prompts.check(PATH, b"x" * 2900)
    with pytest.raises(Refused, match=r"1001 tokens > 1000 maximum \(an earlier one of this size was cut"):
        prompts.check(PATH, b"x" * 3000)


def test_a_picture_is_no_text() -> None:
    prompts = PromptSize(OPTIONS)
    prompts.learner(2000)(usage(500))
    prompts.check(PATH, b'{"type":"base64","data":"' + b"x" * 100_000)


def test_a_server_that_refuses_by_itself_is_left_to() -> None:
    prompts = PromptSize({})
    prompts.learner(2000)(usage(500))
    prompts.check(PATH, b"x" * 1_000_000)


def test_an_answer_is_measured_by_itself() -> None:
    """The end of the one before it still has a count, of a request of another size."""
    prompts = PromptSize(OPTIONS)
    prompts.learner(2000)(usage(500))
    prompts.learner(1000)(b"event: ping")
    assert prompts.tokens_per_byte == 0.25
