"""A conversation's KV cache from one session to the next: which state is restored, and what a keeper must know to save
one (server/keep.py).
"""

from __future__ import annotations

import contextlib
import glob
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from cclocal.agents import AGENTS, continued
from cclocal.backends import runtime_of
from cclocal.paths import Env, make_folder, read_table, write_private
from cclocal.planning.plan import Plan
from cclocal.server.keep import CAP_BYTES, IDLE_S, PREFIX, checksum

#: A script may run many sessions of one question a day and resume none of them: of those only small states are saved.
MOST_ONCE_BYTES = 256 * 10**6
_MOST_NOTE_BYTES = 65536
#: How the files end that say of which conversation they are: the note of a state, a request.
Kind = Literal["json", "request"]


def keeps(plan: Plan, log: Path, pattern: str, env: Env) -> dict[str, Any] | None:
    """What the keeper needs in order to save the conversation; None if this session's is not saved.

    `pattern`: of the files of the agent's conversations. Raises FolderError.
    """
    if not plan.can_save_conversation:
        return None
    runtime = runtime_of(plan.variant.backend)
    goes_on = continued(AGENTS[plan.agent], plan.settings.agent_args) is not None
    return {
        "folder": str(make_folder(env.folders.saved_prompts)),
        "save": runtime.save_request("{name}"),
        "restore": runtime.restore_request("{name}"),
        "counted": runtime.COUNTED,
        "log": str(log),
        "log_reader": plan.session.log_reader,
        "about": _about(plan),
        "idle_s": float(env.environ.get("CCLOCAL_TEST_IDLE_S") or IDLE_S),
        "restores": [str(env.folders.restores), f"{plan.restores_key} conversation"],
        "most_bytes": CAP_BYTES if plan.is_interactive or goes_on else MOST_ONCE_BYTES,
        "note": {"agent": plan.agent, "cwd": str(plan.session.cwd), "pattern": pattern, "model": plan.word},
    }


def requests(plan: Plan, pattern: str, env: Env) -> dict[str, Any] | None:
    """Where the keeper has the conversation's last request kept, and under which note; None if it is not kept.

    A session that goes on with the conversation reads it ahead, where no state of it can be restored. Raises
    FolderError.
    """
    if plan.settings.cold or plan.settings.server or not plan.session.tools:
        return None
    return {
        "folder": str(make_folder(env.folders.saved_prompts)),
        "note": {"agent": plan.agent, "cwd": str(plan.session.cwd), "pattern": pattern},
    }


def last_request(plan: Plan, env: Env) -> tuple[str, dict[str, Any]] | None:
    """(the path, the body) of the last request of the conversation that the agent's arguments go on with.

    None if there is none. Those of conversations that were deleted are removed.
    """
    found = None if plan.settings.cold else _meant(plan, env, "request", agent=plan.agent)
    if found:
        file, note = found
        with contextlib.suppress(OSError, ValueError), file.open("rb") as data:
            data.readline()
            return str(note["path"]), json.load(data)
    return None


def find(plan: Plan, env: Env) -> tuple[Path, int] | None:
    """(the state of the conversation that the agent's arguments go on with, its tokens); None if there is none.

    A state that is not what was written is left out. States of conversations that were deleted are removed.
    """
    found = _meant(plan, env, "json", about=_about(plan)) if plan.can_save_conversation else None
    if found:
        path, note = found
        state = path.with_suffix(".bin")
        if is_whole(state, note):
            return state, int(note["tokens"])
    return None


def _meant(plan: Plan, env: Env, kind: Kind, **fields: str) -> tuple[Path, dict[str, Any]] | None:
    """(the file, the note) of the conversation that the agent's arguments go on with, if one has these fields.

    Without an id that is the one of this folder which the agent changed last.
    """
    wanted = continued(AGENTS[plan.agent], plan.settings.agent_args)
    if wanted is None:
        return None
    fields |= {"conversation": wanted} if wanted else {"cwd": str(plan.session.cwd)}
    fits = [(changed_s, path, note) for path, note, changed_s in _noted(env, kind) if fields.items() <= note.items()]
    newest = max(fits, key=lambda one: one[0], default=None)
    return newest and newest[1:]


def is_whole(state: Path, note: Mapping[str, Any]) -> bool:
    """Whether a saved state is what was written, by its note."""
    with contextlib.suppress(OSError):
        return state.stat().st_size == note.get("size_bytes") and checksum(str(state)) == note.get("sha256")
    return False


def _noted(env: Env, kind: Kind) -> Iterator[tuple[Path, dict[str, Any], float]]:
    """Each note of a state, or each request: its file, what it says, and when the agent changed the conversation last,
    in seconds since the epoch.

    Those whose conversation was deleted are removed.
    """
    there: dict[str, list[str]] = {}
    for path in env.folders.saved_prompts.glob(f"{PREFIX}*.{kind}"):
        note, state = _note(path), path.with_suffix(".bin")
        pattern = str(note.get("pattern", ""))
        if pattern not in there:
            there[pattern] = glob.glob(pattern)  # noqa: PTH207 - an absolute pattern
        file = next((file for file in there[pattern] if file.endswith(f"{note.get('conversation')}.jsonl")), "")
        if file and (kind == "request" or state.exists()):
            yield path, note, Path(file).stat().st_mtime
        else:
            path.unlink(missing_ok=True)
            if kind == "json":
                state.unlink(missing_ok=True)


def _note(path: Path) -> dict[str, Any]:
    """The JSON table in a file's first line; empty if there is none."""
    with contextlib.suppress(OSError, ValueError), path.open("rb") as file:
        note = json.loads(file.readline(_MOST_NOTE_BYTES))
        return note if isinstance(note, dict) else {}
    return {}


def note_restores(plan: Plan, what: str, works: bool, env: Env) -> None:
    """Remember whether this engine could use a restored state of this kind of memory. `what`: prompt, conversation."""
    path = env.folders.restores
    write_private(path, json.dumps({**read_table(path), f"{plan.restores_key} {what}": works}))


def _about(plan: Plan) -> str:
    """What a state depends on beside the conversation: the agent, the model's file, the engine and its KV cache."""
    return f"{plan.agent} | {plan.cache_key} | {identity(plan)}"


def identity(plan: Plan) -> str:
    """The model's file, and a chat template file: another one of the same name is another model."""
    files = [Path(name) for name in (plan.request.model_file, plan.variant.chat_template_file) if name]
    return " ".join(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files if file.exists())
