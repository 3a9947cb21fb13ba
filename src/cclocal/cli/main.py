"""The command line: argv → one command, its exit status, and the errors it prints. (Other modules do the work.)"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

from cclocal import config_file
from cclocal.config_file import COMMANDS
from cclocal.errors import CclocalError, DiskFullError, FaultError, UsageError, UserQuit
from cclocal.paths import DISK_FULL, Env, folders, packaged, write_private
from cclocal.settings import options

#: Commands that may also be given as a flag, because users of earlier scripts type them so.
_BY_FLAG = {"--check": "check", "--list": "list", "-l": "list", "--rm": "rm", "--clean": "rm", "--fetch": "fetch"}
#: Commands without Typer, to which they would be its own options of that name.
_ANSWERED_HERE = ("help", "version")
#: Commands that need no lasting default, so a mistake in the file does not keep the user from them.
_WITHOUT_DEFAULTS = ("config", "doctor", "logs", "ps", "stats", "stop", "update")
#: Commands that take models by name, where a model's flag means the same as its name.
_WITH_MODELS = ("check", "fetch", "list", "plan", "rm")

#: The examples on the first help page: (what to type, what it does).
_EXAMPLES = (
    ("cclocal", "choose a model from a menu"),
    ("cclocal gemma 'fix the failing test'", "Claude Code on Gemma 4"),
    ("cclocal gemma --continue", "go on; --resume [ID]: another one"),
    ("cclocal tiny -p 'Create the file a.txt'", "print and end; no download"),
    ("cclocal plan", "which models fit this machine"),
    ("cclocal list; cclocal rm coder", "what is on this disk; remove it"),
)
#: Seconds after which Ctrl-C is sent again if it was lost.
_AGAIN_S = 0.05
#: How wide the columns of the first help page are.
_COLUMN = 39


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, the agent's own status, or one of cclocal.errors."""
    sys.unraisablehook = press_again
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        # the modules are loaded, until which Ctrl-C ended the process (__main__.py)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _open_standard_streams()
        words = list(sys.argv[1:] if argv is None else argv)
        cut = words.index("--") if "--" in words else len(words)
        try:
            _run(_command_first(words[:cut]), tuple(words[cut + 1 :]), dict(os.environ))
        finally:
            sys.stdout.flush()
    except CclocalError as error:
        _exit_with(error)
    except UserQuit as wish:
        sys.exit(wish.exit_code)
    except KeyboardInterrupt:
        # interrupted before a command could report it
        sys.exit(130)
    except BrokenPipeError:
        # the reader of our output has closed it
        _discard_output()
        sys.exit(141)
    except OSError as error:
        if error.filename or error.errno not in (*DISK_FULL, errno.EIO):
            _exit_with(_fault(error))
        _discard_output()
        _exit_with(DiskFullError(f"The output cannot be written: {error.strerror}."))
    except Exception as error:
        _exit_with(_fault(error))


def _exit_with(error: CclocalError) -> NoReturn:
    from cclocal.ui.console import show_error

    with contextlib.suppress(OSError):
        show_error(error)
    sys.exit(error.exit_code)


