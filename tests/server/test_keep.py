"""When a conversation's state is worth a file, as the keeper decides it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cclocal.backends import BACKENDS
from cclocal.server.keep import IDLE_S, Conversation

KEPT = {"tokens": 4000, "bytes": 4000 * 5000}


def turn(prompt: int, read: int, written: int, seconds: float) -> str:
    """A reply in llama.cpp's log."""
    slot = "1.0.0.1 I slot print_timing: id  0 | task 8 |"
    return (
        f"{slot} new prompt, n_ctx_slot = 32768, n_keep = 0, task.n_tokens = {prompt}\n"
        f"{slot} prompt eval time = {seconds * 1000:.2f} ms / {read} tokens\n"
        f"{slot}        eval time = 1000.00 ms / {written} tokens\n"
    )


@pytest.fixture
def kept(tmp_path: Path) -> Conversation:
    folder = tmp_path / "warm"
    folder.mkdir()
    log = tmp_path / "log"
    log.touch()
    found = Conversation(
        {
            "folder": str(folder),
            "save": ["POST", "/save", '{"filename": "{name}"}'],
            "restore": ["POST", "/restore", '{"filename": "{name}"}'],
            "counted": r'"n_saved": ?(\d+)',
            "log": str(log),
            "log_reader": BACKENDS["llama-server"].LOG_READER,
            "about": "a model",
            "idle_s": IDLE_S,
            "most_bytes": 10**9,
            "restores": [str(tmp_path / "restores.json"), "an engine"],
            "note": {"cwd": "/", "pattern": "", "agent": "claude", "model": "m"},
        }
    )
    found.begin(KEPT)
    return found


def say(kept: Conversation, *lines: str) -> None:
    Path(kept.options["log"]).write_text("".join(lines))


def save(kept: Conversation, tokens: int, took_s: float = 0.1) -> dict[str, Any]:
    """What a server and the relay do."""
    _, _, body = kept.save("01234567-89ab-cdef-0123-456789abcdef")
    (Path(kept.folder) / json.loads(body)["filename"]).write_bytes(bytes(1000))
    words, restore = kept.saved(json.dumps({"n_saved": tokens}), took_s)
    assert f"{tokens:,} tokens" in words
    state = Path(kept.folder) / json.loads(restore[2])["filename"]
    return dict(json.loads(state.with_suffix(".json").read_text()))


def test_from_so_many_new_tokens_on(kept: Conversation) -> None:
    assert not kept.is_worth_it()
    say(kept, turn(4300, 300, 50, 1.0))
    assert not kept.is_worth_it()
    say(kept, turn(4600, 600, 50, 1.0))
    assert kept.is_worth_it()


def test_again_only_when_it_has_grown_and_at_once_when_it_began_anew(kept: Conversation) -> None:
    say(kept, turn(8000, 4000, 50, 10.0))
    note = save(kept, 8050)
    assert (note["tokens"], note["size_bytes"]) == (8050, 1000)
    say(kept, turn(9000, 950, 50, 2.0))
    assert not kept.is_worth_it()
    say(kept, turn(11000, 2950, 50, 5.0))
    assert kept.is_worth_it()
    # compacted: what is on disk is of the conversation before
    say(kept, turn(6000, 2000, 50, 5.0))
    assert kept.is_worth_it()
    # begun anew, with little beside the prompt that is on disk
    say(kept, turn(4100, 100, 50, 1.0))
    assert not kept.is_worth_it()


def test_not_on_a_disk_that_is_slower_than_reading_again(kept: Conversation) -> None:
    say(kept, turn(8000, 4000, 50, 1.0))
    assert kept.is_worth_it()
    # 1,000 bytes in a minute
    save(kept, 4001, took_s=60.0)
    kept.begin(KEPT)
    assert not kept.is_worth_it()


def test_not_beyond_its_most_bytes_nor_without_its_folder(kept: Conversation) -> None:
    say(kept, turn(8000, 4000, 50, 100.0))
    kept.options = {**kept.options, "most_bytes": 10**7}
    assert not kept.is_worth_it()
    kept.options = {**kept.options, "most_bytes": 10**9}
    assert kept.is_worth_it()
    shutil.rmtree(kept.folder)
    assert not kept.is_worth_it()
    kept.carry("01234567-89ab-cdef-0123-456789abcdef")
    kept.learn()


def test_in_mid_session_when_nothing_was_asked_for_a_while_and_never_again_after_a_slow_save(
    kept: Conversation,
) -> None:
    say(kept, turn(8000, 4000, 50, 100.0))
    assert not kept.is_due({"answered": 3, "idle_s": None})
    assert not kept.is_due({"answered": 3, "idle_s": 5.0})
    assert kept.is_due({"answered": 3, "idle_s": 25.0})
    # nothing was answered since
    assert not kept.is_due({"answered": 3, "idle_s": 30.0})
    save(kept, 8050, took_s=3.0)
    say(kept, turn(20000, 11950, 50, 100.0))
    assert not kept.is_due({"answered": 4, "idle_s": 25.0})


def test_a_save_whose_relay_was_killed_does_not_stop_the_next(kept: Conversation) -> None:
    say(kept, turn(8000, 4000, 50, 100.0))
    kept.save("01234567-89ab-cdef-0123-456789abcdef")
    assert not kept.is_due({"answered": 3, "idle_s": 25.0})
    kept.give_up()
    assert kept.is_due({"answered": 3, "idle_s": 25.0})


@pytest.mark.parametrize(("kept_tokens", "known"), [(3900, True), (3, False), (1500, None)])
def test_what_an_engine_made_of_a_state_is_learned(kept: Conversation, kept_tokens: int, known: bool | None) -> None:
    """Little use is no sign: another conversation may have been chosen."""
    kept.begin({**KEPT, "state": "c-1.bin"})
    say(kept, turn(4100, 4100 - kept_tokens, 50, 1.0), turn(5000, 10, 50, 1.0))
    kept.learn()
    path = Path(kept.options["restores"][0])
    told = json.loads(path.read_text()) if path.exists() else {}
    assert told.get("an engine") is known
