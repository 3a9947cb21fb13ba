"""Reads and checks models.toml and the user's own models. (`-h` reads only the flags, with `config_file.flags()`.)"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from cclocal.config_file import FLAG, UserFile, mistake, reserved
from cclocal.errors import UsageError
from cclocal.models.catalog import CONFIG, REPO, Catalog, Model, Rules, Sampling, Variant


def load(shipped: Path, rules: Rules, user: UserFile | None = None) -> Catalog:
    """Read and check the catalog. Raises UsageError naming file, line and the nearest right key."""
    from pydantic import TypeAdapter, ValidationError

    text = shipped.read_text("utf-8")
    raw = tomllib.loads(text)
    theirs = user.models if user else {}
    adapter = TypeAdapter(Model)
    checked: dict[str, Model] = {}
    flags: dict[str, str] = {}
    for id_ in dict.fromkeys((*raw["models"], *theirs)):
        path, source = (user.path, user.text) if user and id_ in theirs else (shipped, text)
        if not isinstance(theirs.get(id_, {}), dict):
            raise mistake(path, source, ("models", id_), "must be a table")
        try:
            # as JSON, because strict Python would refuse TOML's arrays for tuples
            value = {**raw["models"].get(id_, {}), **theirs.get(id_, {}), "id": id_}
            model = adapter.validate_json(json.dumps(value, default=str))
        except ValidationError as error:
            raise _explain(path, source, ("models", id_), error) from None
        for loc, what in (*_unfit_flags(model, flags, rules), *_unfit_variants(model, rules)):
            raise mistake(path, source, ("models", id_, *loc), what)
        variants = tuple(replace(variant, form=rules.form_of(variant)) for variant in model.variants)
        checked[id_] = replace(model, variants=variants)
    return Catalog(checked, raw["default"], rules, tuple(raw.get("recommended", ())))


def _unfit_flags(model: Model, used: dict[str, str], rules: Rules) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What is wrong with the names of a model; the right ones are added to `used` (flag → model)."""
    for flag in dict.fromkeys((model.id, *model.flags)):
        loc = () if flag == model.id else ("flags",)
        # options become names of parameters, where - and . are _
        other = used.setdefault(re.sub(r"[-.]", "_", flag), model.id)
        if rules.taken.search(flag) or not FLAG.fullmatch(flag):
            yield loc, f"cannot have the flag --{flag}: a-z, 0-9, - and . only, and no cloud model's name"
        elif flag in reserved():
            yield loc, f"cannot have the flag --{flag}, which is cclocal's own"
        elif other != model.id:
            yield loc, f"has the flag --{flag}, which {other} has too"


def _unfit_variants(model: Model, rules: Rules) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What is wrong with the backends and sources of a model's variants."""
    by_tag = [name for name, forms in rules.forms.items() if "tag" in forms]
    if not model.variants:
        yield ("variants",), "must hold at least one variant"
    for number, variant in enumerate(model.variants):
        here = ("variants", number)
        sources = [bool(variant.repo), bool(variant.tag), bool(variant.builtin), bool(variant.path)]
        if variant.form != "gguf":
            yield (*here, "form"), "is unknown"
        elif variant.backend not in rules.forms:
            yield (*here, "backend"), f"is wrong: {' | '.join(rules.forms)}"
        elif sum(sources) != 1:
            yield here, "must say where it comes from: exactly one of repo, path and tag"
        elif variant.revision and not (variant.repo and re.fullmatch(r"[0-9a-f]{40}", variant.revision)):
            yield (*here, "revision"), "must be the 40 digits of a commit of its repo"
        elif any(not re.fullmatch(r"[0-9a-fA-F]{64}", one) for one in variant.sha256.values()):
            yield (*here, "sha256"), "must give the 64 digits of each file's checksum"
        elif variant.repo and not REPO.fullmatch(variant.repo):
            yield (*here, "repo"), "must look like owner/name"
        elif variant.repo and not variant.files and variant.backend in by_tag:
            yield here, "needs files: the first is the model"
        elif any(Path(file).is_absolute() or ".." in Path(file).parts for file in variant.files):
            yield (*here, "files"), "must name files inside the repository"
        elif variant.tag and variant.backend not in by_tag:
            yield (*here, "tag"), f"is for the backend {' or '.join(by_tag)}"
        elif rules.form_of(variant) == "mlx" and variant.files and CONFIG not in variant.files:
            yield (*here, "files"), f"must name {CONFIG} too, or be left out: then every file of an MLX model is meant"


def _explain(path: Path, text: str, prefix: tuple[str | int, ...], error: Any) -> UsageError:
    """The first mistake pydantic found, in words, with its place in the file."""
    first = error.errors(include_url=False)[0]
    loc: tuple[str | int, ...] = (*prefix, *first["loc"])
    if first["type"] == "unexpected_keyword_argument":
        owner: Any = Sampling if "sampling" in str(loc[-2]) else Variant if "variants" in loc else Model
        return mistake(path, text, loc, "is unknown", [f.name for f in fields(owner)])
    return mistake(path, text, loc, "is missing" if first["type"] == "missing" else f"is wrong: {first['msg']}")
