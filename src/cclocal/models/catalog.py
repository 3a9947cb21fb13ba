"""The models cclocal knows, as frozen data: a catalog of models, each with variants for backends."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from cclocal.config_file import nearest
from cclocal.errors import UsageError
from cclocal.memory.shape import Form
from cclocal.settings import Speculation

#: How a model lies on disk: a GGUF file, the folder of an MLX model, or a tag in Ollama's store.
FileForm = Literal["gguf", "mlx", "tag"]
#: What the KV cache is stored as.
KvType = Literal["f16", "bf16", "q8_0", "q5_1", "q4_0"]
#: The models that are built here (cclocal.tiny).
Builtin = Literal["tiny", "tiny-eyes"]
Tokens = Annotated[int, Ge(256)]
Count = Annotated[int, Ge(0)]
#: The file of an MLX model by which its folder is found.
CONFIG = "config.json"
#: The quantisation of a model of which none was named.
ANY = "any"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen, as the model's card recommends. None = the backend's own default."""

    temp: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run a model: a backend, the files it needs, and the settings they want."""

    backend: str
    quant: str
    default: bool = False
    #: the source: a Hugging Face repository with files (the first is the model; none: the one of that quant), an
    #: Ollama tag, a path, or "tiny"
    repo: str | None = None
    files: tuple[str, ...] = ()
    #: the commit of the repository, and the sha256 of some of its files: others are refused
    revision: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    tag: str | None = None
    builtin: Builtin | None = None
    path: str | None = None
    size_bytes: Count | None = None
    size_source: str | None = None
    #: passed to the server
    context_tokens: Tokens | None = None
    batch_tokens: Annotated[int, Ge(1)] | None = None
    ubatch_tokens: Annotated[int, Ge(1)] | None = None
    slots: Annotated[int, Ge(1)] = 1
    kv_type: KvType = "f16"
    gpu_layers: Count | None = None
    cpu_moe_layers: Count = 0
    cache_ram_mib: Count = 0
    mmproj: str | None = None
    #: the most tokens of one picture
    picture_tokens: Annotated[int, Ge(1)] | None = None
    chat_template_file: str | None = None
    template_kwargs: Mapping[str, bool | str | int] = field(default_factory=dict)
    reasoning_budget_tokens: int | None = None
    override_kv: tuple[str, ...] = ()
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    #: how several tokens are decoded in one step
    speculate: Speculation = "off"
    sampling: Sampling = field(default_factory=Sampling)
    think_sampling: Sampling | None = None
    extra_args: tuple[str, ...] = ()
    #: the oldest backend that runs it, such as {"vllm-mlx" = "0.6"}
    requires: Mapping[str, str] = field(default_factory=dict)
    #: follows from backend and source, so it is no key of models.toml
    form: FileForm = "gguf"

    @property
    def is_folder(self) -> bool:
        """Whether the model is a folder of several files rather than one file."""
        return self.form == "mlx"

    @property
    def shape_form(self) -> Form:
        """The form in which its memory is planned: Ollama serves GGUF files."""
        return "mlx" if self.form == "mlx" else "gguf"

    @property
    def source(self) -> str:
        """Its repository, path or tag; nothing for a model that is built here."""
        return self.repo or self.path or self.tag or ""

    @property
    def hub_files(self) -> tuple[str, ...]:
        """Every file of the repository that it needs: the model's, and a vision model's projector."""
        return (*self.files, self.mmproj) if self.mmproj else self.files


@dataclass(frozen=True, slots=True)
class Model:
    """A model as people know it, with the variants it can run as."""

    #: for its variants and their sampling too
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}
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
    port: Annotated[int, Ge(1), Le(65535)] = 8000
    #: the name of its published dimensions (cclocal.memory.shape), by which it is planned before it is here
    shape: str | None = None
    #: what others measured of it, and who
    reported: str | None = None
    #: printed at each launch of the model
    warning: str | None = None
    #: its tool use is untested: each launch says so until `cclocal check` has passed
    untested: bool = False

    @property
    def served_context_tokens(self) -> int:
        """The context window by default, never beyond the one the model was trained for."""
        return min(self.variants[0].context_tokens or self.context_tokens, self.native_context_tokens)

    def variant(self, backend: str, quant: str | None = None) -> Variant | None:
        """The variant for a backend: the one of that quantisation, else its default, else its first."""
        requested = quant.lower() if quant else None
        mine = [v for v in self.variants if v.backend == backend and requested in (None, v.quant.lower())]
        return next((v for v in mine if v.default), mine[0] if mine else None)


@dataclass(frozen=True, slots=True)
class Rules:
    """What backends and agents demand of models.

    forms: what each backend serves, the form it prefers first. taken: words that an agent gives a meaning, so that no
    model may be called by them.
    """

    forms: Mapping[str, tuple[FileForm, ...]]
    taken: re.Pattern[str]

    def form_of(self, variant: Variant) -> FileForm:
        """The form of a variant, by its backend and its source."""
        forms = self.forms[variant.backend]
        return "tag" if variant.tag else next((form for form in forms if form != "tag"), "gguf")

    def serving(self, form: FileForm, backend: str | None = None) -> str:
        """The backend for a model of that form: the one asked for if it serves it, else the first."""
        able = [name for name, forms in self.forms.items() if form in forms]
        return backend if backend in able else able[0]


@dataclass(frozen=True, slots=True)
class Catalog:
    """Every model, and which one is meant when none is named."""

    models: Mapping[str, Model]
    default: str
    rules: Rules
    recommended: tuple[str, ...] = ()

    def find(self, name: str) -> Model:
        """The model of that id, flag or name. Raises UsageError with the nearest ones."""
        for model in self.models.values():
            if name.lower() in (model.id, model.name.lower(), *model.flags):
                return model
        near = nearest(name.lower(), [word for model in self.models.values() for word in (model.id, *model.flags)])
        raise UsageError(
            f"There is no model “{name}”." + (f" Perhaps you meant {near}." if near else ""),
            hint=f"cclocal --list-models    (known: {', '.join(self.models)})",
        )


def of_variant(name: str, variant: Variant, native_context_tokens: int, taken: re.Pattern[str]) -> Model:
    """A model that is not in the catalog: only what its own files say is known of it."""
    # a tag needs the version after its colon
    stem = name.removesuffix(":latest") if variant.tag else name.rpartition("/")[2].partition(":")[0]
    stem = re.sub(r"(-GGUF$|\.gguf$)", "", stem, flags=re.IGNORECASE)
    # the id ends up in argv and in the agent's requests
    short = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "model"
    return Model(
        id="local-model" if taken.search(short) else short,
        name=name,
        note="untested",
        native_context_tokens=max(native_context_tokens, 256),
        variants=(variant,),
        untested=True,
    )


#: A hub repository's id. It becomes a path in the cache, so it may hold nothing else.
REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def with_local_files(model: Model, base: Path) -> Model:
    """The model with the paths of the user's files made absolute (relative ones start at `base`, ~ is home).

    Raises UsageError if one does not exist.
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
