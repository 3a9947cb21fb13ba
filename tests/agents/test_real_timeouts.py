"""A long prefill. One limit can be made short, and is shown to kill and to save; bench/silence.py has the others."""

from __future__ import annotations

import pytest

from bench.silence import LIMITS, PLACES, ask
from cclocal.agents.claude.command import TIMEOUT_MS, environment
from cclocal.command import Endpoint
from tests.conftest import Claude

SILENT_S = 4.0


@pytest.mark.parametrize("place", PLACES)
def test_a_silence_longer_than_the_limit_ends_a_request_and_one_within_it_does_not(claude: Claude, place: str) -> None:
    streams, others, answered = ask(claude.path, (), place, SILENT_S, API_TIMEOUT_MS="2000")
    if place == PLACES[0]:
        # sent again, in vain
        assert streams > 1
        assert not answered
    # once the headers are there this limit is over, and the other two count
    else:
        assert (streams, others, answered) == (1, 0, True)
    assert ask(claude.path, (), place, SILENT_S, API_TIMEOUT_MS="60000") == (1, 0, True)


def test_a_session_has_all_three_limits_and_they_are_half_an_hour() -> None:
    env = environment(Endpoint("http://127.0.0.1:1", "key", "model"), 65536, 8192)
    assert [env[name] for name in LIMITS] == [str(TIMEOUT_MS), str(TIMEOUT_MS), "0"]
    assert TIMEOUT_MS == 30 * 60 * 1000
