"""pi: the launch profile, verified on 0.73.1 (docs/agents.md has the reasons).

Source: its own documentation (docs/settings.md and docs/models.md of the package), and runs of it that tests/agents
repeats.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.version import Version

from cclocal.agents.session import AgentSession, Asked, ByHand, Capture, CaptureRun, ConfigDir, Sends, Window
from cclocal.command import AGENT_NAMES, AGENT_PREFIXES, SHOWN, Binding, Command, CommandAndFiles, Endpoint
from cclocal.facts import AgentFound
from cclocal.settings import OFF, SEES, Prompt
from cclocal.wires.wire import Calls

NAME = PROGRAM = "pi"
TITLE = "pi"
INSTALL = "npm install -g @mariozechner/pi-coding-agent@0.73.1"
CONVERSATIONS = "sessions/*/*.jsonl"
CONTINUES = frozenset("-c --continue -r --resume --session --fork".split())
LOOK = "cclocal.agents.pi.look"
WIRE = "chat"
CALLS = Calls(("bash", "command"), ("write", "path", "content"))
#: Bracketed paste and the keyboard protocol off, the cursor shown.
TERMINAL_RESET = "\x1b[?2004l\x1b[<u\x1b[?25h"
HAS: frozenset[str] = frozenset()
OWN_LEVELS: Mapping[str, str] = {OFF: "commands can read, write and reach whatever you can"}
#: No name means anything to it.
TAKEN = re.compile(r"(?!)")
FORBIDDEN = re.compile(r"PI_.*", re.IGNORECASE)
#: The oldest version whose profile was verified.
OLDEST = Version("0.73.1")
VERIFIED: tuple[str, ...] = ("0.73.1",)
SENDS = Sends(("bash", "edit", "read", "write"), names_folder=True)
IGNORED_IN_HOME = (".pi/agent/settings.json", ".pi/agent/models.json", ".pi/agent/AGENTS.md")
#: one in the folder stops the launch (look.py)
IGNORED_IN_FOLDER: tuple[str, ...] = ()
MANAGED: tuple[str, ...] = ()

#: Its name for our server, and the variable that holds the key: models.json names it.
_PROVIDER, _KEY = "cclocal", "CCLOCAL_KEY"
#: Its fixed prompt and a few turns.
_LEAST_PROMPT_TOKENS = 4096
#: What the request for a summary adds to the conversation that it summarises.
_COMPACT_PROMPT_TOKENS = 1536
#: It cuts a result at 50 kB or 2,000 lines; what is longer than the window has left is refused, then it compacts.
_RESULT_TOKENS = 4096
#: Longer than any prefill; the relay waits for a server that is started again.
_TIMEOUT_MS = 3_600_000
#: Arguments after which it prints and ends, or is driven by a program.
_NOT_INTERACTIVE = frozenset("-p --print --mode --version -v --help -h --list-models --export".split())
#: Words that are commands of its own and start no session.
_COMMANDS = frozenset("install remove uninstall update list config".split())
#: Arguments that change the system prompt or the tools.
_OTHER_PROMPT = frozenset(
    """--system-prompt --append-system-prompt --tools -t --no-tools -nt --no-builtin-tools -nbt --extension -e --skill
    --prompt-template --mode --version -v --help -h --list-models --export""".split()
)
#: Arguments that change what the profile guarantees, and how.
_UNDOES = {
    "--provider": "asks another server",
    "--model": "asks for a model other than the one that is loaded",
    "--models": "asks for models other than the one that is loaded",
    "--api-key": "replaces the session's key",
    "--extension": "runs a program of that extension inside the agent",
    "-e": "runs a program of that extension inside the agent",
    "--system-prompt": "replaces the system prompt",
    "--session-dir": "keeps conversations elsewhere",
}


def unusable(found: AgentFound, arguments: Sequence[str], *, level: str) -> str | None:
    return (
        None
        if Version(found.version) >= OLDEST
        else f"pi {found.version} is older than {OLDEST}, the oldest that was verified"
    )


def window(context_tokens: int, out_tokens: int, prompt: Prompt = "full") -> Window:
    reserve = _reserve_tokens(out_tokens)
    return Window(_LEAST_PROMPT_TOKENS + reserve, context_tokens - reserve, _RESULT_TOKENS)


def _reserve_tokens(out_tokens: int) -> int:
    """It compacts at the window less these: the next reply, one more result, the request for a summary."""
    return out_tokens + _RESULT_TOKENS + _COMPACT_PROMPT_TOKENS


def _files(session: AgentSession, endpoint: Endpoint) -> dict[str, str]:
    """Its settings and its only model."""
    model = {
        "id": endpoint.model,
        "name": endpoint.model,
        "reasoning": False,
        "input": ["text", *(["image"] if session.sees in SEES else [])],
        "contextWindow": session.context_tokens,
        "maxTokens": session.out_tokens,
        "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
    }
    provider = {
        "baseUrl": f"{endpoint.url}/v1",
        "api": "openai-completions",
        "apiKey": _KEY,
        # strict chat templates know no developer's message
        "compat": {"supportsDeveloperRole": False, "supportsReasoningEffort": False, "supportsStore": False},
        "models": [model],
    }
    settings = {
        "defaultProvider": _PROVIDER,
        "defaultModel": endpoint.model,
        "defaultThinkingLevel": "off",
        "quietStartup": True,
        "enableInstallTelemetry": False,
        "compaction": {
            "enabled": True,
            "reserveTokens": _reserve_tokens(session.out_tokens),
            # the default of 20,000 would leave a small window full
            "keepRecentTokens": min(20_000, max(1024, (session.context_tokens - session.out_tokens) // 4)),
        },
        "retry": {"provider": {"timeoutMs": _TIMEOUT_MS, "maxRetries": 2}},
    }
    return {
        "models.json": json.dumps({"providers": {_PROVIDER: provider}}, indent=1),
        "settings.json": json.dumps(settings, indent=1),
    }


def command(session: AgentSession, endpoint: Endpoint, binding: Binding) -> CommandAndFiles:
    env = {
        # of this session alone: the file with the server's address is read again while it runs
        "PI_CODING_AGENT_DIR": binding.folder,
        "PI_CODING_AGENT_SESSION_DIR": str(_conversations(session)),
        _KEY: endpoint.key,
        # no update, no telemetry, no download of its helpers
        "PI_OFFLINE": "1",
        "PI_SKIP_VERSION_CHECK": "1",
        "PI_TELEMETRY": "0",
        # a proxy would carry the loopback traffic, prompt and key included
        "NO_PROXY": "127.0.0.1,localhost,::1",
    }
    argv = (
        str(session.found.path) if session.found else PROGRAM,
        *("--provider", _PROVIDER, "--model", endpoint.model),
        # a folder's extensions run inside the agent; skills and templates change the fixed part of the prompt
        *("--no-extensions", "--no-skills", "--no-prompt-templates"),
        *(() if session.tools else ("--no-tools",)),
        *session.arguments,
    )
    if {*session.arguments[:1]} & _COMMANDS:
        # a command comes first
        argv = (argv[0], *session.arguments)
    return Command(argv, env, AGENT_NAMES | set(session.passed), AGENT_PREFIXES), _files(session, endpoint)


def _conversations(session: AgentSession) -> Path:
    """Where the conversations of this folder are kept, in a name as pi itself makes it."""
    name = re.sub(r"[/\\:]", "-", str(session.cwd).lstrip("/"))
    return session.home / "sessions" / f"--{name}--"


def by_hand(session: AgentSession, endpoint: Endpoint) -> ByHand:
    files = _files(session, endpoint)
    folder = 'export PI_CODING_AGENT_DIR="$(mktemp -d)"'
    lines = (f'printf %s {shlex.quote(text)} > "$PI_CODING_AGENT_DIR/{name}"' for name, text in files.items())
    command = (PROGRAM, "--provider", _PROVIDER, "--model", endpoint.model)
    return ByHand({_KEY: endpoint.key, "PI_OFFLINE": "1"}, command, (folder, *lines))


def is_interactive(arguments: Sequence[str]) -> bool:
    return not _NOT_INTERACTIVE & {argument.split("=", 1)[0] for argument in arguments}


def ask_for_file(path: str, content: str) -> str:
    return CALLS.ask_to_write(path, content)


def arguments(asked: Asked) -> tuple[str, ...]:
    words = [*(("-p",) if asked.prints else ()), *(("--continue",) if asked.continues else ())]
    if asked.resumes is not None:
        words += ("--session", asked.resumes) if asked.resumes else ("--resume",)
    return (*words, *((asked.prompt,) if asked.prompt else ()))


def config_dir(session: AgentSession) -> ConfigDir:
    return ConfigDir(session.home, keeps=frozenset(("sessions",)))


def capture(session: AgentSession, model: str) -> Capture | None:
    flags = {argument.split("=", 1)[0] for argument in session.arguments}
    if not session.found or flags & _OTHER_PROMPT or {*session.arguments[:1]} & _COMMANDS:
        return None
    return _captured(session, model, is_plain=False)


def plain(session: AgentSession, model: str) -> Capture:
    return _captured(session, model, is_plain=True)


def _captured(session: AgentSession, model: str, *, is_plain: bool) -> Capture:
    made = Capture("", session, model, is_plain, is_interactive(session.arguments))
    run = capture_run(made, SHOWN, "<first words>")
    digest = hashlib.sha256(json.dumps(run.command.argv[1:]).encode()).hexdigest()[:8]
    version = session.found.version if session.found else ""
    kind = f"{'plain ' if is_plain else ''}pi {version} {'' if made.is_interactive else '-p '}"
    return Capture(f"{kind}{model} {digest}", session, model, is_plain, made.is_interactive)


def capture_run(capture: Capture, binding: Binding, words: str) -> CaptureRun:
    place = Path(binding.folder)
    arguments = (words,) if capture.is_interactive else ("-p", words)
    session = AgentSession(
        found=capture.session.found,
        context_tokens=capture.session.context_tokens,
        out_tokens=capture.session.out_tokens,
        cwd=place / "project",
        home=place / "pi",
        arguments=arguments,
    )
    made, files = command(session, Endpoint.of_relay(binding, capture.model), binding)
    if capture.is_plain:
        argv = (made.argv[0], *made.argv[1:5], *arguments)
        made = Command(argv, made.env, made.keep, made.keep_prefixes)
    return CaptureRun(made, _without_retries(files), config_dir(session))


def _without_retries(files: Mapping[str, str]) -> dict[str, str]:
    """The same for a request that is refused: it must not be sent again."""
    settings = json.loads(files["settings.json"])
    return {**files, "settings.json": json.dumps({**settings, "retry": {"enabled": False}})}


def notes(session: AgentSession) -> tuple[str, ...]:
    flags = (argument.split("=", 1)[0] for argument in session.arguments)
    return tuple(dict.fromkeys(f"{flag} after “--” {_UNDOES[flag]}." for flag in flags if flag in _UNDOES))
