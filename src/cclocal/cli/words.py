"""What is typed before “--”: which words are a command, a model, the prompt, and which are for the agent.

A command's name comes first, then a model's; the first other word after a model is the prompt. Printing, continuing and
resuming are meant for whichever agent it is, so they are not handed on by letter.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from cclocal.agents.session import Asked
from cclocal.config_file import COMMANDS, nearest, reserved
from cclocal.errors import UsageError
from cclocal.settings import flags, options

_PRINT, _CONTINUE, _RESUME = ("-p", "--print"), ("-c", "--continue"), ("-r", "--resume")
#: Words of other launchers, and ours for the same.
_MEANT = {"models": "list", "ls": "list", "pull": "fetch", "download": "fetch", "delete": "rm", "remove": "rm"}
#: The commands that start an agent, beside a launch.
_WITH_AGENT = ("attach",)


@dataclass(slots=True)
class Typed:
    """words: for Typer, with the model as an option. asked: for the agent."""

    words: list[str]
    asked: Asked


def understand(words: Sequence[str], models: Collection[str]) -> Typed:
    """The words of a launch, sorted; those of other commands as they are. `models`: the names of the catalog's.

    Raises UsageError for a word that is neither a command nor a model, and for a second prompt.
    """
    if words and words[0] in COMMANDS and words[0] not in _WITH_AGENT:
        return Typed([*words], Asked())
    with_value = {f"--{flag}" for name, (_, option) in options().items() if option.metavar for flag in flags(name)}
    known = {f"--{name}" for name in (*reserved(), *models)}
    left, kept, prompt = [*words], list[str](), ""
    prints = continues = False
    resumes: str | None = None
    is_attach = words[:1] == ["attach"]
    if is_attach:
        kept.append(left.pop(0))
    # an address, or a port, says which model
    has_model = False
    while left:
        word = left.pop(0)
        if word in _PRINT:
            prints = True
        elif word in _CONTINUE:
            continues = True
        elif word in _RESUME or word.startswith("--resume="):
            resumes = word.partition("=")[2]
            if "=" not in word and left and not left[0].startswith("-") and left[0] not in models:
                resumes = left.pop(0)
        elif word.startswith("--") and word.partition("=")[0] not in known:
            # unknown, and so is whether it takes a value: Typer says so
            return Typed([*kept, word, *left], Asked())
        elif word.startswith("-"):
            kept.append(word)
            has_model |= word.removeprefix("--") in models or word.partition("=")[0] in ("--model", "--url")
            if word in with_value and left:
                kept.append(left.pop(0))
        elif is_attach and not has_model:
            kept.append(word)
            has_model = True
        elif not is_attach and word in COMMANDS:
            # it says itself which of the options before it are not its own
            return Typed([*kept, word, *left], Asked())
        elif has_model and word in models and not (prompt or prints or is_attach):
            raise UsageError(f"“{word}” is a model, and another one was named before it.", hint=f"cclocal {word}")
        elif not has_model and is_model(word, models):
            kept += ["--model", word]
            has_model = True
        elif not has_model and not (prints or continues or resumes is not None):
            raise _unknown(word, models)
        elif prompt:
            words = f"There are two prompts: “{_short(prompt)}” and “{_short(word)}”."
            raise UsageError(words, hint="put quotes around the whole prompt")
        else:
            prompt = word
    return Typed(kept, Asked(prompt, prints, continues, resumes))


def is_model(word: str, models: Collection[str]) -> bool:
    """Whether a word names a model: one of the catalog, a file, a folder, one of the hub or of Ollama."""
    if word in models or word in (".", ".."):
        return True
    has_blank = any(character.isspace() for character in word)
    return not has_blank and ("/" in word or ":" in word or Path(word).suffix == ".gguf")


def _unknown(word: str, models: Collection[str]) -> UsageError:
    near = None if " " in word else _MEANT.get(word) or nearest(word, [*COMMANDS, *models], at_least=0.7)
    if near:
        return UsageError(f"“{_short(word)}” is neither a command nor a model. Did you mean {near}?")
    hint = "cclocal MODEL 'PROMPT', such as: cclocal tiny 'Create the file a.txt with content: hi'"
    return UsageError(f"“{_short(word)}” is neither a command nor a model.", hint=hint)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"
