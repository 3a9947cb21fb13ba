"""Sends Claude Code on when a reply announced a tool call and made none: a Stop hook, python -I -S nudge.py LOG

Weak models often end their turn with "Now I will create the file." Claude Code gives a Stop hook the last reply on
standard input, and goes on if the hook answers with a reason. It is sent on once: a hook that is called again because
of itself (`stop_hook_active`) lets it stop. Standard library only. What was done is written to LOG, the
session's, or in a sandbox its file of notes.
"""

from __future__ import annotations

import json
import re
import sys
import time

if __name__ == "__main__":
    # -I -S: our own package is not on the path; of it only modules without other packages are imported
    sys.path.append(__file__.rpartition("/cclocal/")[0])

from cclocal.turns import OURS, SENT_ON

#: The end of a reply in which something is announced, in the words that models use for it.
_ANNOUNCES = re.compile(
    r"\b(I'll|I will|I am going to|I'm going to|let me|let's|now I|next,? I|first,? I)\b[^?]*"
    r"\b(create|write|run|edit|read|check|look|open|add|update|change|fix|start|search|list|make|examine|use)\b[^?]*$",
    re.IGNORECASE,
)
#: A refusal, or an offer to the user.
_LEAVES_IT = re.compile(r"\b(let me know|not|if you|would you)\b|n't\b", re.IGNORECASE)
REASON = "You announced a step and did not call a tool. If there is something left to do, do it now with a tool call."


def announces(reply: str) -> bool:
    """Whether the last sentence of a reply announces a step."""
    last = re.split(r"(?<=[.!?])\s+|\n+", reply.strip())[-1]
    return bool(_ANNOUNCES.search(last)) and not _LEAVES_IT.search(last)


def main(argv: list[str]) -> None:
    """Answer Claude Code's question whether it may stop."""
    asked = json.load(sys.stdin)
    if asked.get("stop_hook_active") or not announces(str(asked.get("last_assistant_message") or "")):
        return
    with open(argv[1], "a", encoding="utf-8") as log:  # noqa: PTH123 - pathlib is slower to import
        log.write(f"{OURS} {time.strftime('%H:%M:%S')} {SENT_ON}\n")
    print(json.dumps({"decision": "block", "reason": REASON}))


if __name__ == "__main__":
    main(sys.argv)
