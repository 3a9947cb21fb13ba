"""The models cclocal knows: models.toml and the user's own file, as frozen data.

`load()` checks every key with pydantic; `-h` gets by with `tomlfile.flags()`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from cclocal.errors import UsageError
from cclocal.tomlfile import FLAG, UserFile, mistake, nearest

BackendName = Literal["llama-server", "vllm-mlx", "ollama"]
Tokens = int
_STRICT: dict[str, Any] = {"extra": "forbid", "strict": False}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen, as the model's card recommends. None = the backend's own default."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    temp: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run a model: a backend, the files it needs, and the settings they want."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    backend: BackendName
    quant: str
    default: bool = False
    #: where it comes from: a Hugging Face repo with files (the first is the model), an Ollama tag, or "tiny"
    repo: str | None = None
    files: tuple[str, ...] = ()
    tag: str | None = None
    builtin: Literal["tiny"] | None = None
    path: str | None = None
    size_bytes: int | None = None
    size_source: str | None = None
    #: what the server is told
    context_tokens: Tokens | None = None
    batch_tokens: Tokens | None = None
    ubatch_tokens: Tokens | None = None
    slots: int = 1
    cache_ram_mib: int = 0
    mmproj: str | None = None
    chat_template_file: str | None = None
    template_kwargs: Mapping[str, bool | str | int] = field(default_factory=dict)
    reasoning_budget_tokens: int | None = None
    override_kv: tuple[str, ...] = ()
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    think_sampling: Sampling | None = None
    extra_args: tuple[str, ...] = ()
    #: the oldest backend that runs it, such as {"vllm-mlx" = "0.6"}
    requires: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Model:
    """A model as people know it, with the variants it can run as."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    id: str
    name: str
    note: str
    native_context_tokens: Tokens
    variants: tuple[Variant, ...]
    #: --FLAG for each; the id itself is always one
    flags: tuple[str, ...] = ()
    #: the context served as long as the memory plan does not compute it
    context_tokens: Tokens = 65536
    out_tokens: Tokens = 8192
    #: the default port of --server
    port: int = 8000
    #: said each time the model is launched
    warning: str | None = None

    def variant(self, backend: str, quant: str | None = None) -> Variant | None:
        """The variant for a backend: the one asked for, else its default, else its first."""
        mine = [v for v in self.variants if v.backend == backend and quant in (None, v.quant)]
        return next((v for v in mine if v.default), mine[0] if mine else None)


@dataclass(frozen=True, slots=True)
class Catalog:
    """Every model, and which one is meant when none is named."""

    models: Mapping[str, Model]
    default: str

    def find(self, name: str) -> Model:
        """The model of that id, flag or name. Raises UsageError with the nearest ones."""
        for model in self.models.values():
            if name in (model.id, model.name, *model.flags):
                return model
        near = nearest(name, [w for m in self.models.values() for w in (m.id, *m.flags)])
        known = ", ".join(self.models)
        raise UsageError(
            f"There is no model “{name}”." + (f" Perhaps you meant {near}." if near else ""),
            hint=f"cclocal --list-models    (known: {known})",
        )


def of_gguf(path: Path) -> Model:
    """A model made of a GGUF file the user named: nothing is known of it but the file."""
    # the id ends up in argv and in the agent's requests
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-.") or "model"
    if _TAKEN.search(name):
        name = "local-model"
    return Model(
        id=name,
        name=path.name,
        note="your own file; untested",
        # shorter than most models' own, until the file's header is read by the memory plan
        native_context_tokens=32768,
        context_tokens=32768,
        variants=(Variant(backend="llama-server", quant="file", default=True, path=str(path)),),
        warning="This file is not in the catalog: its tool use is untested.",
    )


#: Claude Code gives its long prompt, or another window, to ids that look like Anthropic's.
_TAKEN = re.compile(r"claude|sonnet|haiku|opus|\[1m\]", re.IGNORECASE)


def load(shipped: Path, user: UserFile | None = None) -> Catalog:
    """Read and check the catalog. Raises UsageError naming file, line and the nearest right key."""
    from pydantic import TypeAdapter, ValidationError

    text = shipped.read_text("utf-8")
    raw = tomllib.loads(text)
    models: dict[str, Any] = {**raw["models"]}
    for id_, extra in (user.models if user else {}).items():
        if not isinstance(extra, dict):
            raise mistake(
                user.path if user else shipped,
                user.text if user else text,
                ("models", id_),
                "must be a table",
            )
        models[id_] = {**models.get(id_, {}), **extra}
    adapter = TypeAdapter(Model)
    checked: dict[str, Model] = {}
    for id_, value in models.items():
        if _TAKEN.search(id_) or not FLAG.fullmatch(id_):
            path, source = (user.path, user.text) if user and id_ in user.models else (shipped, text)
            raise mistake(
                path, source, ("models", id_), "cannot be a model's id (a-z, 0-9, - and ., and no Claude name)"
            )
        try:
            checked[id_] = adapter.validate_python({**value, "id": id_})
        except ValidationError as error:
            theirs = user is not None and id_ in user.models
            path, source = (user.path, user.text) if theirs and user else (shipped, text)
            raise _explain(path, source, ("models", id_), error) from None
    _check_flags_once(checked.values())
    return Catalog(models=checked, default=raw["default"])


def _check_flags_once(models: Iterable[Model]) -> None:
    seen: dict[str, str] = {}
    for model in models:
        for flag in dict.fromkeys((model.id, *model.flags)):
            if other := seen.get(flag):
                raise UsageError(f"--{flag} is claimed by two models: {other} and {model.id}.")
            seen[flag] = model.id


def _explain(path: Path, text: str, prefix: tuple[str | int, ...], error: Any) -> UsageError:
    """The first thing pydantic found wrong, in words, with its place in the file."""
    from dataclasses import fields

    first = error.errors(include_url=False)[0]
    loc: tuple[str | int, ...] = (*prefix, *first["loc"])
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        owner: Any = Sampling if "sampling" in str(loc[-2]) else Variant if "variants" in loc else Model
        return mistake(path, text, loc, "is unknown", [f.name for f in fields(owner)])
    if first["type"] in ("missing", "missing_argument"):
        return mistake(path, text, loc, "is missing")
    return mistake(path, text, loc, f"is wrong: {first['msg']}")
