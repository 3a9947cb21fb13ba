"""`cclocal config`: the user's file of lasting defaults: where it is, what is in force, changing it."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cclocal import config_file
from cclocal.errors import UsageError
from cclocal.paths import Env, write_private
from cclocal.planning.choose import CHOICES
from cclocal.settings import Settings, accepts, base_type, lasting, number_in, type_in_words
from cclocal.ui.console import can_ask, output, print_json, say
from cclocal.ui.tables import plain_table

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

_NEW = """# cclocal's lasting defaults: docs/reference.md has every key, `cclocal config set KEY VALUE` writes one.
[defaults]
"""


def show(settings: Settings, env: Env, *, as_json: bool) -> None:
    """The settings that differ from the defaults, and where each was made."""
    config_file.read_user_file(env.folders.user_file)
    rows = {name: (getattr(settings, name), settings.sources.get(name, "")) for name in lasting()}
    rows = {name: row for name, row in rows.items() if row[1]}
    path = env.folders.user_file
    if as_json:
        values = {name: {"value": value, "source": source} for name, (value, source) in rows.items()}
        print_json({"path": str(path), "settings": values})
        return
    if rows:
        table = plain_table("setting", "value", "set in", no_wrap=("setting",))
        for name, (value, source) in rows.items():
            table.add_row(
                name, _as_text(value), source.replace(f"user file {path}", "line ").replace("line :", "line ")
            )
        output().print(table)
    say(f"{path}{'' if path.exists() else ' (not there yet)'}", "dim")
    if not rows:
        say("No setting differs from its default.    cclocal config set KEY VALUE    cclocal config edit", "dim")


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(value) if isinstance(value, (list, tuple)) else str(value)


def change(key: str, values: Sequence[str], env: Env) -> None:
    """Set a key under [defaults], or remove it if there is no value. Comments and everything else stay as they are.

    Raises UsageError for a key or a value that there is not, FolderError if the file cannot be written.
    """
    name = key.replace("-", "_").removeprefix("__")
    if name not in lasting():
        near = config_file.nearest(name, lasting())
        raise UsageError(f"There is no setting {key}." + (f" Did you mean {near}?" if near else ""))
    value = _value_of(name, values) if values else None
    choices = CHOICES.get(name, ())
    if choices and value not in (None, *choices):
        raise UsageError(f"{name} is one of {', '.join(choices)}; “{' '.join(values)[:60]}” is not.")
    if value is not None and not accepts(name, value):
        raise UsageError(f"{name} must be {type_in_words(name)}; “{' '.join(values)[:60]}” is not.")
    document = _read(env)
    defaults = document.setdefault("defaults", {})
    if value is None:
        defaults.pop(name, None)
    else:
        defaults[name] = value
    _write(document, env)
    path = env.folders.user_file
    # the whole file is checked, as a start would
    config_file.read_user_file(path)
    say(f"{name} is no longer set." if value is None else f"{name} = {_as_text(value)}    ({path})")


def _value_of(name: str, values: Sequence[str]) -> object:
    kind, text = base_type(name), " ".join(values)
    if kind is tuple:
        return list(values)
    if kind is bool:
        return {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}.get(
            text.lower(), text
        )
    if kind is int:
        number = number_in(name, text)
        return text if number is None else number
    return text


def _read(env: Env) -> TOMLDocument:
    import tomlkit

    path = env.folders.user_file
    # a file with a mistake is not written over
    config_file.read_user_file(path)
    return tomlkit.parse(path.read_text("utf-8") if path.exists() else _NEW)


def _write(document: TOMLDocument, env: Env) -> None:
    import tomlkit

    # a link into the user's own repository of settings stays one
    path = env.folders.user_file.resolve()
    mode = path.stat().st_mode & 0o777 if path.exists() else None
    write_private(path, tomlkit.dumps(document))
    if mode is not None:
        path.chmod(mode)


def edit(env: Env) -> None:
    """Open the file in the user's editor. Raises UsageError for a mistake in it afterwards."""
    if not can_ask():
        raise UsageError("There is no terminal for an editor.", hint="cclocal config set KEY VALUE")
    path = env.folders.user_file
    if not path.exists():
        _write(_read(env), env)
    editor = env.environ.get("VISUAL") or env.environ.get("EDITOR") or "vi"
    try:
        done = subprocess.run([*shlex.split(editor), str(path)], env=dict(os.environ), check=False)
    except OSError as error:
        words = f"The editor {editor} does not run: {error.strerror}."
        raise UsageError(words, hint="EDITOR=nano cclocal config edit") from None
    if done.returncode:
        raise UsageError(f"The editor {editor} ended with {done.returncode}.")
    config_file.read_user_file(path)
    say(f"{path} is in order.")
