"""Several tokens a step: python bench/strides.py [--llama-server PATH] [MODEL.gguf …]

Each model writes a file of 150 lines again, of which one line near its beginning is another one, and then a text that
is new; greedily, with each kind of --speculate that needs no head of the model's own. Printed: tokens a step, tokens a
second as the engine reports them, and whether the text is the one without speculation. One engine, one machine, one
run; each kind has an engine of its own. Default: the two trained models of the suite, on the engine in the wheel.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from cclocal.backends.llama_server.runtime import LlamaServer
from cclocal.backends.llama_server.spec import SPECULATION
from cclocal.models.headers import template_of_gguf
from cclocal.settings import MTP
from tests.conftest import CACHE
from tests.engine import engine

MODELS = (CACHE / "models/SmolLM2-135M-Instruct.Q4_1.gguf", CACHE / "models/gemma-3-270m-q4_k_m.gguf")
LINES, WRITTEN_TOKENS = 150, 600
#: Two lines and an empty one for each function.
FILE = "LIMIT = 10\n\n" + "\n".join(
    f"def function_{n}(value):\n    return value * {n} + {n * 7 % 13}\n" for n in range(LINES // 3)
)
CHANGED = FILE.replace("LIMIT = 10", "LIMIT = 20")
#: What is asked, and how the reply begins: with the changed line, from where all is copied.
TASKS = {
    "a file rewritten": (f"{FILE}\nRepeat this file exactly, but with LIMIT = 20:\n\n", CHANGED[:64]),
    "new prose": ("Explain in some paragraphs how a hash table works.\n\n", "A hash table maps keys to values. First,"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("models", nargs="*", type=Path, default=MODELS)
    options = parser.parse_args()
    llama = LlamaServer()
    print("| model | task | speculation | tokens a step | tokens/s | of off | text |\n|---|---|---|---:|---:|---:|---|")
    for model in options.models:
        plain: dict[str, tuple[str, float]] = {}
        knows_chat = bool(template_of_gguf(model))
        for kind in ("off", *(kind for kind in SPECULATION if kind != MTP)):
            words = SPECULATION.get(kind, ())
            with (
                tempfile.TemporaryDirectory() as name,
                engine(options.llama_server, model, Path(name), *words) as client,
            ):
                for task, (asked, begins) in TASKS.items():
                    if knows_chat:
                        chat = {"messages": [{"role": "user", "content": asked}]}
                        asked = client.post("/apply-template", json=chat).raise_for_status().json()["prompt"]
                    body = {"content": asked + begins, "add_special": True, "parse_special": True}
                    tokens = client.post("/tokenize", json=body).raise_for_status().json()["tokens"]
                    text, turn = llama.write(client, tokens, WRITTEN_TOKENS)
                    speed = turn.write_per_s or 0.0
                    said, without = plain.setdefault(task, (text, speed))
                    same = "the same" if text == said else f"parts at character {parts_at(text, said)}"
                    cells = (
                        model.stem,
                        task,
                        kind,
                        f"{turn.per_step or 1:.2f}",
                        f"{speed:.1f}",
                        f"{speed / without:.0%}",
                    )
                    print("|", " | ".join((*cells, same)), "|", flush=True)


def parts_at(text: str, other: str) -> int:
    """The first character at which two texts differ."""
    return next((at for at, (one, two) in enumerate(zip(text, other, strict=False)) if one != two), len(text))


if __name__ == "__main__":
    main()
