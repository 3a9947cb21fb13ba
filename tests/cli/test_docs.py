"""Every command that the README and the docs show is one that the command line understands."""

from __future__ import annotations

import re
import shlex

import pytest

from tests.cli.test_fuzz import Case, case
from tests.conftest import ROOT

__all__ = ["case"]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: A placeholder, a choice, a shell's own sign or a part left out: such a line is no command as it stands.
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}[A-Z0-9]*\b|[…|\[\]$<>{}=]|\.\.\.")
#: What is said of words that are not understood.
NOT_UNDERSTOOD = re.compile(
    r"no option|neither a command|unexpected extra|Missing argument|Invalid value|has no “| takes |is one of|no setting"
)


def _commands() -> dict[str, str]:
    """Command → the page it stands on: the lines of blocks of code, and code in a sentence."""
    found: dict[str, str] = {}
    for page in PAGES:
        text = page.read_text("utf-8")
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
        for line in (*lines, *re.findall(r"`([^`\n]+)`", text)):
            # what it does stands behind it
            for part in re.split(r"\s+#|\s{3,}", line)[0].split(";"):
                command = part.strip()
                if command.startswith("cclocal ") and not PLACEHOLDER.search(command):
                    found.setdefault(command, page.name)
    return found


COMMANDS = _commands()


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 40


@pytest.mark.timeout(300)
def test_every_command_is_understood(case: Case) -> None:
    for command, page in COMMANDS.items():
        argv = shlex.split(command)[1:]
        # of a model that the page itself adds
        if "--mine" in argv or {"edit", "-f", "--follow", "--self-test"} & {*argv}:
            continue
        did = case(argv, {})
        assert not NOT_UNDERSTOOD.search(did["err"]), f"{page}: {command}: {did['err']}"
