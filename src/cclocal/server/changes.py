"""Notices what an agent changed in files that other programs read or run later. Standard library only."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch

from cclocal.turns import CONVERSATION_ID

#: More is not looked at: files, and files of more bytes.
MOST_FILES, MOST_BYTES = 300, 256 * 1024
#: The folder of cclocal's state in which each sandboxed session has its /tmp.
TMP = "tmp"
#: What agents themselves leave in it.
_OF_AGENTS = ("claude-*", "codex-*", "node-compile-cache", "pi-*", "bun-*", ".*")
#: The id that ends the name of a conversation's file.
_ID = re.compile(CONVERSATION_ID + r"(?=\.jsonl$)")
#: Begins the content of a link, which is the path that it points at.
_LINK = b"\0"


def contents(folders: Iterable[str], names: Sequence[str]) -> dict[str, bytes]:
    """The content of the files of these names in some folders, by path; of a link, what it points at.

    A name can be that of a folder: then of all files in it.
    """
    found: dict[str, bytes] = {}
    for folder in folders:
        for path in _files(os.path.join(folder, name) for name in names):
            if len(found) == MOST_FILES:
                return found
            with contextlib.suppress(OSError):
                if os.path.islink(path):
                    found[path] = _LINK + os.fsencode(os.readlink(path))
                # opening a pipe would wait for a writer
                elif os.path.isfile(path) and os.path.getsize(path) <= MOST_BYTES:
                    with open(path, "rb") as file:
                        found[path] = file.read()
    return found


def _files(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        if os.path.isfile(path) or os.path.islink(path):
            yield path
        else:
            for folder, _, names in os.walk(path):
                yield from (os.path.join(folder, name) for name in sorted(names))


def differences(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> dict[str, str]:
    """Path → what happened to it: changed, new or removed."""
    found = {path: "removed" for path in before if path not in after}
    found |= {path: "new" for path in after if path not in before}
    found |= {
        path: "changed"
        for path in after
        if path in before and _obeyed(path, after[path]) != _obeyed(path, before[path])
    }
    return dict(sorted(found.items()))


def _obeyed(path: str, content: bytes) -> object:
    """What other programs run of a file: of package.json its scripts only."""
    if os.path.basename(path) == "package.json":
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            return json.loads(content).get("scripts")
    return content


def report(found: Mapping[str, str], before: Mapping[str, bytes], cwd: str, shelf: str) -> str:
    """What to say of the differences. The earlier content is put on the shelf, a folder that is made for it."""
    lines = []
    for path, what in found.items():
        name = _printable(os.path.relpath(path, cwd))
        if what == "new":
            lines.append(f"    {name} is new. To remove it: rm {_quoted(name)}\n")
            continue
        if before[path].startswith(_LINK):
            target = os.fsdecode(before[path].removeprefix(_LINK))
            lines.append(f"    {name} was {what}. To put it back: ln -sfn {_quoted(target)} {_quoted(name)}\n")
            continue
        copy = os.path.join(shelf, name.replace("../", "").replace("/", "+"))
        try:
            os.makedirs(shelf, mode=0o700, exist_ok=True)
            with open(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
                out.write(before[path])
        except OSError as error:
            lines.append(f"    {name} was {what}. It could not be kept as it was: {error.strerror}.\n")
            continue
        look = "" if what == "removed" else f" To look: diff {_quoted(copy)} {_quoted(name)}."
        lines.append(f"    {name} was {what}.{look} To put it back: cp {_quoted(copy)} {_quoted(name)}\n")
    return f"\n• This session changed files that other programs read or run:\n{''.join(lines)}" if lines else ""


def left_in_tmp(folder: str) -> str:
    """What to say of the files that an agent wrote to its /tmp. A folder without any is removed.

    Empty files do not count: bubblewrap makes some to mount others on, where those lie below /tmp.
    """
    names = []
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(folder) if not any(fnmatch(name, one) for one in _OF_AGENTS)]
    every = (path for name in names for path in _files([os.path.join(folder, name)]))
    paths = [path for path in every if os.path.isfile(path) and os.path.getsize(path)]
    if not paths:
        shutil.rmtree(folder, ignore_errors=True)
        return ""
    first = _printable(os.path.relpath(paths[0], folder))
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"\n• What the agent wrote to /tmp is in {folder}: {first}{more}.\n"


def _printable(name: str) -> str:
    """A file's name can hold anything: without control characters it steers no terminal."""
    return "".join(c if c.isprintable() else "?" for c in name)


def _quoted(path: str) -> str:
    """A path as a shell takes it."""
    return shlex.quote(_printable(path))


def remove_mount_points(paths: Sequence[str], folder: str) -> None:
    """Remove the empty folders that a session's sandbox mounted something on. One that is no longer empty stays.

    So does one that another session, in a folder beside this one's `folder`, mounts something on: without it the name
    would be unprotected there. The last session removes it.
    """
    if not paths:
        return
    theirs: set[str] = set()
    parent = os.path.dirname(folder)
    for name in os.listdir(parent) if os.path.isdir(parent) else ():
        other = os.path.join(parent, name)
        with contextlib.suppress(OSError, ValueError):
            if other != folder:
                with open(os.path.join(other, "session.json"), encoding="utf-8") as file:
                    theirs.update(json.load(file).get("mount_points", ()))
    for path in paths:
        with contextlib.suppress(OSError):
            if path not in theirs:
                os.rmdir(path)


def newest_conversation(pattern: str, since: float) -> str:
    """The id of the conversation whose file was changed last, if that was after a moment (epoch seconds); else "".

    Only the shape of an id is taken from a name: the agent's commands can make files there too.
    """
    found = []
    for path in glob.glob(pattern) if pattern else ():
        with contextlib.suppress(OSError):
            if (id_ := _ID.search(path)) and (changed := os.stat(path).st_mtime) >= since - 1:
                found.append((changed, id_[0]))
    return max(found, default=(0.0, ""))[1]
