"""`cclocal plan`: what a model needs and how much context fits, here or on another machine, without starting it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cclocal.agents.claude.spec import least_context_tokens
from cclocal.backends.llama_server import spec as llama_server
from cclocal.discovery import fit_params
from cclocal.discovery.look import alternatives, surroundings, with_variant
from cclocal.errors import BackendMissingError, CclocalError, UsageError
from cclocal.facts import Engine, Facts, Gpu, Machine
from cclocal.memory.budget import GIB
from cclocal.memory.fit import Fit, memory_size
from cclocal.memory.footprint import CELLS
from cclocal.memory.remedies import Remedy
from cclocal.memory.shape import Shape
from cclocal.models.catalog import Catalog, Model, Variant, with_local_files
from cclocal.models.headers import Found, find, with_hub_files
from cclocal.paths import Folders
from cclocal.planning.memory import adjusted, fit_on, memory_serving, what_helps
from cclocal.planning.plan import choose_variant, model_path
from cclocal.settings import Settings
from cclocal.ui import console as ui
from cclocal.ui.memory_view import Row

#: Served where nothing else says how much.
_DEFAULT_CONTEXT_TOKENS = 65536
#: What a system takes for itself on a machine that is not this one.
_SYSTEM_BYTES = 2 * GIB


@dataclass(frozen=True, slots=True)
class Wishes:
    """How the model would be served, and on which machine. None = as a launch would here."""

    ctx_tokens: int | None = None
    kv: str | None = None
    slots: int | None = None
    ubatch: int | None = None
    prefill_step: int | None = None
    ram_gib: int | None = None
    macos: str | None = None
    backend: str | None = None

    @property
    def settings(self) -> Settings:
        return Settings(kv=self.kv, slots=self.slots, ubatch=self.ubatch, backend=self.backend, server_only=True)


def plan_one(shelf: Catalog, name: str, wishes: Wishes, folders: Folders, environ: Mapping[str, str]) -> Row:
    """One model in full, whatever names it. Raises UsageError or HubError if its headers cannot be had."""
    model = _of_catalog(shelf, name)
    if model is None:
        with ui.busy(f"{name}: looking at its headers"):
            found = find(name, environ)
        model = _stand_in(found)
    else:
        model = with_hub_files(with_local_files(model, folders.config), folders, environ)
        found = None
    facts = _surroundings(wishes, folders, environ)
    variant = model.variants[0] if found else _variant(model, wishes, facts)
    engine = _engine(variant, facts)
    if found is None:
        facts = with_variant(facts, model, variant)
    shape, source = (found.shape, found.source) if found else _shape(variant, facts)
    if shape is None:
        raise UsageError(
            f"{model.name} is not on disk, and its dimensions are not known: nothing can be computed.",
            hint="cclocal plan owner/repository:QUANT looks at a header on the hub",
        )
    result = _fit(model, variant, shape, wishes, facts)
    row = Row(model.id, model.name, result, source, remedies=_remedies(result, model, facts, engine, shelf))
    tool = fit_params.program(engine, environ) if shape.form == "gguf" and not wishes.ram_gib else None
    about = (found.path or (found.header, found.file_bytes)) if found else _path(variant, facts)
    if tool and about and about != (b"", 0):
        row = replace(row, opinion=fit_params.ask(tool, result, environ, about))
    return row


def plan_catalog(shelf: Catalog, wishes: Wishes, folders: Folders, environ: Mapping[str, str]) -> Sequence[Row]:
    """Every model of the catalog: those on disk by their headers, the others by their published dimensions."""
    rows = []
    around = _surroundings(wishes, folders, environ)
    for model in shelf.models.values():
        variant = _variant(model, wishes, around)
        try:
            one = with_hub_files(with_local_files(model, folders.config), folders, environ)
            variant = _variant(one, wishes, around)
            facts = with_variant(around, one, variant)
            shape, source = _shape(variant, facts)
            fit = _fit(one, variant, shape, wishes, facts) if shape else None
        except CclocalError:
            # a file that is gone or damaged is no reason to show nothing of the others
            fit, source = None, ""
        rows.append(Row(model.id, model.name, fit, source, variant=variant))
    return rows


def _of_catalog(shelf: Catalog, name: str) -> Model | None:
    words = {word for model in shelf.models.values() for word in (model.id, model.name.lower(), *model.flags)}
    if name.lower() in words:
        return shelf.find(name)
    if not name or Path(name).expanduser().exists() or {"/", ":"} & set(name) or name.lower().endswith(".gguf"):
        return None
    # a plain word is a name of ours that was mistyped: shelf.find says which is near
    return shelf.find(name)


def _stand_in(found: Found) -> Model:
    native = max(CELLS, found.shape.native_context_tokens or _DEFAULT_CONTEXT_TOKENS)
    backend = Variant(backend="vllm-mlx" if found.shape.form == "mlx" else "llama-server", quant="file", path=".")
    return Model(
        id=found.name,
        name=found.name,
        note="",
        native_context_tokens=native,
        context_tokens=min(native, _DEFAULT_CONTEXT_TOKENS),
        variants=(backend,),
    )


def _variant(model: Model, wishes: Wishes, facts: Facts) -> Variant:
    """The variant that a launch would use."""
    return choose_variant(model, wishes.settings, facts)[0]


def _engine(variant: Variant, facts: Facts) -> Engine | None:
    return next(iter(facts.engines.get(variant.backend, ())), None)


def _surroundings(wishes: Wishes, folders: Folders, environ: Mapping[str, str]) -> Facts:
    """The machine and its engines, or the ones that are asked about."""
    settings = wishes.settings
    try:
        facts = surroundings(settings, folders, environ)
    except BackendMissingError:
        # what does not run cannot be asked, and need not be
        facts = surroundings(replace(settings, llama_server="wheel"), folders, environ)
    if wishes.ram_gib or wishes.macos:
        machine = _other_machine(wishes, facts.machine)
        devices = ("MTL0: Apple GPU",) if machine.os == "macos" else ()
        engine = Engine("binary", ("llama-server",), "any", frozenset({"--cache-type-k"}), devices)
        facts = replace(facts, machine=machine, engines={llama_server.NAME: (engine,)}, corrections={})
    return facts


def _other_machine(wishes: Wishes, here: Machine) -> Machine:
    """A machine that is not this one: nothing is known of what is free on it."""
    ram_bytes = (wishes.ram_gib or 0) * GIB or here.ram_bytes
    if wishes.macos or here.os == "macos":
        version = wishes.macos or here.os_version
        if not re.fullmatch(r"\d{1,3}(\.\d+)*", version, re.ASCII):
            raise UsageError(f"“{version}” is no version of macOS.", hint="--macos 26")
        return Machine("macos", version, "arm64", "Apple", 8, ram_bytes, (Gpu("apple", "Apple GPU", unified=True),))
    free = max(1, ram_bytes - _SYSTEM_BYTES)
    words = f"{memory_size(ram_bytes)} with {memory_size(_SYSTEM_BYTES)} for the system"
    return Machine("linux", "", here.arch, "processor", 8, ram_bytes, (), available_bytes=free, memory_words=words)


def _path(variant: Variant, facts: Facts) -> Path | None:
    place = model_path(variant, facts.cached)
    return None if place.startswith("<") else Path(place)


def _shape(variant: Variant, facts: Facts) -> tuple[Shape | None, str]:
    shape = facts.shapes.get(model_path(variant, facts.cached))
    on_disk = _path(variant, facts) or variant.builtin
    return shape, "the file's own header" if on_disk else "the model's published dimensions, until its header is seen"


def _fit(model: Model, variant: Variant, shape: Shape, wishes: Wishes, facts: Facts) -> Fit:
    native = shape.native_context_tokens
    if wishes.ctx_tokens and native and wishes.ctx_tokens > native:
        raise UsageError(f"{model.name} was made for {native:,} tokens; {wishes.ctx_tokens:,} is beyond that.")
    variant = adjusted(variant, wishes.settings)
    served = min(model.served_context_tokens, native or model.served_context_tokens)
    serving = memory_serving(variant, wishes.ctx_tokens or served)
    if wishes.prefill_step:
        serving = replace(serving, prefill_step_tokens=wishes.prefill_step)
    return fit_on(shape, serving, variant, _engine(variant, facts), facts)


def _remedies(result: Fit, model: Model, facts: Facts, engine: Engine | None, shelf: Catalog) -> tuple[Remedy, ...]:
    if result.verdict == "roomy":
        return ()
    least = least_context_tokens(model.out_tokens)
    if least > (model.native_context_tokens or least):
        least = CELLS
    return what_helps(result, engine, replace(facts, alternatives=alternatives(shelf, model, facts)), least)
