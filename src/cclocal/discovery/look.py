"""Looks around once per call: the machine, its engines, the agent, the folder, a model's files → `Facts`.

Nothing is downloaded. What is written: the answers of the programs that were asked, and what engines really allocated,
which corrects the next plan.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cclocal import tiny
from cclocal.agents import look_of, taken_names
from cclocal.backends import BACKENDS, runtime_of
from cclocal.checks import results, tuning
from cclocal.command import has_room_for_socket
from cclocal.config_file import UserFile
from cclocal.discovery import speeds
from cclocal.discovery.hardware import machine
from cclocal.discovery.projector import look_at_projector
from cclocal.errors import AgentMissingError, BackendMissingError, CclocalError, FolderError, SandboxError, UsageError
from cclocal.facts import Alternative, Engine, Facts
from cclocal.memory.footprint import read_buffers
from cclocal.memory.gguf import read_header
from cclocal.memory.mlx import shape_of_config
from cclocal.memory.projector import published_projector
from cclocal.memory.shape import Shape, published_shape, shape_of
from cclocal.models import catalog_file, hub, tags
from cclocal.models.catalog import CONFIG, Catalog, Model, Rules, Variant
from cclocal.models.headers import is_strict, of_folder, of_gguf, offers_tools
from cclocal.paths import Env, packaged, read_table, write_private
from cclocal.planning.choose import choose_agent, choose_variant, level_of, model_path
from cclocal.planning.memory import correction_key
from cclocal.planning.plan import Plan
from cclocal.programs import Answers, is_mac
from cclocal.sandbox.look import find_sandbox
from cclocal.sandbox.server import with_sandbox
from cclocal.settings import STRICT, Settings
from cclocal.units import GIB

#: The file of what engines really allocated.
_MEASURED = "memory.json"
#: A larger difference is no correction: the plan was about something else.
MOST_BYTES = 8 * GIB
#: Engines and architectures that are remembered; the oldest go first.
_KEPT = 50


def rules() -> Rules:
    """What the backends and agents of this installation demand of models."""
    return Rules({name: backend.FORMS for name, backend in BACKENDS.items()}, taken_names())


def load_catalog(user: UserFile | None = None) -> Catalog:
    """The shipped catalog and the user's models. Raises UsageError with file:line for a mistake."""
    return catalog_file.load(packaged("models.toml"), rules(), user)


def look(env: Env, settings: Settings, catalog: Catalog, *, engines_must_run: bool = True) -> Facts:
    """Everything a plan may depend on beside a model's files.

    Starts small programs (`--version`, `--help`) and remembers their answers. Raises BackendMissingError if an engine
    was found but does not run (if that matters), FolderError if the working folder is gone.
    """
    facts = look_around(env, settings)
    answers = Answers(env.folders.cache / "probes.json")
    engines: dict[str, tuple[Engine, ...]] = {}
    for name in BACKENDS:
        try:
            found = runtime_of(name).find(env, settings, facts.machine, answers)
            engines[name] = tuple(_as_used_here(engine, facts, answers) for engine in found)
        except BackendMissingError:
            if engines_must_run:
                raise
    facts = replace(
        facts,
        engines=engines,
        corrections=corrections(env),
        proofs={name: bool(row.get("works")) for name, row in results.known(env).items()},
        restores={name: bool(works) for name, works in read_table(env.folders.restores).items()},
        tuned=tuning.known(env),
    )
    answers.save()
    # only there does a plan depend on it, and it is read from the logs of many sessions
    if any(engine.on_processor for found in engines.values() for engine in found):
        facts = replace(facts, read_per_s=speeds.read(env))
    return replace(facts, alternatives=_alternatives(catalog, facts))


