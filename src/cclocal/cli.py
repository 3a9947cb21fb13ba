"""The command line: options → Settings → one call. The only importer of typer."""

from __future__ import annotations

import inspect
import io
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cclocal import __version__, tomlfile
from cclocal.errors import CclocalError, InterruptedByUser, UsageError
from cclocal.files import Folders, folders, packaged
from cclocal.settings import DEFAULTS, Settings

if TYPE_CHECKING:
    from cclocal.catalog import Catalog, Model
    from cclocal.memory.fit import Fit
    from cclocal.memory.shape import Shape
    from cclocal.plan import Plan

#: (command, what it does); short enough for one line of 80 columns each
EXAMPLES = (
    ("cclocal --tiny -- -p 'Create the file a.txt with content: hi'", "no download"),
    ("cclocal --gemma", "Claude Code on Gemma 4, on this machine"),
    ("cclocal --gemma -- --continue", "go on with this folder's last conversation"),
    ("cclocal --coder --out-tokens 16384", "room for larger files in one reply"),
    ("cclocal --model ./my.gguf", "a model file of your own"),
    ("cclocal --gemma --dry-run", "what would run, where, and why"),
    ("cclocal --server --gemma", "only the server"),
    ("cclocal logs -f", "what the model server says"),
)


def _epilog(user_file: Path) -> str:
    rows = [f"  [cyan]{command}[/]\n      [dim]{words}[/]" for command, words in EXAMPLES]
    rest = f"Everything after the first “--” goes to claude.\nLasting defaults: {user_file}"
    return "\n".join(("[bold]Examples[/]", *rows, "", rest))


MODELS = "Models"
SESSION = "The session"
LOOK = "Look without starting"

app = typer.Typer(
    name="cclocal",
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    pretty_exceptions_enable=False,
)


def _names_of_models(incomplete: str) -> list[str]:
    return [name for name in tomlfile.flags(packaged("models.toml")) if name.startswith(incomplete)]


