"""TOML files that people write: their content, and the line of a mistake in them.

Only tomllib is needed, so that `-h` can read the catalog's flags without checking the catalog.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cclocal.errors import UsageError
from cclocal.settings import accepts, lasting, options, type_in_words
from cclocal.settings import flags as flags_of_setting

#: A model's flag, without its dashes.
FLAG = re.compile(r"[a-z][a-z0-9.-]*")
#: The commands of the command line. (Here, because the first help page must not import the commands themselves.)
COMMANDS = (
    *("attach", "check", "config", "doctor", "env", "fetch", "help", "list", "logs", "plan", "prompt", "ps", "rm"),
    *("stats", "stop", "update", "version"),
)
#: Other words that a model's flag must not take.
_WORDS = frozenset(
    """clean continue dry-run html install-completion json key last list-models macos print ram resume show-completion
    show-key vscode warm""".split()
)


@cache
def reserved() -> frozenset[str]:
    """The words that no model may take as its flag: our own commands and options."""
    return _WORDS.union(COMMANDS, (flag for name in options() for flag in flags_of_setting(name)))


def flags(*sources: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """{model id: (one help line, its flags)}, read without checking. A file that cannot be read adds nothing."""
    taken = reserved()
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for source in sources:
        try:
            models = tomllib.loads(source.read_text("utf-8")).get("models", {})
            for id_, raw in models.items():
                old_help, old_names = found.get(id_, ("", ()))
                names = tuple(dict.fromkeys((id_, *raw["flags"]))) if "flags" in raw else old_names or (id_,)
                text = f"{raw['name']}: {raw['note']}" if "name" in raw and "note" in raw else old_help
                found[id_] = (text, tuple(n for n in names if FLAG.fullmatch(n) and n not in taken))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return found


@dataclass(frozen=True, slots=True)
class UserFile:
    """The user's config.toml: lasting defaults, and models added or changed."""

    path: Path
    defaults: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""


def read_user_file(path: Path) -> UserFile:
    """Read the user's file, which is never written. A missing file holds no defaults.

    Raises UsageError with file:line for anything unknown or of the wrong type.
    """
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return UserFile(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read {path}: {error}.") from None
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r" \(at line (\d+), column (\d+)\)", str(error))
        where = f"{path}:{line[1]}:{line[2]}" if line else f"{path}"
        raise UsageError(f"{where}: {str(error).replace(line[0] if line else '', '')}.") from None
    except RecursionError:
        raise UsageError(f"{path}: its values are nested too deeply.") from None
    for key, value in raw.items():
        if key not in ("defaults", "models"):
            what = "belongs under [defaults]" if key in lasting() else "is unknown"
            raise mistake(path, text, (key,), what, () if key in lasting() else ("defaults", "models"))
        if not isinstance(value, dict):
            raise mistake(path, text, (key,), "must be a table")
    defaults = raw.get("defaults", {})
    for key, value in defaults.items():
        if key not in lasting():
            raise mistake(path, text, ("defaults", key), "is unknown", lasting())
        if not accepts(key, value):
            raise mistake(path, text, ("defaults", key), f"must be {type_in_words(key)}")
    return UserFile(path, defaults, raw.get("models", {}), text)


def mistake(path: Path, text: str, loc: tuple[str | int, ...], what: str, known: Iterable[str] = ()) -> UsageError:
    """The error for a mistake at a key, with file, line and the nearest right key."""
    near = nearest(str(loc[-1]), known)
    dotted = ".".join(str(part) for part in loc)
    return UsageError(
        f"{path}:{line_of(text, loc)}: {dotted} {what}." + (f" Perhaps you meant {near}." if near else "")
    )


def nearest(word: str, known: Iterable[str], at_least: float = 0.5) -> str | None:
    """The known word that is most like this one, or None if none is. at_least: how much (0 to 1)."""
    import difflib

    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=at_least)), None)


def line_of(text: str, loc: tuple[str | int, ...]) -> int:
    """The line of a key in a TOML text, or of the nearest table that encloses it (1 if none)."""
    lines = dict(_keys(text))
    while loc:
        if loc in lines:
            return lines[loc]
        loc = loc[:-1]
    return 1


def _keys(text: str) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """Every table header and key of a TOML text with its line. Inline tables count as their key."""
    table: tuple[str | int, ...] = ()
    #: the index of the newest element of each array of tables
    latest: dict[tuple[str | int, ...], int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[(\[?)(.+?)\]\]?\s*(#.*)?$", line):
            table = ()
            parts = re.findall(r'"[^"]*"|\'[^\']*\'|[^.\s]+', header[2])
            for at, part in enumerate(parts, 1):
                table = (*table, part.strip("\"'"))
                if header[1] and at == len(parts):
                    latest[table] = latest.get(table, -1) + 1
                if table in latest:
                    table = (*table, latest[table])
            yield table, number
        elif key := re.match(r'\s*((?:"[^"]*"|[A-Za-z0-9_.-]+))\s*=', line):
            yield (*table, *(p.strip('"') for p in key[1].split("."))), number