def _discard_output() -> None:
    """What is still to be written goes nowhere: the end of the program would try again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fault(error: Exception) -> CclocalError:
    """The error for an exception that no code expects. Its traceback goes into a file."""
    import traceback

    log = None
    with contextlib.suppress(CclocalError, OSError):
        path = folders(dict(os.environ)).state / "fault.log"
        write_private(path, f"{' '.join(sys.argv)}\n{traceback.format_exc()}")
        log = str(path)
    words = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    return FaultError("This is a fault in cclocal.", cause=[words[:300]], hint="cclocal doctor, for a report", log=log)


def press_again(lost: sys.UnraisableHookArgs) -> None:
    """Send Ctrl-C again if Python lost it.

    KeyboardInterrupt is raised wherever the program is. In a callback, such as the one that the import system runs
    after each import, Python reports it as unraisable and goes on.
    """
    if not isinstance(lost.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    import threading

    # from another thread and a little later, so that it does not arrive in the same callback
    threading.Timer(_AGAIN_S, os.kill, (os.getpid(), signal.SIGINT)).start()


def _run(words: list[str], agent_args: tuple[str, ...], environ: Mapping[str, str]) -> None:
    if words[:1] == ["help"]:
        words = [words[1], "-h"] if len(words) > 1 else ["-h"]
    if words[:1] in (["-h"], ["--version"], ["-V"], ["version"]):
        _short_answer(words[0], environ)
        return
    is_lenient = "_CCLOCAL_COMPLETE" in environ or bool({"-h", "--help"} & set(words))
    is_lenient |= bool(words) and words[0] in _WITHOUT_DEFAULTS
    env = Env.of(environ)
    try:
        user_file = config_file.read_user_file(env.folders.user_file)
    except UsageError:
        # help must work above all when something is wrong
        if not is_lenient:
            raise
        user_file = config_file.UserFile(env.folders.user_file)
    from cclocal.cli import app
    from cclocal.cli.options import Call
    from cclocal.cli.words import understand

    models = config_file.flags(packaged("models.toml"), env.folders.user_file)
    names = {name for _, names in models.values() for name in names}
    if words[:1] and words[0] in _WITH_MODELS:
        words = [word.removeprefix("--") if word.removeprefix("--") in names else word for word in words]
    typed = understand(words, names)
    _complete_commands_by_flag(environ)
    lasting = dict(user_file.defaults)
    # the server of `attach` runs already
    of_agent = {name: value for name, value in lasting.items() if options()[name][1].scope == "agent"}
    of_commands = {name: lasting for name in COMMANDS if name not in _ANSWERED_HERE}
    defaults = {**lasting, **of_commands, "attach": of_agent, "env": of_agent}
    sys.exit(app.run(typed.words, Call(env, user_file, agent_args, typed.asked, models), defaults) or 0)


def _short_answer(word: str, environ: Mapping[str, str]) -> None:
    """`-h` and `--version`, without Typer: they must be fast, and work even if the configuration is wrong."""
    from cclocal import __version__

    if word != "-h":
        print(f"cclocal {__version__}")
        return
    try:
        user_file = folders(environ).user_file
    except CclocalError:
        user_file = packaged("models.toml")
    models = config_file.flags(packaged("models.toml"), user_file)
    print(_page(models, color=sys.stdout.isatty() and "NO_COLOR" not in environ))


def _page(models: Mapping[str, tuple[str, tuple[str, ...]]], *, color: bool) -> str:
    """The page of `cclocal -h`: one screen. `models`: id → (a line about it, its flags)."""
    from textwrap import wrap

    def bold(text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if color else text

    shown = [
        (f"{option.declarations[0].split('/')[0]} {option.metavar.split('|')[0]}", option.short)
        for _, option in options().values()
        if option.short
    ]
    flags = [f"{flag.strip():<20} {words}" for flag, words in (*shown, ("--dry-run", "show the plan"))]
    commands = [name for name in COMMANDS if name not in _ANSWERED_HERE]
    names = wrap(" ".join(models), 2 * _COLUMN, break_on_hyphens=False)
    return "\n".join(
        (
            "Usage: cclocal [MODEL] [PROMPT] [OPTIONS] [-- ARGUMENTS OF THE AGENT]",
            "A coding agent on a model on your own machine: tools execute, nothing is sent.",
            *(f"  {command:<40} {words}" for command, words in _EXAMPLES),
            bold("Options"),
            *_in_columns(flags),
            f"{bold('Models')}; more of each: cclocal --list-models",
            *(f"  {line}" for line in names),
            f"{bold('Commands')}, each with -h; for everything cclocal --help",
            *(f"  {line}" for line in wrap(" ".join(commands), 2 * _COLUMN)),
        )
    )


def _in_columns(cells: Sequence[str]) -> Iterator[str]:
    """The cells in two columns, down the first and then down the second."""
    half = -(-len(cells) // 2)
    for left, right in zip(cells[:half], [*cells[half:], ""], strict=False):
        yield f"  {left[: _COLUMN - 1]:<{_COLUMN}}{right[:_COLUMN]}".rstrip()


def _command_first(words: list[str]) -> list[str]:
    """The words with the command first, if it was given as a flag or as the port of a server."""
    if words[:1] and words[0].isdecimal():
        return ["attach", *words]
    at = next((i for i, word in enumerate(words) if word in _BY_FLAG), None)
    if at is None or words[0] in COMMANDS:
        return words
    return [_BY_FLAG[words[at]], *words[:at], *words[at + 1 :]]


def _complete_commands_by_flag(environ: Mapping[str, str]) -> None:
    """Have the shell's completion see `cclocal --rm NAME` as `cclocal rm NAME`."""
    for name in ("COMP_WORDS", "_TYPER_COMPLETE_ARGS"):
        text = environ.get(name, "")
        for flag, command in _BY_FLAG.items():
            if text.startswith((f"cclocal {flag} ", f"cclocal\n{flag}\n")):
                os.environ[name] = text.replace(flag, command, 1)


def _open_standard_streams() -> None:
    """Open closed standard streams on /dev/null, so that no file opened later becomes one of them."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        # an old locale prints ? for characters that it does not have
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