def launch(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="ID|FILE.gguf",
            envvar="CCLOCAL_MODEL",
            rich_help_panel=MODELS,
            help="A model of the catalog by name, or a GGUF file.",
            autocompletion=_names_of_models,
        ),
    ] = None,
    server: Annotated[
        bool,
        typer.Option(
            "--server",
            metavar="",
            rich_help_panel=SESSION,
            help="Only the server, until Ctrl-C; cclocal attach PORT joins it from another terminal.",
        ),
    ] = False,
    ctx_tokens: Annotated[
        int | None,
        typer.Option(
            "--ctx",
            metavar="TOKENS",
            min=1,
            envvar="CCLOCAL_CTX",
            rich_help_panel=SESSION,
            help="Context window; server, agent and compaction all follow it.",
        ),
    ] = None,
    out_tokens: Annotated[
        int | None,
        typer.Option(
            "--out-tokens",
            metavar="TOKENS",
            min=256,
            envvar="CCLOCAL_OUT_TOKENS",
            rich_help_panel=SESSION,
            help="Longest reply; a file written in one go must fit into it. [dim]default: 8192[/]",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            metavar="N",
            min=1,
            max=65535,
            envvar="CCLOCAL_PORT",
            rich_help_panel=SESSION,
            help="The server's port. [dim]default: any free one; with --server the model's own[/]",
        ),
    ] = None,
    pass_env: Annotated[
        list[str] | None,
        typer.Option(
            "--pass-env",
            metavar="NAME",
            envvar="CCLOCAL_PASS_ENV",
            rich_help_panel=SESSION,
            help="Hand this variable of yours to the agent too; may be given several times. "
            "[dim]In CCLOCAL_PASS_ENV spaces separate the names.[/]",
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend",
            metavar="NAME",
            envvar="CCLOCAL_BACKEND",
            rich_help_panel=SESSION,
            help="What serves the model: llama-server.",
        ),
    ] = None,
    llama_server: Annotated[
        str | None,
        typer.Option(
            "--llama-server",
            metavar="PATH|wheel",
            envvar="CCLOCAL_LLAMA_SERVER",
            rich_help_panel=SESSION,
            help="This llama-server, or “wheel” for the one in the xllamacpp package. "
            "[dim]default: the one on PATH, else the package's[/]",
        ),
    ] = None,
    safe: Annotated[
        bool,
        typer.Option(
            "--safe/--no-safe",
            metavar="",
            envvar=["CCLOCAL_SAFE", "CCLOCAL_FORCE_MEMCHECK"],
            rich_help_panel=SESSION,
            help="Show the plan and ask before anything is fetched or started.",
        ),
    ] = False,
    mem_check: Annotated[
        bool,
        typer.Option(
            "--mem-check/--no-mem-check",
            metavar="",
            envvar="CCLOCAL_MEM_CHECK",
            rich_help_panel=SESSION,
            show_default=False,
            help="Start a model that does not fit without asking (--no-mem-check, or CCLOCAL_NO_MEMCHECK=1).",
        ),
    ] = True,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", metavar="", rich_help_panel=LOOK, help="Print the plan that would run, and stop."),
    ] = False,
    list_models: Annotated[
        bool, typer.Option("--list-models", metavar="", rich_help_panel=LOOK, help="The catalog.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", metavar="", rich_help_panel=LOOK, help="With --dry-run or --list-models: for scripts."),
    ] = False,
    version: Annotated[bool, typer.Option("--version", metavar="", rich_help_panel=LOOK, help="The version.")] = False,
    **model_flags: bool,
) -> None:
    """Claude Code on a model on your own machine: one command, tools that execute, nothing sent anywhere."""
    if ctx.invoked_subcommand:
        return
    if version:
        print(f"cclocal {__version__}")
        return
    started: Start = ctx.obj
    from cclocal import catalog, ui

    shelf = catalog.load(packaged("models.toml"), started.user_file)
    if list_models:
        ui.show_models(shelf, as_json=as_json)
        return
    if as_json and not dry_run:
        raise UsageError("--json goes with --dry-run or --list-models.")
    flags = [name.removeprefix("model_") for name, on in model_flags.items() if on]
    sources = _sources(ctx, started)
    wanted = _wanted(flags, model, sources, started)
    if wanted is None:
        wanted = shelf.default if server or safe else ui.pick(shelf)
        sources["model"] = "catalog" if server or safe else "picker"
    settings = Settings(
        model=wanted,
        backend=backend,
        llama_server=llama_server,
        ctx=ctx_tokens,
        out_tokens=out_tokens,
        port=port,
        pass_env=tuple(pass_env or ()),
        mem_check=mem_check
        and (sources.get("mem_check") == "command line" or not _is_on(started.environ.get("CCLOCAL_NO_MEMCHECK", ""))),
        server_only=server,
        agent_args=started.agent_args,
        sources=sources,
    )
    _carry_out(_model(shelf, wanted), settings, started, dry_run=dry_run, as_json=as_json, safe=safe)


def _carry_out(model: Model, settings: Settings, started: Start, *, dry_run: bool, as_json: bool, safe: bool) -> None:
    from dataclasses import replace

    from cclocal import ui
    from cclocal.catalog import with_local_files
    from cclocal.machine import probe
    from cclocal.plan import make_plan

    model = with_local_files(model, started.folders.config)

    def planned(seen: Mapping[str, Shape]) -> Plan:
        facts = probe(settings, model, started.folders, started.environ)
        return make_plan(model, settings, replace(facts, shapes={**seen, **facts.shapes}))

    plan = planned({})
    if dry_run and as_json:
        import json

        print(json.dumps(plan.as_json(started.environ), indent=2, ensure_ascii=False))
        return
    if dry_run:
        ui.show_plan(plan, started.environ)
        return
    if safe:
        if not ui.can_ask():
            raise UsageError("--safe asks first, and there is no terminal to ask on.", hint="--no-safe")
        ui.show_plan(plan, started.environ)
        if not ui.confirm("Start it?"):
            return
    from cclocal import launch as story

    try:
        carry_out = story.run_server if settings.server_only else story.run
        carry_out(plan, planned, started.folders, started.environ)
    except KeyboardInterrupt:
        raise InterruptedByUser("Interrupted; nothing was left running.") from None


@app.command()
def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", metavar="", help="Go on as the log grows.")] = False,
) -> None:
    """What the newest model server says."""
    from cclocal import logs as server_logs

    for piece in server_logs.read(folders(os.environ), follow=follow):
        sys.stdout.write(piece)
        sys.stdout.flush()


