"""Run a command on a terminal and answer yes to the offer to install what is missing: answer_yes.py COMMAND…

It gets few variables, and pip's own.
"""

from __future__ import annotations

import os
import sys

import pexpect

LIMIT_S = 300


def main() -> int:
    """The command's exit status; 1 if there was no such offer."""
    program, *words = sys.argv[1:]
    names = ("HOME", "PATH", "TERM", "LANG", "CCLOCAL_SANDBOX")
    env = {name: value for name, value in os.environ.items() if name in names or name.startswith("PIP_")}
    child: pexpect.spawn = pexpect.spawn(  # type: ignore[type-arg]
        program, words, env=env, encoding="utf-8", timeout=LIMIT_S, dimensions=(40, 200)
    )
    child.logfile_read = sys.stdout
    if child.expect([r"Install it now\?", pexpect.EOF]):
        return 1
    child.sendline("y")
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus or 0


if __name__ == "__main__":
    sys.exit(main())
