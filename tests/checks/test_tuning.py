"""Which kind of speculation is chosen: the fastest over both tasks, if it writes the same text."""

from __future__ import annotations

import pytest

from cclocal.checks.tuning import TASKS, Trial, fastest, judged, rows, tokens_for
from cclocal.turns import Turn
from cclocal.ui.tables import show_tuning


def trial(kind: str, rewrite_s: float, prose_s: float, text: str = "the same", why: str = "") -> Trial:
    """100 tokens of each task, in so many seconds."""
    turns = (Turn(written_tokens=100, writing_s=seconds, accepted_tokens=60) for seconds in (rewrite_s, prose_s))
    return Trial(kind, {task: (text, turn) for task, turn in zip(TASKS, turns, strict=True)}, why)


OFF = trial("off", 10.0, 10.0)


def test_the_fastest_over_both_tasks_is_chosen() -> None:
    assert fastest([OFF, trial("ngram-simple", 3.0, 12.0), trial("ngram-mod", 4.0, 10.0)]) == "ngram-mod"
    # what it gains with the one it loses with the other
    assert fastest([OFF, trial("ngram-simple", 5.0, 15.0)]) == "off"
    # a gain of less than 5 % is noise
    assert fastest([OFF, trial("ngram-simple", 9.8, 9.8)]) == "off"
    assert fastest([]) == "off"


def test_another_text_or_a_server_that_does_not_start_rules_a_kind_out() -> None:
    trials = [OFF, trial("ngram-simple", 1.0, 1.0, text="another"), Trial("mtp", {}, "the server did not start")]
    assert fastest(trials) == "off"
    assert [one.why for one in judged(trials)] == ["", "its text differs", "the server did not start"]
    assert rows(trials)[1]["rewrite"] == {"per_s": 100.0, "per_step": 2.5}


def test_a_reply_takes_some_seconds_whatever_the_speed() -> None:
    assert [tokens_for(Turn(written_tokens=12, writing_s=seconds)) for seconds in (0.01, 0.5, 12.0)] == [192, 96, 64]
    # no token was written
    assert tokens_for(Turn()) == 64


def test_the_trials_are_shown_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    show_tuning([OFF])
    show_tuning([OFF, Trial("mtp", {}, "the server did not start")])
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split() == ["speculation", "rewrite,", "tokens/s", "prose,", "tokens/s"]
    assert shown[2].split()[:4] == ["off", "10", "(2.5", "a"]
    assert shown[3].split() == ["mtp", "—", "—", "the", "server", "did", "not", "start"]
