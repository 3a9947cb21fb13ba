"""Runs cclocal once for each line of JSON on stdin, each in a process of its own, and answers with what it did.

Everything that one run would import is imported once, so that a case takes milliseconds.

    {"argv": […], "files": {name: text in latin-1}}  →  {"code": …, "out": …, "err": …}
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from cclocal.cli import main


def run(argv: list[str], out: int, err: int) -> int:
    """The exit status of a command line, run in a child of this process."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 99
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        main.main(argv)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 98
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    # imports what every case needs
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        for argv in (["tiny", "--dry-run"], ["plan", "tiny"]):
            with contextlib.suppress(SystemExit):
                main.main(argv)
    for line in sys.stdin:
        case = json.loads(line)
        folder = Path(tempfile.mkdtemp(prefix="case-"))
        os.chdir(folder)
        for name, text in case["files"].items():
            Path(name).write_bytes(text.encode("latin-1"))
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            code = run(case["argv"], out.fileno(), err.fileno())
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode("utf-8", "replace"))
        os.chdir("/")
        shutil.rmtree(folder, ignore_errors=True)
        print(json.dumps({"code": code, "out": texts[0], "err": texts[1]}), flush=True)


if __name__ == "__main__":
    serve()
