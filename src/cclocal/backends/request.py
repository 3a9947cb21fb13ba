"""What a backend is asked to serve."""

from __future__ import annotations

from dataclasses import dataclass

from cclocal.models.catalog import Model, Variant


@dataclass(frozen=True, slots=True)
class ServeRequest:
    """A model as planned, and the folders a backend may use.

    model_file: a GGUF file, the folder of an MLX model, or text in angle brackets as long as it is not on disk.
    own_store: where a backend with a store keeps models of ours. lease_folder: where a model is recorded that was put
    into a server that another program started. prompt_folder: where KV caches are saved; empty = they are not.
    """

    model: Model
    variant: Variant
    model_file: str
    mmproj_file: str | None
    context_tokens: int
    own_store: str = ""
    lease_folder: str = ""
    prompt_folder: str = ""
