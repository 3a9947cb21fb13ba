"""The models cclocal knows: models.toml and the user's own file, as frozen data.

`load()` checks every key with pydantic; `-h` gets by with `tomlfile.flags()`.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from cclocal.config_file import FLAG, RESERVED, UserFile, mistake, nearest
from cclocal.errors import UsageError

BackendName = Literal["llama-server", "vllm-mlx", "ollama"]
#: What the KV cache is stored as.
KvType = Literal["f16", "bf16", "q8_0", "q5_1", "q4_0"]
Tokens = Annotated[int, Ge(256)]
Count = Annotated[int, Ge(0)]
Port = Annotated[int, Ge(1), Le(65535)]
#: The file of an MLX model by which its folder is found.
CONFIG = "config.json"
_STRICT: dict[str, Any] = {"extra": "forbid", "strict": True}


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
    #: where it comes from: a Hugging Face repo with files (the first is the model; none: the one of that quant), an
    #: Ollama tag, or "tiny"
    repo: str | None = None
    files: tuple[str, ...] = ()
    tag: str | None = None
    builtin: Literal["tiny"] | None = None
    path: str | None = None
    size_bytes: Count | None = None
    size_source: str | None = None
    #: what the server is told
    context_tokens: Tokens | None = None
    batch_tokens: Annotated[int, Ge(1)] | None = None
    ubatch_tokens: Annotated[int, Ge(1)] | None = None
    slots: Annotated[int, Ge(1)] = 1
    kv_type: KvType = "f16"
    gpu_layers: Count | None = None
    cpu_moe_layers: Count = 0
    cache_ram_mib: Count = 0
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

    @property
    def is_folder(self) -> bool:
        """Whether the model is a folder (MLX) rather than a file."""
        return self.backend == "vllm-mlx"

    @property
    def source(self) -> str:
        """Where it comes from: a repository, a file or folder, a tag; nothing for what is built here."""
        return self.repo or self.path or self.tag or ""

    @property
    def hub_files(self) -> tuple[str, ...]:
        """Every file of the repository that it needs: the model's, and a vision model's projector."""
        return (*self.files, self.mmproj) if self.mmproj else self.files


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
    port: Port = 8000
    #: the name of its published dimensions (cclocal.memory.known), by which it is planned before it is here
    shape: str | None = None
    #: said each time the model is launched
    warning: str | None = None
    #: whether nobody has seen it call a tool: said until `cclocal check` has
    untested: bool = False

    @property
    def served_context_tokens(self) -> int:
        """The window served as long as the memory plan does not compute it: at most what the model was made for."""
        wanted = self.variants[0].context_tokens or self.context_tokens
        return min(wanted, self.native_context_tokens)

    def variant(self, backend: str, quant: str | None = None) -> Variant | None:
        """The variant for a backend: the one asked for, else its default, else its first."""
        wanted = quant.lower() if quant else None
        mine = [v for v in self.variants if v.backend == backend and wanted in (None, v.quant.lower())]
        return next((v for v in mine if v.default), mine[0] if mine else None)


@dataclass(frozen=True, slots=True)
class Catalog:
    """Every model, and which one is meant when none is named."""

    models: Mapping[str, Model]
    default: str
    recommended: tuple[str, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """Every id and flag."""
        return frozenset(word for model in self.models.values() for word in (model.id, *model.flags))

    def find(self, name: str) -> Model:
        """The model of that id, flag or name. Raises UsageError with the nearest ones."""
        for model in self.models.values():
            if name.lower() in (model.id, model.name.lower(), *model.flags):
                return model
        near = nearest(name.lower(), [w for m in self.models.values() for w in (m.id, *m.flags)])
        known = ", ".join(self.models)
        raise UsageError(
            f"There is no model “{name}”." + (f" Perhaps you meant {near}." if near else ""),
            hint=f"cclocal --list-models    (known: {known})",
        )


def of_variant(name: str, variant: Variant, native_context_tokens: int) -> Model:
    """A model that is not in the catalog: nothing is known of it but what its own files say."""
    # a tag is nothing without what follows the colon
    stem = name.removesuffix(":latest") if variant.tag else name.rpartition("/")[2].partition(":")[0]
    stem = re.sub(r"(-GGUF$|\.gguf$)", "", stem, flags=re.IGNORECASE)
    # the id ends up in argv and in the agent's requests
    short = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "model"
    return Model(
        id="local-model" if _TAKEN.search(short) else short,
        name=name,
        note="untested",
        native_context_tokens=max(native_context_tokens, 256),
        variants=(variant,),
        untested=True,
    )


#: Claude Code gives its long prompt, or another window, to ids that look like Anthropic's.
_TAKEN = re.compile(r"claude|sonnet|haiku|opus|\[1m\]", re.IGNORECASE)


#: A hub repository's id: it becomes a path in the cache, so nothing else may stand there.
REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def load(shipped: Path, user: UserFile | None = None) -> Catalog:
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
            model = checked[id_] = adapter.validate_json(json.dumps(value, default=str))
        except ValidationError as error:
            raise _explain(path, source, ("models", id_), error) from None
        for loc, what in (*_unfit_flags(model, flags), *_unfit_variants(model)):
            raise mistake(path, source, ("models", id_, *loc), what)
    return Catalog(checked, raw["default"], tuple(raw.get("recommended", ())))


def _unfit_flags(model: Model, taken: dict[str, str]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What is wrong with the names of a model; `taken` (flag → model) grows by the right ones."""
    for flag in dict.fromkeys((model.id, *model.flags)):
        loc = () if flag == model.id else ("flags",)
        # options become names of parameters, where - and . are _
        other = taken.setdefault(re.sub(r"[-.]", "_", flag), model.id)
        if _TAKEN.search(flag) or not FLAG.fullmatch(flag):
            yield loc, f"cannot have the flag --{flag}: a-z, 0-9, - and . only, and no Claude model's name"
        elif flag in RESERVED:
            yield loc, f"cannot have the flag --{flag}, which is cclocal's own"
        elif other != model.id:
            yield loc, f"wants --{flag}, which is claimed by two models: {other} is the other"


