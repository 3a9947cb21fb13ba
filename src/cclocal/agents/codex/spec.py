"""Codex: the launch profile, verified on 0.169.0 (docs/agents.md has the reasons).

Sources: runs of the real program against a scripted server that logged every request; tests/agents repeats them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from packaging.version import Version

from cclocal.agents.codex.command import COMMANDS, EXEC, KEPT_TOKENS, LEAST_PROMPT_TOKENS, Context, context_of
from cclocal.agents.codex.command import PROGRAM as PROGRAM
from cclocal.agents.codex.command import by_hand as by_hand
from cclocal.agents.codex.command import command as command
from cclocal.agents.codex.command import config_dir as config_dir
from cclocal.agents.codex.command import window as window
from cclocal.agents.session import AgentSession, Asked, Capture, CaptureRun, Sends
from cclocal.command import SHOWN, Binding, Command, Endpoint
from cclocal.facts import AgentFound
from cclocal.settings import BASH, OFF, STRICT
from cclocal.wires.wire import Calls

NAME = "codex"
TITLE = "Codex"
INSTALL = "npm install -g @openai/codex@0.169.0"
CONVERSATIONS = "sessions/*/*/*/*.jsonl"
CONTINUES = frozenset("resume fork".split())
LOOK = "cclocal.agents.codex.look"
WIRE = "responses"
CALLS = Calls(("exec_command", "cmd"))
#: Bracketed paste, focus reports and the keyboard protocol off, the cursor shown.
TERMINAL_RESET = "\x1b[?2004l\x1b[?1004l\x1b[<u\x1b[?25h"
HAS: frozenset[str] = frozenset(("mcp",))
OWN_LEVELS: Mapping[str, str] = dict.fromkeys((BASH, OFF), "Codex's own: commands write ./ only and reach no network")
#: No name means anything to it.
TAKEN = re.compile(r"(?!)")
FORBIDDEN = re.compile(r"(CODEX|OPENAI|RUST)(_.*)?", re.IGNORECASE)
#: The oldest version whose profile was verified.
OLDEST = Version("0.169.0")
VERIFIED: tuple[str, ...] = ("0.169.0",)
SENDS = Sends(("exec_command", "write_stdin"), ("user", "user"))
IGNORED_IN_HOME: tuple[str, ...] = (".codex/config.toml", ".codex/AGENTS.md")
IGNORED_IN_FOLDER: tuple[str, ...] = (".codex/config.toml",)
#: Codex's documentation, "managed configuration"
MANAGED = ("/etc/codex/config.toml", "/etc/codex/managed_config.toml", "/etc/codex/requirements.toml")

#: Arguments that change what the profile guarantees, and how.
_UNDOES = {
    "-c": "may replace any part of the profile",
    "--config": "may replace any part of the profile",
    "-m": "asks for a model other than the one that is loaded",
    "--model": "asks for a model other than the one that is loaded",
    "-p": "takes a profile of the private folder, which has none",
    "--profile": "takes a profile of the private folder, which has none",
    "--oss": "asks another server",
    "--local-provider": "asks another server",
    "--enable": "switches a feature on that may ask other servers",
    "--search": "has every request carry a tool that a local model does not have",
    "-s": "replaces the sandbox mode",
    "--sandbox": "replaces the sandbox mode",
    "--dangerously-bypass-approvals-and-sandbox": "lets every command do anything without asking",
    "--add-dir": "lets the agent write in that folder too",
}


#: Arguments by which the user chooses the sandbox mode: then a sandbox that does not work is no reason to refuse.
_OWN_SANDBOX = frozenset("-s --sandbox -c --config --yolo --dangerously-bypass-approvals-and-sandbox".split())


def unusable(found: AgentFound, arguments: Sequence[str], *, level: str) -> str | None:
    if Version(found.version) < OLDEST:
        return f"Codex {found.version} is older than {OLDEST}, the oldest that was verified"
    problem = found.context.sandbox_problem if isinstance(found.context, Context) else ""
    # in a sandbox of ours it makes none of its own
    if problem and level != STRICT and not {argument.split("=", 1)[0] for argument in arguments} & _OWN_SANDBOX:
        return f"Codex's sandbox does not work here, so that every command would fail: {problem}"
    return None


def is_interactive(arguments: Sequence[str]) -> bool:
    first = next(iter(arguments), "")
    return first not in EXEC | COMMANDS and not {"--version", "-V", "--help", "-h"} & set(arguments)


def ask_for_file(path: str, content: str) -> str:
    return f"Run the command: printf %s '{content}' > {path}"


def arguments(asked: Asked) -> tuple[str, ...]:
    prints, prompt = ("exec",) if asked.prints else (), (asked.prompt,) if asked.prompt else ()
    # it has no list to choose from when it prints
    if asked.continues or (asked.prints and asked.resumes == ""):
        return (*prints, "resume", "--last", *prompt)
    resume = ("resume", *((asked.resumes,) if asked.resumes else ())) if asked.resumes is not None else ()
    return (*prints, *resume, *prompt)


def capture(session: AgentSession, model: str) -> Capture | None:
    flags = {argument.split("=", 1)[0] for argument in session.arguments}
    starts_no_session = {*session.arguments[:1]} & COMMANDS
    if not session.found or flags & (_UNDOES.keys() - {"--add-dir"}) or starts_no_session:
        return None
    return _captured(session, model, is_plain=False)


def plain(session: AgentSession, model: str) -> Capture:
    return _captured(session, model, is_plain=True)


def _captured(session: AgentSession, model: str, *, is_plain: bool) -> Capture:
    # the terminal and exec send the same, so one stands for both
    made = Capture("", session, model, is_plain, is_interactive=False)
    run = capture_run(made, SHOWN, "<first words>")
    argv = [word for word in run.command.argv[1:] if not re.match(r"model_(context|auto)_", word)]
    digest = hashlib.sha256(json.dumps(argv).encode()).hexdigest()[:8]
    version = session.found.version if session.found else ""
    return replace(made, about=f"{'plain ' if is_plain else ''}codex {version} {model} {digest}")


def capture_run(capture: Capture, binding: Binding, words: str) -> CaptureRun:
    """By `codex exec`, in an empty folder."""
    place = Path(binding.folder)
    found = capture.session.found
    session = replace(
        capture.session,
        found=found and replace(found, context=Context(context_of(capture.session).features)),
        cwd=place / "project",
        git_root=None,
        home=place / "codex",
        arguments=("exec", words),
    )
    made, files = command(session, Endpoint.of_relay(binding, capture.model), binding)
    if capture.is_plain:
        # the provider alone
        pairs = [made.argv[at : at + 2] for at, word in enumerate(made.argv) if word == "--config"]
        kept = [word for pair in pairs if re.match(r"model(_provider)?=|model_providers", pair[1]) for word in pair]
        made = replace(made, argv=(made.argv[0], *kept, "exec", "--skip-git-repo-check", words))
    return CaptureRun(_once(made), files, config_dir(session))


def _once(made: Command) -> Command:
    """The same for a request that is refused: it must not be sent again."""
    argv = tuple(re.sub(r'("(?:request|stream)_max_retries"=)\d+', r"\g<1>0", word) for word in made.argv)
    return replace(made, argv=argv)


def notes(session: AgentSession) -> tuple[str, ...]:
    found = []
    if untrusted := context_of(session).untrusted:
        found.append(f"{untrusted}/.codex can have Codex start programs, so Codex asks whether you trust the folder.")
    if window(session.context_tokens, session.out_tokens).compacts_at_tokens < KEPT_TOKENS + LEAST_PROMPT_TOKENS:
        found.append(
            f"Codex keeps {KEPT_TOKENS:,} tokens of your own messages when it compacts: in a window this small a long "
            "conversation may be compacted again and again. A larger --ctx helps."
        )
    flags = (argument.split("=", 1)[0] for argument in session.arguments)
    found += [f"{flag} after “--” {_UNDOES[flag]}." for flag in flags if flag in _UNDOES]
    return tuple(dict.fromkeys(found))