def look_around(env: Env, settings: Settings) -> Facts:
    """The machine, the agent and the working folder, without engines. Raises FolderError if that folder is gone."""
    try:
        cwd = Path(os.path.realpath(Path.cwd()))
    except FileNotFoundError:
        raise FolderError("The current folder no longer exists.", hint="cd to a folder that exists") from None
    root = next((folder for folder in (cwd, *cwd.parents) if (folder / ".git").exists()), None)
    answers = Answers(env.folders.cache / "probes.json")
    agent, problem = None, ""
    if not settings.server:
        try:
            agent = look_of(choose_agent(settings).NAME).look(env, cwd, root, answers)
        except AgentMissingError as error:
            # a plan can be shown without it, so its failure is no error here
            problem = error.message
    answers.save()
    seen, sandbox, sandbox_error = machine(env.environ), "", None
    if level_of(settings, seen) == STRICT:
        try:
            sandbox = find_sandbox(env.environ)
        except SandboxError as error:
            sandbox_error = error
    return Facts(
        machine=seen,
        env=env,
        cwd=cwd,
        agent=agent,
        agent_problem=problem,
        mcp=_mcp_servers(settings, cwd),
        sandbox=sandbox,
        sandbox_error=sandbox_error,
        pip=installer(),
        git_root=root,
    )


def installer(*, upgrade: bool = False) -> tuple[str, ...]:
    """The command that adds a package to the environment that cclocal runs in, or brings it up to date."""
    if (Path(sys.prefix) / "pipx_metadata.json").exists():
        return ("pipx", "inject", *(("--force",) if upgrade else ()), "cclocal")
    more = ("--upgrade",) if upgrade else ()
    # uv's environments have no pip
    if importlib.util.find_spec("pip"):
        return (sys.executable, "-m", "pip", "install", *more)
    return ("uv", "pip", "install", "--python", sys.executable, *more)


def _as_used_here(engine: Engine, facts: Facts, answers: Answers) -> Engine:
    """An engine without a unix socket if its path would be too long, and with a sandbox where there is one."""
    if not has_room_for_socket(str(facts.env.folders.sessions)):
        return replace(engine, unix_socket=False)
    has_sandbox = facts.sandbox and not is_mac(facts.env.environ)
    return with_sandbox(engine, facts.sandbox, facts.env, answers) if has_sandbox else engine


def _mcp_servers(settings: Settings, cwd: Path) -> dict[str, Mapping[str, Any]]:
    """The servers of the user's MCP configurations, by name. Raises UsageError for a file that is none."""
    found: dict[str, Mapping[str, Any]] = {}
    for word in settings.mcp:
        path = cwd / Path(word).expanduser()
        try:
            servers = json.loads(path.read_text("utf-8"))["mcpServers"]
        except OSError as error:
            raise UsageError(f"--mcp {word}: {error.strerror}.{settings.origin('mcp')}") from None
        except (ValueError, TypeError, KeyError, RecursionError):
            servers = None
        if not isinstance(servers, dict) or not all(isinstance(one, dict) for one in servers.values()):
            raise UsageError(f"--mcp {word} has no servers under “mcpServers”.{settings.origin('mcp')}")
        found |= servers
    return found


def _alternatives(catalog: Catalog, facts: Facts) -> tuple[Alternative, ...]:
    """The models of the catalog whose dimensions are published, as they would be served here."""
    found = []
    for model in catalog.models.values():
        variant = choose_variant(model, Settings(), facts)[0]
        if shape := published_shape(model.shape, variant.shape_form, variant.size_bytes):
            projector = published_projector(model.shape) if variant.mmproj else None
            found.append(Alternative(model.id, model.name, shape, model.served_context_tokens, projector))
    return tuple(found)


def look_at_model(facts: Facts, model: Model, variant: Variant) -> Facts:
    """The facts with what is on disk of one variant of a model. Raises UsageError if a file is damaged."""
    facts = replace(facts, cached=_cached(variant, facts.env))
    shape, template = _header(model, variant, facts)
    path, projectors = model_path(variant, facts), look_at_projector(model, variant, facts)
    # a store says itself which of its models call tools
    is_known = template is not None and not variant.tag
    template = _own_template(variant) or template or ""
    return replace(
        facts,
        shapes={path: shape} if shape else {},
        strict=frozenset((path,)) if is_strict(template) else frozenset(),
        toolless=frozenset((path,)) if is_known and not offers_tools(template) else frozenset(),
        projectors=projectors,
        tag_sees=tags.sees(variant.tag, facts.env.environ) if variant.tag else None,
    )


def _cached(variant: Variant, env: Env) -> dict[tuple[str, str], Path]:
    if variant.builtin:
        built = tiny.path_of(variant.builtin, variant.is_folder, env.folders.cache)
        file = built / CONFIG if variant.is_folder else built
        more = {("", variant.mmproj): built.with_name(variant.mmproj)} if variant.mmproj else {}
        return {("", variant.builtin): file, **more} if file.exists() else {}
    repo = variant.repo or ""
    here = hub.cached(repo, variant.hub_files, env.environ) if repo else {}
    return {(repo, file): path for file, path in here.items()}


