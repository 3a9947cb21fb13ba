"""Looks around once per call: the machine, its engines, the agent, the folder, earlier results → `Facts`."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path

from cclocal.agents import AGENTS, DEFAULT, look_of, taken_names
from cclocal.backends import BACKENDS, forms, runtime_of
from cclocal.checks import results
from cclocal.config_file import UserFile
from cclocal.discovery.calibration import corrections
from cclocal.discovery.hardware import machine
from cclocal.errors import AgentMissingError, FolderError
from cclocal.facts import AgentFound, Alternative, Facts
from cclocal.memory.known import published_shape
from cclocal.models import catalog_file
from cclocal.models.catalog import Catalog, Rules
from cclocal.paths import Env, packaged
from cclocal.planning.choose import choose_variant
from cclocal.programs import Answers
from cclocal.settings import Settings


def rules() -> Rules:
    """What the backends and agents of this installation demand of models."""
    return Rules(forms(), taken_names())


def load_catalog(user: UserFile | None = None) -> Catalog:
    """The shipped catalog and the user's models. Raises UsageError with file:line for a mistake."""
    return catalog_file.load(packaged("models.toml"), rules(), user)


def look(env: Env, settings: Settings, catalog: Catalog) -> Facts:
    """Everything a plan may depend on beside a model's files.

    Starts small programs (`--version`, `--help`) and remembers their answers. Raises BackendMissingError if an engine
    was found but does not run, FolderError if the working folder is gone.
    """
    answers = Answers(env.folders.cache / "probes.json")
    facts = look_around(env, settings, answers)
    here = facts.machine
    engines = {name: tuple(runtime_of(name).find(env, settings, here, answers)) for name in BACKENDS}
    facts = replace(
        facts,
        engines=engines,
        corrections=corrections(env),
        proofs={name: bool(row.get("works")) for name, row in results.known(env).items()},
    )
    answers.save()
    return replace(facts, alternatives=_alternatives(catalog, facts))


def look_around(env: Env, settings: Settings, answers: Answers | None = None) -> Facts:
    """The machine, the agent and the working folder, without engines. Raises FolderError if that folder is gone."""
    try:
        cwd = Path(os.path.realpath(Path.cwd()))
    except FileNotFoundError:
        raise FolderError("The current folder no longer exists.", hint="cd to a folder that exists") from None
    root = next((folder for folder in (cwd, *cwd.parents) if (folder / ".git").exists()), None)
    kept = answers or Answers(env.folders.cache / "probes.json")
    agent, problem = (None, "") if settings.server else _agent(env, settings, cwd, root, kept)
    if answers is None:
        kept.save()
    return Facts(
        machine=machine(env.environ),
        env=env,
        cwd=cwd,
        agent=agent,
        agent_problem=problem,
        pip=_pip(),
        git_root=root,
    )


def _agent(
    env: Env, settings: Settings, cwd: Path, root: Path | None, answers: Answers
) -> tuple[AgentFound | None, str]:
    """(the agent asked for, why it cannot be used). A plan can be shown without it, so its failure is no error here."""
    name = settings.agent or DEFAULT
    if name not in AGENTS:
        # planning refuses it in words
        return None, ""
    try:
        return look_of(name).look(env, cwd, root, answers), ""
    except AgentMissingError as error:
        return None, error.message


def _alternatives(catalog: Catalog, facts: Facts) -> tuple[Alternative, ...]:
    """The models of the catalog whose dimensions are published, as they would be served here."""
    found = []
    for model in catalog.models.values():
        variant = choose_variant(model, Settings(), facts)[0]
        if shape := published_shape(model.shape, variant.shape_form, variant.size_bytes):
            found.append(Alternative(model.id, model.name, shape, model.served_context_tokens))
    return tuple(found)


def _pip() -> str:
    """The command that adds a package to our own environment; uv's tool environments have no pip."""
    if importlib.util.find_spec("pip"):
        return f"{sys.executable} -m pip install"
    return f"uv pip install --python {sys.executable}"