def _unfit_variants(model: Model) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What no single key is wrong with: where the variants come from."""
    if not model.variants:
        yield ("variants",), "must hold at least one variant"
    for number, variant in enumerate(model.variants):
        here = ("variants", number)
        sources = [bool(variant.repo), bool(variant.tag), bool(variant.builtin), bool(variant.path)]
        if sum(sources) != 1:
            yield here, "must say where it comes from: exactly one of repo, path and tag"
        elif variant.repo and not REPO.fullmatch(variant.repo):
            yield (*here, "repo"), "must look like owner/name"
        elif variant.repo and not variant.files and variant.backend == "ollama":
            yield here, "needs files: the first is the model"
        elif any(Path(file).is_absolute() or ".." in Path(file).parts for file in variant.files):
            yield (*here, "files"), "must name files inside the repository"
        elif variant.tag and variant.backend != "ollama":
            yield (*here, "tag"), "is for the backend ollama"
        elif variant.is_folder and variant.files and CONFIG not in variant.files:
            yield (*here, "files"), f"must name {CONFIG} too, or be left out: then every file of an MLX model is meant"


def with_local_files(model: Model, base: Path) -> Model:
    """The model with paths of the user's own files made absolute (relative ones start at `base`, ~ is home).

    Raises UsageError if one is not there.
    """

    def found(name: str | None) -> str | None:
        if name is None:
            return None
        path = base / Path(name).expanduser()
        if not path.exists():
            raise UsageError(f"There is no file {path}.")
        return str(path)

    def local(variant: Variant) -> Variant:
        path = found(variant.path)
        mmproj = found(variant.mmproj) if path else variant.mmproj
        return replace(variant, path=path, mmproj=mmproj, chat_template_file=found(variant.chat_template_file))

    return replace(model, variants=tuple(local(variant) for variant in model.variants))


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