def look_at_other_tags(facts: Facts, variant: Variant) -> Facts:
    """The facts with the other models of the store that a launch could change to. It reads the header of each."""
    backend, engines = BACKENDS[variant.backend], facts.engines.get(variant.backend, ())
    found: dict[str, Shape] = {}
    if variant.tag and any(backend.takes_turns(engine) for engine in engines):
        environ, own = facts.env.environ, variant.tag.removesuffix(":latest")
        for name, manifest in tags.manifests(environ):
            # a model that cclocal derived belongs to a session
            if name.removesuffix(":latest") == own or name.startswith("cclocal-"):
                continue
            # one that is damaged is not offered
            with contextlib.suppress(CclocalError):
                if tags.calls_tools(manifest, environ) and (header := tags.in_store(name, environ)):
                    found[name] = header.shape
    return replace(facts, tags=found)


def _own_template(variant: Variant) -> str:
    """The chat template that the user or the catalog gives a model; empty if its own is used."""
    if variant.chat_template_file:
        with contextlib.suppress(OSError):
            return Path(variant.chat_template_file).read_text("utf-8")
    return ""


def _header(model: Model, variant: Variant, facts: Facts) -> tuple[Shape | None, str | None]:
    """(a variant's shape, its chat template): from its files once they are all here, else its published dimensions.

    The template is None as long as it is not known.
    """
    files = (variant.builtin,) if variant.builtin else variant.files
    # the first of several parts says nothing of the others
    if variant.path or (files and all((variant.repo or "", file) in facts.cached for file in files)):
        path = Path(model_path(variant, facts))
        header = of_folder(path) if variant.is_folder else of_gguf(path)
    elif variant.tag:
        header = tags.in_store(variant.tag, facts.env.environ)
    elif variant.builtin and variant.is_folder:
        packed = tiny.mlx_files()
        return shape_of_config(json.loads(packed[CONFIG]), len(packed["model.safetensors"])), None
    elif variant.builtin:
        return shape_of(read_header(tiny.gguf(variant.builtin))), None
    else:
        return published_shape(model.shape, variant.shape_form, variant.size_bytes), None
    return (header.shape, header.template) if header else (None, None)


def corrections(env: Env) -> Mapping[str, int]:
    """Bytes that earlier starts used beyond their plan (negative: below it), by `correction_key`."""
    known = read_table(env.folders.state / _MEASURED).get("corrections")
    rows = known.items() if isinstance(known, dict) else ()
    return {key: size for key, size in rows if isinstance(size, int) and abs(size) <= MOST_BYTES}


def last_start(env: Env) -> dict[str, Any] | None:
    """The last start's plan and what its engine allocated; None if none was recorded."""
    found = read_table(env.folders.state / _MEASURED).get("last")
    is_complete = isinstance(found, dict) and {"model", "engine", "plan", "allocated", "log"} <= found.keys()
    return found if is_complete else None


def learn(plan: Plan, log: Path, env: Env) -> None:
    """Compare the buffers in a started server's log with its plan, and remember the difference.

    Only compute buffers are estimated by a formula; caches and weights follow from the header.
    """
    fit, buffers = plan.fit, None
    with contextlib.suppress(OSError):
        buffers = read_buffers(log.read_text("utf-8", "replace"))
    if fit is None or buffers is None:
        return
    computed = fit.footprint.compute_bytes - fit.config.correction_bytes
    difference = buffers.compute_bytes - computed
    kept = dict(list(corrections(env).items())[-_KEPT:])
    key = correction_key(plan.engine, fit.shape, fit.config)
    kept.pop(key, None)
    if abs(difference) <= MOST_BYTES:
        kept[key] = difference
    report = {
        "model": plan.model.id,
        "engine": f"{plan.engine.form} {plan.engine.version}",
        "plan": fit.as_json(),
        "allocated": asdict(buffers),
        "log": str(log),
    }
    with contextlib.suppress(FolderError):
        # a full disk must not prevent a start
        write_private(env.folders.state / _MEASURED, json.dumps({"corrections": kept, "last": report}, indent=1))
