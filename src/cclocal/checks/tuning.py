"""Which kind of speculation is the fastest on this machine: what is asked, which one is chosen, what is remembered."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cclocal.checks.conversation import user
from cclocal.checks.results import subject
from cclocal.facts import Engine
from cclocal.models.catalog import Model, Variant
from cclocal.paths import Env, read_rows, write_private
from cclocal.settings import OFF, SPECULATIONS, Speculation
from cclocal.turns import LEAST_WRITTEN_TOKENS, Turn
from cclocal.wires.wire import Body

_LINES = 24
#: A file to write again: its names and numbers do not repeat, so that only copying is fast.
_FILE = "\n".join(
    f"def {name}_{number}(value: int) -> int:\n    return value * {number * 7 % 23} + {number * number % 17}\n"
    for number, name in enumerate(("scale", "shift", "limit", "widen", "round", "weigh") * (_LINES // 6))
)
#: What is written: a file that is in the context, and a new text.
TASKS: Mapping[str, list[Body]] = {
    "rewrite": [user(f"Repeat this file exactly:\n\n{_FILE}")],
    "prose": [user("Explain to a beginner in three paragraphs how a hash table works, and when it is slow.")],
}
#: A task's reply takes about so many seconds without speculation, and has so many tokens at least and at most: in fewer
#: nothing is guessed, because guesses begin once a dozen tokens of the text so far match.
SECONDS, LEAST_TOKENS, MOST_TOKENS = 4.0, 64, 192
#: The speed is guessed from so many tokens first.
FIRST_TOKENS = 12
#: A kind must be so much faster than none: less is noise.
GAIN = 1.05
#: Models that are remembered; the oldest go first.
_KEPT = 100


class Trial(NamedTuple):
    """One kind of speculation as it was measured: the reply to each task, and its cost. why: it cannot be used."""

    kind: str
    replies: Mapping[str, tuple[str, Turn]]
    why: str = ""


def tokens_for(first: Turn) -> int:
    """How many tokens each reply gets, by the speed of a first short one."""
    written, writing_s = first.written_tokens or 0, first.writing_s or 0.0
    return max(LEAST_TOKENS, min(int(SECONDS * written / writing_s) if writing_s else 0, MOST_TOKENS))


def judged(trials: Sequence[Trial]) -> list[Trial]:
    """The trials, each with what speaks against its kind: a text that differs from the one without speculation."""
    plain = next((trial for trial in trials if trial.kind == OFF), None)
    texts = [text for text, _ in plain.replies.values()] if plain else []
    found = []
    for trial in trials:
        why = trial.why
        speeds = [turn.write_per_s for _, turn in trial.replies.values()]
        if not why and (len(speeds) < len(TASKS) or not all(speeds)):
            why = f"a reply ended before {LEAST_WRITTEN_TOKENS} tokens"
        if not why and [text for text, _ in trial.replies.values()] != texts:
            why = "its text differs"
        found.append(trial._replace(why=why))
    return found


def fastest(trials: Sequence[Trial]) -> str:
    """The kind that writes as many tokens of both tasks in the least time, if it is faster than none by GAIN."""
    times = {
        trial.kind: sum(1 / (turn.write_per_s or 1.0) for _, turn in trial.replies.values())
        for trial in judged(trials)
        if not trial.why
    }
    best = min(times, key=lambda kind: times[kind], default=OFF)
    return best if OFF in times and times[OFF] > GAIN * times[best] else OFF


def rows(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """The trials for people and scripts: tokens per second and per step of each task."""

    def cells(turn: Turn) -> dict[str, float | None]:
        return {"per_s": round(turn.write_per_s or 0.0, 1), "per_step": turn.per_step and round(turn.per_step, 2)}

    return [
        {"kind": one.kind, "why": one.why, **{task: cells(turn) for task, (_, turn) in one.replies.items()}}
        for one in judged(trials)
    ]


def key(model: Model, variant: Variant, engine: Engine) -> str:
    """What a choice holds for: this model on this build of the engine, and its devices."""
    devices = ", ".join(engine.device_names) or "cpu"
    return f"{subject(model, variant)} {engine.form} {engine.version} | {devices} | {variant.kv_type}"


def known(env: Env) -> Mapping[str, Speculation]:
    """The kinds that were chosen, by key."""
    kinds = {kind: kind for kind in SPECULATIONS}
    found = {name: kinds.get(row.get("kind", "")) for name, row in read_rows(env.folders.state / "tuned.json").items()}
    return {name: kind for name, kind in found.items() if kind}


def keep(name: str, kind: str, found: Sequence[Mapping[str, Any]], env: Env) -> None:
    """Remember which kind was chosen, and by which numbers."""
    path = env.folders.state / "tuned.json"
    kept = dict(list(read_rows(path).items())[-_KEPT:])
    kept.pop(name, None)
    write_private(path, json.dumps({**kept, name: {"kind": kind, "rows": [*found]}}))