@app.command()
def attach(
    ctx: typer.Context,
    port: Annotated[int, typer.Argument(help="The port that --server printed.", show_default=False)],
) -> None:
    """Claude Code on a server that --server holds in another terminal."""
    from cclocal.launch import attach as story

    started: Start = ctx.obj
    try:
        story(port, started.folders, started.environ, started.agent_args)
    except KeyboardInterrupt:
        raise InterruptedByUser("Interrupted.") from None


@app.command()
def plan(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL|FILE.gguf]", show_default=False, autocompletion=_names_of_models)
    ] = None,
    ctx_tokens: Annotated[int | None, typer.Option("--ctx", metavar="TOKENS", min=256, help="Context window.")] = None,
    kv: Annotated[str, typer.Option("--kv", metavar="TYPE", help="KV cache type: f16, q8_0, q5_1, q4_0.")] = "f16",
    slots: Annotated[int | None, typer.Option("--slots", metavar="N", min=1, help="Conversations at once.")] = None,
    ubatch: Annotated[int | None, typer.Option("--ubatch", metavar="TOKENS", min=1, help="Micro-batch.")] = None,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="For scripts.")] = False,
) -> None:
    """What a model on disk needs in memory, and how much context fits. Starts nothing."""
    from dataclasses import replace

    from cclocal import catalog, ui
    from cclocal.machine import probe
    from cclocal.memory.footprint import KV_TYPES
    from cclocal.plan import memory_serving, plan_memory

    if kv not in KV_TYPES:
        raise UsageError(f"There is no KV cache type “{kv}”.", hint=f"--kv {' | '.join(KV_TYPES)}")
    started: Start = ctx.obj
    shelf = catalog.load(packaged("models.toml"), started.user_file)
    wanted = [_model(shelf, model)] if model else list(shelf.models.values())
    rows: list[tuple[Model, Fit | None]] = []
    for one in wanted:
        facts = probe(
            Settings(server_only=True),
            catalog.with_local_files(one, started.folders.config),
            started.folders,
            started.environ,
        )
        shape = next(iter(facts.shapes.values()), None)
        if shape is None:
            rows.append((one, None))
            continue
        serving = memory_serving(one.variants[0], ctx_tokens or one.served_context_tokens)
        serving = replace(
            serving,
            kv_type=kv,
            slots=slots or serving.slots,
            ubatch_tokens=ubatch or serving.ubatch_tokens,
        )
        rows.append((one, plan_memory(shape, serving, facts.engines[0] if facts.engines else None, facts.machine)))
    if model and rows[0][1] is None:
        raise UsageError(f"{rows[0][0].name} is not on disk yet: its header would say what it needs.")
    ui.show_fits(rows, as_json=as_json, alone=bool(model))


class Start:
    """What main() found before the options were read."""

    def __init__(self, environ: Mapping[str, str], agent_args: Sequence[str], *, lenient: bool) -> None:
        self.environ = environ
        self.agent_args = tuple(agent_args)
        self.folders: Folders = folders(environ)
        self.user_file = tomlfile.UserFile(self.folders.user_file)
        try:
            self.user_file = tomlfile.read_user_file(self.folders.user_file, DEFAULTS)
        except UsageError:
            # help must work above all when something is wrong
            if not lenient:
                raise

    def default_map(self) -> dict[str, Any]:
        """The user's lasting defaults under the names of our parameters."""
        return {_PARAMETERS.get(key, key): value for key, value in self.user_file.defaults.items()}


_PARAMETERS = {"ctx": "ctx_tokens"}
_SOURCE_WORDS = {"COMMANDLINE": "command line", "ENVIRONMENT": "environment", "DEFAULT_MAP": "user file"}


def _sources(ctx: typer.Context, started: Start) -> dict[str, str]:
    """Where each setting came from, as far as it was said at all."""
    found = {}
    for key in DEFAULTS:
        source = ctx.get_parameter_source(_PARAMETERS.get(key, key))
        if source and source.name in _SOURCE_WORDS:
            found[key] = _SOURCE_WORDS[source.name]
            if source.name == "DEFAULT_MAP":
                line = tomlfile.line_of(started.user_file.text, ("defaults", key))
                found[key] += f" {started.user_file.path}:{line}"
    return found


