"""A little model with a head for multi-token prediction (MTP): Qwen3.5's architecture, every weight zero.

It shows that the head is used and what it costs in memory. Its guesses are of no use, and nothing is said of language.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.published_shapes import gated_delta
from bench.sparse import write
from tools.tiny_model.as_gguf import fields
from tools.tiny_model.circuit import CHAT_TEMPLATE, Vocabulary


def write_model(path: Path) -> None:
    vocabulary = Vocabulary()
    header = gated_delta("little", draft_layers=1, words=len(vocabulary.tokens))
    tokenizer: dict[str, Any] = {
        key: list(value[1]) if isinstance(value, tuple) else value
        for key, _, value in fields(vocabulary, 0, 0, 0, CHAT_TEMPLATE)
        if key.startswith("tokenizer.")
    }
    write(replace(header, metadata={**header.metadata, **tokenizer}), path)
