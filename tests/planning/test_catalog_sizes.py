"""What the catalog says of memory is what the planner computes."""

from __future__ import annotations

import os
import re

from cclocal.discovery.look import load_catalog
from cclocal.paths import Env
from cclocal.session.plan import look_at_machine, plan_catalog
from cclocal.settings import Settings
from tools import docs

#: The memory that Macs are sold with, in GiB.
MACS = (16, 24, 32, 48, 64, 96, 128)


def least_memory() -> dict[str, int]:
    """Model → the smallest Mac (macOS 26) on which it fits with the context that it is served with."""
    catalog, found = load_catalog(), dict[str, int]()
    for size_gib in MACS:
        facts = look_at_machine(catalog, Settings(), Env.of(os.environ), size_gib, "26")
        for row in plan_catalog(catalog, Settings(), facts):
            if row.fit and row.fit.verdict != "too_big":
                found.setdefault(row.id, size_gib)
    return found


def test_the_memory_that_a_model_is_said_to_need_is_what_is_planned() -> None:
    computed = least_memory()
    for model in load_catalog().models.values():
        said = re.search(r"(\d+) GB and up", model.note)
        if model.id in computed and not model.variants[0].builtin:
            assert said, f"{model.id}: {computed[model.id]} GB and up"
            assert int(said[1]) == computed[model.id], f"{model.id}: {computed[model.id]} GB and up"
        else:
            assert not said, f"{model.id}: its size is not known before its header is read"
    # what README recommends fits too
    assert all(computed[id_] <= size_gib for size_gib, id_ in docs.BY_MEMORY.items())
