"""What a server's log tells of a session: recorded logs in, turns and the line below the prompt out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cclocal.agents.claude import status_line
from cclocal.agents.claude.status_line import line as line_of
from cclocal.agents.claude.status_line import tail
from cclocal.backends import BACKENDS
from cclocal.turns import Now, Turn
from cclocal.turns import turns as turns_by

#: Of llama.cpp's server at verbosity 4: the probe, the fixed prompt read in 71 s, a turn.
LOG = (Path(__file__).parent / "logs/llama-server.log").read_text()
USED: dict[str, object] = {
    "context_window": {"current_usage": {"input_tokens": 400, "cache_read_input_tokens": 7000, "output_tokens": 24}}
}


READERS = tuple(backend.LOG_READER for backend in BACKENDS.values())


def turns(log: str) -> tuple[list[Turn], Now | None]:
    return turns_by(log, READERS)


def line(status: dict[str, object], log: str, silent_s: float, window_tokens: int, model: str) -> str:
    return line_of(status, turns(log), silent_s, window_tokens, model)


def up_to(words: str) -> str:
    return LOG[: LOG.index("\n", LOG.index(words)) + 1]


def test_turns_are_what_the_log_tells() -> None:
    found, now = turns(LOG)
    assert now is None
    assert [(turn.prompt_tokens, turn.read_tokens, turn.kept_tokens) for turn in found] == [
        (13, 13, 0),
        (6993, 6988, 5),
        (7347, 354, 6993),
    ]
    last = found[-1]
    assert (last.first_s, last.written_tokens) == (4.09662, 2)
    assert last.read_per_s == pytest.approx(86.41, abs=0.01)
    # a reply of one token comes with its prompt
    assert found[0].write_per_s is None


def test_what_cclocal_itself_asks_is_known_by_its_one_token() -> None:
    assert [turn.is_ours for turn in turns(LOG)[0]] == [True, True, False]


def test_a_log_without_times_tells_the_same() -> None:
    rows, now = turns(re.sub(r"(?m)^[\d.]+ [A-Z] ", "", LOG))
    assert (rows, now) == ([row._replace(began_s=None) for row in turns(LOG)[0]], None)


def test_conversations_at_the_same_time_are_kept_apart() -> None:
    lines = LOG.splitlines()
    second = [text for text in lines if "| task 2 |" in text]
    other = [text.replace("task 2 |", "task 3 |").replace("id  0", "id  1") for text in second]
    mixed = "\n".join(text for pair in zip(second, other, strict=True) for text in pair)
    found, now = turns(mixed)
    assert now is None
    assert [turn.prompt_tokens for turn in found] == [6993, 6993]


@pytest.mark.parametrize(
    "odd",
    [
        '[cclocal] turn {"a": 1}',
        "[cclocal] turn {x}",
        'INFO [REQUEST] last user message preview: [cclocal] turn {"a": 1}',
        '[GIN] x | 200 | 1.2.3s | x | POST "/v1/messages?beta=true"',
        "they wrote: | task 2 | new prompt, n_ctx_slot = 1, task.n_tokens = 9",
        "0.00 I slot print_timing: id  0 | task 99 | prompt eval time = 1 ms / 2 tokens",
    ],
)
def test_a_line_that_only_looks_like_one_is_passed_over(odd: str) -> None:
    assert turns(f"{odd}\n{LOG}{odd}\n") == turns(LOG)


@pytest.mark.parametrize(
    ("words", "silent_s", "said"),
    [
        ("task.n_tokens = 6993", 0, "reading prompt: 0 of 6,993"),
        ("n_tokens =   2048, progress", 0, "reading prompt: 5 of 6,993, 86 s left"),
        ("cached n_tokens = 4101", 0, "reading prompt: 4,101 of 6,993, 31 s left"),
        ("cached n_tokens = 6149", 0, "reading prompt: 6,149 of 6,993, 9 s left"),
    ],
)
def test_a_prompt_that_is_read_shows_how_far(words: str, silent_s: float, said: str) -> None:
    assert line(USED, up_to(words), silent_s, 32768, "gemma") == f"7.4k of 32.8k tokens (23%) · {said} · gemma"


def test_nothing_tells_the_end_of_the_last_batch_but_the_time() -> None:
    log = up_to("cached n_tokens = 6149") + "1.08 I slot init_sampler: id  0 | task 2 | init sampler, took 0.83 ms\n"
    assert line({}, log, 5, 32768, "m").endswith("reading prompt: 6,149 of 6,993, 9 s left · m")
    assert line({}, log, 10, 32768, "m").endswith("writing · m")
    log += "1.30 I slot print_timing: id  0 | task 2 | n_gen =    100, tg =  31.00 t/s, tg_3s =  32.10 t/s\n"
    assert line({}, log, 0, 32768, "m").endswith("writing, 32 tokens/s · m")


def test_after_a_turn_it_shows_what_it_cost() -> None:
    assert line(USED, LOG, 9, 32768, "gemma") == ("7.4k of 32.8k tokens (23%) · read 354 in 4.1 s, 95% kept · gemma")
    # what the agent does not tell is taken from the log
    assert "7.3k of 32.8k" in line({}, LOG, 9, 32768, "gemma")
    # and after /clear there is nothing to tell
    assert line({"context_window": {"current_usage": None}}, LOG, 9, 32768, "gemma") == "gemma"


def test_a_request_that_was_broken_off_is_not_read_for_ever() -> None:
    log = up_to("cached n_tokens = 4101") + "1.0 I slot release: id  0 | task 2 | stop processing: n_tokens = 4101\n"
    assert turns(log)[1] is None


def test_other_engines_tell_what_they_tell() -> None:
    told = {"prompt_tokens": 419, "written_tokens": 38, "first_s": 0.7, "writing_s": 0.3}
    gin = '[GIN] 2026/11/21 - 16:36:10 | 200 |         1m13s |       127.0.0.1 | POST     "/v1/messages?beta=true"'
    tags = '[GIN] 2026/11/21 - 16:36:10 | 200 |      1.5µs |       127.0.0.1 | GET      "/api/tags"'
    assert turns(f"x\n[cclocal] turn {json.dumps(told)}\n") == ([Turn(419, None, None, 38, 0.7, 0.3, 1.0)], None)
    gins = f"{gin}\n{tags}\n{gin.replace('1m13s', '350.02ms')}\n"
    assert turns(gins) == ([Turn(whole_s=73.0, began_s=0.0), Turn(whole_s=0.35, began_s=72.65)], None)
    assert line({}, f"[cclocal] turn {json.dumps(told)}\n", 0, 4096, "m") == (
        "457 of 4.1k tokens (11%) · first word after 0.7 s · 127 tokens/s · m"
    )


@pytest.mark.parametrize(
    "told", ["", "{", "[]", '{"context_window": 1}', '{"context_window": {"current_usage": null}}']
)
def test_as_the_program_that_it_is(tmp_path: Path, told: str) -> None:
    log = tmp_path / "it's a log"
    for there in (False, True):
        if there:
            log.write_text(LOG)
        command = [sys.executable, "-I", "-S", str(status_line.__file__), READERS[0], str(log), "32768", "tiny"]
        done = subprocess.run(command, input=told, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        assert done.stdout.endswith("tiny\n")
        assert ("95% kept" in done.stdout) == (there and "window" not in told)


def test_only_the_end_of_a_log_is_looked_at(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("x" * 1000 + "end")
    assert tail(str(log), 3)[0] == "end"
    assert tail(str(tmp_path / "none")) == ("", 0.0)