def _wanted(flags: list[str], model: str | None, sources: dict[str, str], started: Start) -> str | None:
    """The model the user means: a flag beats --model's lasting defaults, but two on one line are a mistake."""
    said = [f"--{name.replace('_', '-')}" for name in flags]
    if model and sources.get("model") == "command line":
        said.append(f"--model {model}")
    if len(said) > 1:
        raise UsageError(f"One model at a time, please: {' or '.join(said)}?")
    if flags:
        sources["model"] = "command line"
        return _FLAG_IDS[flags[0]]
    return model


def _is_on(value: str) -> bool:
    """Whether a variable of the kind X=1 is set to yes."""
    return value.strip().lower() not in ("", "0", "false", "no", "off")


def _model(shelf: Catalog, wanted: str) -> Model:
    from cclocal import catalog

    if wanted.endswith(".gguf") or os.sep in wanted:
        path = Path(wanted).expanduser()
        if not wanted.endswith(".gguf") and not path.exists():
            raise UsageError(
                f"There is no file {wanted}; and models are not fetched from the hub by their id yet.",
                hint="give it a name in your config.toml: docs/catalog.md shows how",
            )
        from cclocal.machine import read_shape

        # a file without a context of its own is served at what most models can do
        shape = read_shape(path) if path.is_file() else None
        native = shape.native_context_tokens if shape else 0
        return catalog.of_gguf(path.absolute(), native or 32768)
    return shelf.find(wanted)


#: parameter name of each model flag → the model's id
_FLAG_IDS: dict[str, str] = {}


def _add_model_flags(sources: Sequence[Path]) -> None:
    """Give `launch` one option per model, made from the catalog: a new model needs no code."""
    signature = inspect.signature(launch, eval_str=True)
    fixed = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    made = []
    for id_, (text, names) in tomlfile.flags(*sources).items():
        name = "".join(c if c.isalnum() else "_" for c in id_)
        if name in _FLAG_IDS or not names:
            # two ids that differ in a dash: said when the catalog is checked
            continue
        _FLAG_IDS[name] = id_
        option = typer.Option(*(f"--{n}" for n in names), rich_help_panel=MODELS, help=text, metavar="")
        made.append(
            inspect.Parameter(
                f"model_{name}",
                inspect.Parameter.KEYWORD_ONLY,
                default=False,
                annotation=Annotated[bool, option],
            )
        )
    by_panel = [fixed[0], *made, *(p.replace(kind=p.KEYWORD_ONLY) for p in fixed[1:])]
    launch.__signature__ = signature.replace(parameters=by_panel)  # type: ignore[attr-defined]
    launch.__annotations__ = {p.name: p.annotation for p in by_panel}


def _correction(words: Sequence[str], complaint: str) -> str:
    """The line that was probably meant, for a complaint about a word that is not ours."""
    if not complaint.startswith("No such"):
        return "cclocal -h"
    at = next((i for i, word in enumerate(words) if word.split("=")[0] in complaint.split("(")[0]), len(words))
    if words[at : at + 1] and "".join(c if c.isalnum() else "_" for c in words[at]) in _FLAG_IDS:
        return shlex.join(("cclocal", *words[:at], f"--{words[at]}", *words[at + 1 :]))
    meant = shlex.join(("cclocal", *words[:at], "--", *words[at:]))
    return f"{meant}    if that is for claude; else cclocal -h"


def _open_standard_streams() -> None:
    """Give closed standard streams somewhere to go: a file opened later must not become one of them."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        # an old locale prints ? for what it does not have
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, the agent's own status, or one of cclocal.errors."""
    _open_standard_streams()
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    ours, theirs = words[:cut], words[cut + 1 :]
    lenient = "_CCLOCAL_COMPLETE" in os.environ or bool({"-h", "--help", "--version"} & set(ours))
    try:
        started = Start(dict(os.environ), theirs, lenient=lenient)
        _add_model_flags((packaged("models.toml"), started.folders.user_file))
        app.callback(invoke_without_command=True, epilog=_epilog(started.folders.user_file))(launch)
        sys.exit(_run(ours, started) or 0)
    except CclocalError as error:
        from cclocal.ui import show_error

        show_error(error)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except BrokenPipeError:
        # whoever read us has heard enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _run(words: list[str], started: Start) -> int | None:
    try:
        result = app(words, prog_name="cclocal", standalone_mode=False, obj=started, default_map=started.default_map())
    except typer.TyperException as error:
        raise UsageError(error.format_message().rstrip(), hint=_correction(words, error.format_message())) from None
    return result if isinstance(result, int) else None
