"""The command line: options → Settings → one call. The only importer of typer."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cclocal import __version__
from cclocal import config_file as tomlfile
from cclocal.errors import CclocalError, InterruptedByUser, UsageError
from cclocal.paths import Folders, folders, packaged
from cclocal.settings import DEFAULTS, Settings

if TYPE_CHECKING:
    from cclocal.memory.shape import Shape
    from cclocal.models.catalog import Catalog
    from cclocal.planning.plan import Plan

#: (command, what it does); short enough for one line of 80 columns each
EXAMPLES = (
    ("cclocal --tiny -- -p 'Create the file a.txt with content: hi'", "no download"),
    ("cclocal --gemma", "Claude Code on Gemma 4, on this machine"),
    ("cclocal --gemma -- --continue", "go on with this folder's last conversation"),
    ("cclocal --coder --out-tokens 16384", "room for larger files in one reply"),
    ("cclocal --model ./my.gguf", "a model file of your own"),
    ("cclocal --gemma --dry-run", "what would run, where, and why"),
    ("cclocal plan --ram 24 --macos 26", "which models fit a machine, with how much context"),
    ("cclocal --server --gemma", "only the server"),
    ("cclocal 8124", "on the server that listens there; --url for another machine"),
    ("cclocal --fetch gemma coder", "download now, start later"),
    ("cclocal check gemma", "prove that it drives the agent"),
    ("cclocal --list", "what is on this disk; cclocal --rm removes"),
    ("cclocal stats", "what each turn cost: tokens read and kept, seconds to the first word"),
    ("cclocal prompt", "where the prompt's tokens go, before your first word"),
    ("cclocal logs -f", "what the model server says"),
)


def _epilog(user_file: Path) -> str:
    rows = [f"  [cyan]{command}[/]\n      [dim]{words}[/]" for command, words in EXAMPLES]
    rest = f"Everything after the first “--” goes to claude.\nLasting defaults: {user_file}"
    return "\n".join(("[bold]Examples[/]", *rows, "", rest))


MODELS = "Models"
SESSION = "The session"
MEMORY = "Memory"
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
            metavar="ID|FILE|REPO|TAG",
            envvar="CCLOCAL_MODEL",
            rich_help_panel=MODELS,
            help="A model of the catalog, a GGUF file, an MLX folder, owner/name[:QUANT] of the hub, an Ollama tag.",
            autocompletion=_names_of_models,
        ),
    ] = None,
    quant: Annotated[
        str | None,
        typer.Option(
            "--quant", metavar="NAME", rich_help_panel=MODELS, help="Another quantisation of the catalog's, as Q8_0."
        ),
    ] = None,
    parser: Annotated[
        str | None,
        typer.Option(
            "--parser",
            metavar="NAME",
            rich_help_panel=MODELS,
            help="vllm-mlx: the parser of its tool calls. [dim]default: the catalog's, or by its template[/]",
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
    think: Annotated[
        bool,
        typer.Option(
            "--think/--no-think",
            metavar="",
            envvar="CCLOCAL_THINK",
            rich_help_panel=SESSION,
            help="Let the model think before it answers: slower, sometimes better. [dim]default: off[/]",
            show_default=False,
        ),
    ] = False,
    no_tools: Annotated[
        bool,
        typer.Option(
            "--no-tools", metavar="", rich_help_panel=SESSION, help="Only talk: for a model that cannot call tools."
        ),
    ] = False,
    kv: Annotated[
        str | None,
        typer.Option(
            "--kv",
            metavar="TYPE",
            envvar="CCLOCAL_KV",
            rich_help_panel=MEMORY,
            help="KV cache type: f16, q8_0 (half the size), q5_1, q4_0. [dim]default: f16[/]",
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            "--slots",
            metavar="N",
            min=1,
            max=64,
            envvar="CCLOCAL_SLOTS",
            rich_help_panel=MEMORY,
            help="Conversations at once; they share the context. [dim]default: 1[/]",
        ),
    ] = None,
    ubatch: Annotated[
        int | None,
        typer.Option(
            "--ubatch",
            metavar="TOKENS",
            min=1,
            max=65536,
            envvar="CCLOCAL_UBATCH",
            rich_help_panel=MEMORY,
            help="Micro-batch: more is faster prompts and larger buffers. [dim]default: 512 or the catalog's[/]",
        ),
    ] = None,
    gpu_layers: Annotated[
        int | None,
        typer.Option(
            "--gpu-layers",
            metavar="N",
            min=0,
            envvar="CCLOCAL_GPU_LAYERS",
            rich_help_panel=MEMORY,
            help="So many layers on the graphics card, the rest on the processor.",
        ),
    ] = None,
    cpu_moe: Annotated[
        int | None,
        typer.Option(
            "--cpu-moe",
            metavar="N",
            min=0,
            envvar="CCLOCAL_CPU_MOE",
            rich_help_panel=MEMORY,
            help="Experts of N layers on the processor.",
        ),
    ] = None,
    wired_limit: Annotated[
        int | None,
        typer.Option(
            "--wired-limit",
            metavar="MIB",
            min=1,
            envvar="CCLOCAL_WIRED_LIMIT",
            rich_help_panel=MEMORY,
            help="Mac: let the GPU wire so much while the session lasts (sudo asks).",
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="URL",
            envvar="CCLOCAL_URL",
            rich_help_panel=SESSION,
            help="Use the server at this address, and start none. --model chooses among its models.",
        ),
    ] = None,
    key_env: Annotated[
        str | None,
        typer.Option(
            "--key-env", metavar="NAME", rich_help_panel=SESSION, help="The variable that holds that server's key."
        ),
    ] = None,
    insecure_http: Annotated[
        bool,
        typer.Option(
            "--insecure-http",
            metavar="",
            rich_help_panel=SESSION,
            help="Allow --url http:// to another machine, where it can be read on the way.",
        ),
    ] = False,
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend",
            metavar="NAME",
            envvar="CCLOCAL_BACKEND",
            rich_help_panel=SESSION,
            help="What serves the model: llama-server, vllm-mlx, ollama. [dim]default: by machine and model[/]",
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
            rich_help_panel=MEMORY,
            help="Show the plan, and always the memory menu, before anything is fetched or started.",
        ),
    ] = False,
    mem_check: Annotated[
        bool,
        typer.Option(
            "--mem-check/--no-mem-check",
            metavar="",
            envvar="CCLOCAL_MEM_CHECK",
            rich_help_panel=MEMORY,
            show_default=False,
            help="Start a model that does not fit without asking (--no-mem-check, or CCLOCAL_NO_MEMCHECK=1).",
        ),
    ] = True,
    lean: Annotated[
        bool | None,
        typer.Option(
            "--lean/--full",
            metavar="",
            envvar="CCLOCAL_LEAN",
            rich_help_panel=SESSION,
            show_default=False,
            help="A system prompt of our own and four tools: half the prompt to read.",
        ),
    ] = None,
    cold: Annotated[
        bool,
        typer.Option(
            "--cold/--warm",
            metavar="",
            envvar="CCLOCAL_COLD",
            rich_help_panel=SESSION,
            show_default=False,
            help="Keep nothing of the prompt from session to session.",
        ),
    ] = False,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", metavar="", rich_help_panel=SESSION, help="Start a model that failed its check without asking."
        ),
    ] = False,
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
        _refuse_lost_options(ctx)
        return
    if version:
        print(f"cclocal {__version__}")
        return
    started: Start = ctx.obj
    from cclocal.models import catalog
    from cclocal.ui import console as ui

    shelf = catalog.load(packaged("models.toml"), started.user_file)
    if list_models:
        ui.show_models(shelf, as_json=as_json)
        return
    if as_json and not dry_run:
        raise UsageError("--json goes with --dry-run or --list-models.")
    typed = {name for name in ctx.params if _is_typed(ctx, name)}
    if (key_env and not url) or (insecure_http and not url):
        raise UsageError("--key-env and --insecure-http go with --url.")
    ours = sorted(typed & {"server", "dry_run", "safe", "port", *(f"model_{name}" for name in _FLAG_IDS)})
    if url and "url" in typed and ours:
        raise UsageError(
            f"--url starts no server, so --{ours[0].removeprefix('model_').replace('_', '-')} is nothing for it."
        )
    if url and not ours:
        from cclocal.session.attach import attach_url

        # lasting defaults are about servers that we start
        wishes = Settings(
            model=model if "model" in typed else None,
            ctx=ctx_tokens if "ctx_tokens" in typed else None,
            out_tokens=out_tokens,
            pass_env=tuple(pass_env or ()),
            no_tools=no_tools,
            lean=lean,
            agent_args=started.agent_args,
        )
        with _interruptible("Interrupted."):
            attach_url(url, key_env, wishes, started.folders, started.environ, insecure=insecure_http)
    flags = [name.removeprefix("model_") for name, on in model_flags.items() if on]
    sources = _sources(ctx, started)
    wanted = _wanted(flags, model, sources, started)
    if wanted is None:
        from cclocal.session.models import menu

        quiet = server or safe or dry_run
        wanted = shelf.default if quiet else menu(shelf, started.folders, started.environ, backend)
        sources["model"] = "catalog" if quiet else "picker"
    settings = Settings(
        model=wanted,
        backend=backend,
        quant=quant,
        parser=parser,
        no_tools=no_tools,
        llama_server=llama_server,
        ctx=ctx_tokens,
        out_tokens=out_tokens,
        port=port,
        pass_env=tuple(pass_env or ()),
        kv=kv,
        slots=slots,
        ubatch=ubatch,
        gpu_layers=gpu_layers,
        cpu_moe=cpu_moe,
        wired_limit_mib=wired_limit,
        mem_check=mem_check
        and (
            "command line" in (sources.get("mem_check"), sources.get("safe"))
            or not _is_on(started.environ.get("CCLOCAL_NO_MEMCHECK", ""))
        ),
        lean=lean,
        cold=cold,
        yes=yes,
        think=think,
        server_only=server,
        agent_args=started.agent_args,
        sources=sources,
    )
    own_server = {
        "ctx_tokens",
        "kv",
        "slots",
        "ubatch",
        "port",
        "quant",
        "parser",
        "llama_server",
        "think",
        "backend",
        "safe",
    }
    if not (server or dry_run or typed & own_server):
        _join(shelf.find(wanted).id if wanted in shelf.names else wanted, settings, started)
    _carry_out(shelf, settings, started, dry_run=dry_run, as_json=as_json, safe=safe)


def _join(model_id: str, settings: Settings, started: Start) -> None:
    """Use the server of this model that `--server` holds in another terminal, if there is one: twice is too much."""
    from cclocal.session import attach
    from cclocal.ui import console as ui

    port = attach.port_of(model_id, started.folders)
    if port is None:
        return
    ui.say(f"{model_id} is served in another terminal already, on port {port}: using that.")
    with _interruptible("Interrupted."):
        attach.attach(port, replace(settings, model=model_id), started.folders, started.environ)


def _planner(
    shelf: Catalog, settings: Settings, started: Start
) -> Callable[[Mapping[str, Shape], Mapping[str, Any]], Plan]:
    """What makes the plan, again and again as more is known: looks around, and decides."""
    from cclocal.discovery.look import alternatives, probe
    from cclocal.models.resolve import model_of
    from cclocal.planning.plan import make_plan

    def planned(seen: Mapping[str, Shape], changes: Mapping[str, Any]) -> Plan:
        wishes = settings.changed(changes, "memory menu")
        model = model_of(shelf, wishes.model or shelf.default, wishes.backend, started.folders, started.environ)
        facts = probe(wishes, model, started.folders, started.environ)
        shapes = {**facts.shapes, **seen}
        return make_plan(model, wishes, replace(facts, shapes=shapes, alternatives=alternatives(shelf, model, facts)))

    return planned


def _carry_out(shelf: Catalog, settings: Settings, started: Start, *, dry_run: bool, as_json: bool, safe: bool) -> None:
    from cclocal.ui import console as ui

    planned = _planner(shelf, settings, started)
    plan = planned({}, {})
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
    from cclocal.session import launch as story

    with _interruptible("Interrupted; nothing was left running."):
        carry_out = story.run_server if settings.server_only else story.run
        carry_out(plan, planned, started.folders, started.environ, safe=safe)


@app.command()
def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", metavar="", help="Go on as the log grows.")] = False,
) -> None:
    """What the newest model server says."""
    from cclocal.server import logs as server_logs

    for piece in server_logs.read(folders(os.environ), follow=follow):
        sys.stdout.write(piece)
        sys.stdout.flush()


@app.command()
def attach(
    ctx: typer.Context,
    port: Annotated[int, typer.Argument(help="A port of this machine.", show_default=False)],
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="Of several, this one.")] = None,
    ctx_tokens: Annotated[
        int | None, typer.Option("--ctx", metavar="TOKENS", min=1, help="Its window, if it does not tell.")
    ] = None,
    out_tokens: Annotated[
        int | None, typer.Option("--out-tokens", metavar="TOKENS", min=256, help="Longest reply.")
    ] = None,
    lean: Annotated[
        bool | None,
        typer.Option(
            "--lean/--full", metavar="", envvar="CCLOCAL_LEAN", help="The short prompt, or the whole, whatever it says."
        ),
    ] = None,
) -> None:
    """Claude Code on a server that is there already (also: cclocal PORT): one of --server, or anybody's."""
    from cclocal.session.attach import attach as story

    started: Start = ctx.obj
    settings = Settings(model=model, ctx=ctx_tokens, out_tokens=out_tokens, lean=lean, agent_args=started.agent_args)
    with _interruptible("Interrupted."):
        story(port, settings, started.folders, started.environ)


@app.command()
def check(
    ctx: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", show_default=False, autocompletion=_names_of_models)
    ] = None,
    quant: Annotated[str | None, typer.Option("--quant", metavar="NAME", help="Another quantisation.")] = None,
    parser: Annotated[
        str | None, typer.Option("--parser", metavar="NAME", help="Of its tool calls (vllm-mlx).")
    ] = None,
    llama_server: Annotated[
        str | None, typer.Option("--llama-server", metavar="PATH|wheel", envvar="CCLOCAL_LLAMA_SERVER")
    ] = None,
    ctx_tokens: Annotated[int | None, typer.Option("--ctx", metavar="TOKENS", min=1, help="Context window.")] = None,
    backend: Annotated[
        str | None,
        typer.Option("--backend", metavar="NAME", envvar="CCLOCAL_BACKEND", help="llama-server, vllm-mlx or ollama."),
    ] = None,
    lean: Annotated[
        bool | None,
        typer.Option("--lean/--full", metavar="", envvar="CCLOCAL_LEAN", help="With the short prompt, or the whole."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="For scripts.")] = False,
) -> None:
    """Prove that a model drives the agent: real requests, real tool calls, a real file. Exit 0 only if it does."""
    from cclocal.models import catalog
    from cclocal.session.check import PROMPT
    from cclocal.session.check import check as story

    started: Start = ctx.obj
    shelf = catalog.load(packaged("models.toml"), started.user_file)
    lasting = started.user_file.defaults
    wanted = _plain(model) if model else str(lasting.get("model") or shelf.default)
    # it works in a folder of its own
    local = Path(wanted).expanduser()
    absolute = str(local.absolute()) if wanted not in shelf.names and local.exists() else wanted
    if llama_server and os.sep in llama_server:
        llama_server = str(Path(llama_server).expanduser().absolute())
    settings = Settings(
        model=absolute,
        backend=backend or lasting.get("backend"),
        quant=quant,
        parser=parser,
        llama_server=llama_server,
        ctx=ctx_tokens,
        kv=lasting.get("kv"),
        slots=lasting.get("slots"),
        ubatch=lasting.get("ubatch"),
        agent_args=("-p", PROMPT),
        lean=lean,
        cold=True,
        yes=True,
    )
    with _interruptible("Interrupted; nothing was left running."):
        works = story(lambda: _planner(shelf, settings, started), started.folders, started.environ, as_json=as_json)
    if not works:
        raise typer.Exit(1)


@app.command()
def stats(
    session: Annotated[str | None, typer.Argument(help="Another one's, by its id.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="For scripts.")] = False,
) -> None:
    """What each turn of a session cost, the newest's if none is named: tokens read, kept, written; seconds."""
    from cclocal.session import stats as told

    told.show(told.of(session, folders(os.environ)), as_json=as_json)


@app.command()
def prompt(
    ctx: typer.Context,
    lean: Annotated[
        bool | None,
        typer.Option("--lean/--full", metavar="", envvar="CCLOCAL_LEAN", help="The short prompt, or the whole."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="For scripts.")] = False,
) -> None:
    """Where the bytes and tokens of the agent's first request go, against a plain launch; “-- -p” for print mode."""
    from cclocal.prompt_cache import breakdown as anatomy

    started: Start = ctx.obj
    with _interruptible("Interrupted."):
        found = anatomy.dissect(started.agent_args, started.folders, started.environ, lean=bool(lean))
    anatomy.show(found, as_json=as_json)


@app.command("list")
def list_(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="For scripts.")] = False,
) -> None:
    """The models on this disk (also: cclocal --list): the hub's cache, Ollama's store, files you used."""
    from cclocal.models import catalog
    from cclocal.session.models import show_stored

    started: Start = ctx.obj
    shelf = catalog.load(packaged("models.toml"), started.user_file)
    show_stored(shelf, started.folders, started.environ, as_json=as_json)


@app.command()
def rm(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]…", help="Models by flag or repository; all = cclocal's.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", metavar="", help="Without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", metavar="", help="Only say what would go.")] = False,
) -> None:
    """Remove models from this disk (also: cclocal --rm). Without a name: a list to tick."""
    from cclocal.models import catalog
    from cclocal.session.models import remove_named

    started: Start = ctx.obj
    shelf = catalog.load(packaged("models.toml"), started.user_file)
    remove_named(names or (), shelf, started.folders, started.environ, yes=yes, dry_run=dry_run)


@app.command()
def fetch(
    ctx: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="MODEL…", autocompletion=_names_of_models)],
    quant: Annotated[str | None, typer.Option("--quant", metavar="NAME", help="Another quantisation.")] = None,
    backend: Annotated[
        str | None,
        typer.Option("--backend", metavar="NAME", envvar="CCLOCAL_BACKEND", help="For llama-server or vllm-mlx."),
    ] = None,
) -> None:
    """Download models and exit (also: cclocal --fetch); a launch needs no network then."""
    from cclocal.models import catalog
    from cclocal.session import launch as story

    started: Start = ctx.obj
    shelf = catalog.load(packaged("models.toml"), started.user_file)
    settings = Settings(server_only=True, mem_check=False, quant=quant, backend=backend)
    with _interruptible("Interrupted; finished files are kept."):
        for name in names:
            planned = _planner(shelf, replace(settings, model=_plain(name)), started)
            story.fetch_only(planned({}, {}), planned, started.folders, started.environ)


def _plain(name: str) -> str:
    """A model's name, also if it was written as its flag."""
    return name.removeprefix("--")


@app.command()
def plan(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            show_default=False,
            autocompletion=_names_of_models,
            help="A model of the catalog, a GGUF file, an MLX folder, owner/repo[:QUANT] of the hub, or an Ollama tag. "
            "Without one: the whole catalog.",
        ),
    ] = None,
    ctx_tokens: Annotated[
        int | None, typer.Option("--ctx", metavar="TOKENS", min=1, envvar="CCLOCAL_CTX", help="Context window.")
    ] = None,
    kv: Annotated[
        str | None,
        typer.Option("--kv", metavar="TYPE", envvar="CCLOCAL_KV", help="KV cache type: f16, q8_0, q5_1, q4_0."),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option("--slots", metavar="N", min=1, max=64, envvar="CCLOCAL_SLOTS", help="Conversations at once."),
    ] = None,
    ubatch: Annotated[
        int | None,
        typer.Option("--ubatch", metavar="TOKENS", min=1, max=65536, envvar="CCLOCAL_UBATCH", help="Micro-batch."),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option("--backend", metavar="NAME", envvar="CCLOCAL_BACKEND", help="llama-server, vllm-mlx or ollama."),
    ] = None,
    prefill_step: Annotated[
        int | None, typer.Option("--prefill-step", metavar="TOKENS", min=1, help="MLX: tokens of a prompt at once.")
    ] = None,
    ram: Annotated[
        int | None, typer.Option("--ram", metavar="GB", min=1, help="Plan for a machine with so much memory.")
    ] = None,
    macos: Annotated[
        str | None, typer.Option("--macos", metavar="VERSION", help="… and for a Mac with this macOS, such as 26.")
    ] = None,
    last: Annotated[
        bool, typer.Option("--last", metavar="", help="The last start: what was planned, what the engine allocated.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="For scripts.")] = False,
) -> None:
    """What a model needs in memory, and how much context fits. Starts and downloads nothing."""
    from cclocal.discovery.calibration import last as last_start
    from cclocal.models import catalog
    from cclocal.session.plan import Wishes, plan_catalog, plan_one
    from cclocal.ui import memory_view as memory_ui

    started: Start = ctx.obj
    if last:
        told = last_start(started.folders)
        if told is None:
            raise UsageError("Nothing was started yet that told its buffers.")
        memory_ui.show_last(told, as_json=as_json)
        return
    shelf = catalog.load(packaged("models.toml"), started.user_file)
    wishes = Wishes(ctx_tokens, kv, slots, ubatch, prefill_step, ram, macos, backend)
    if model is None:
        memory_ui.show_all(plan_catalog(shelf, wishes, started.folders, started.environ), as_json=as_json)
    else:
        row = plan_one(shelf, model, wishes, started.folders, started.environ)
        memory_ui.show_one(row, as_json=as_json)


@contextlib.contextmanager
def _interruptible(words: str) -> Iterator[None]:
    """What Ctrl-C leaves behind, in words."""
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedByUser(words) from None


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
        ours = {_PARAMETERS.get(key, key): value for key, value in self.user_file.defaults.items()}
        checked = {key: value for key, value in ours.items() if key in ("llama_server", "ctx_tokens", "lean")}
        fetched = {key: value for key, value in ours.items() if key == "backend"}
        planned = {key: value for key, value in ours.items() if key in _PLANNED}
        lean = {key: value for key, value in ours.items() if key == "lean"}
        of_commands = {"plan": planned, "check": checked, "prompt": lean, "attach": lean, "fetch": fetched}
        return {**ours, **of_commands}


#: The defaults that `cclocal plan` goes by, as a launch would.
_PLANNED = ("ctx_tokens", "kv", "slots", "ubatch", "backend")
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


def _is_typed(ctx: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _refuse_lost_options(ctx: typer.Context) -> None:
    """Options of a launch before a command would do nothing, in silence."""
    for name in ctx.params:
        if _is_typed(ctx, name):
            option = "--" + name.removeprefix("model_").replace("_tokens", "").replace("_", "-")
            raise UsageError(
                f"{option} is of a launch and does nothing for “{ctx.invoked_subcommand}”.",
                hint=f"cclocal {ctx.invoked_subcommand} -h",
            )


def _is_on(value: str) -> bool:
    """Whether a variable of the kind X=1 is set to yes."""
    return value.strip().lower() not in ("", "0", "false", "no", "off")


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


#: Flags that are commands: an option cannot take any number of names, and seed 002's users type these.
_COMMAND_FLAGS = {"--check": "check", "--list": "list", "-l": "list", "--rm": "rm", "--clean": "rm", "--fetch": "fetch"}


def _commands_by_flag(words: list[str]) -> list[str]:
    """The command line with such a flag first and by its command's name."""
    at = next((i for i, word in enumerate(words) if word in _COMMAND_FLAGS), None)
    if words and words[0].isdecimal():
        # seed 001's way to say which server
        return ["attach", *words]
    if at is None or (words and words[0] in ("list", "rm", "fetch", "plan", "logs", "attach", "check")):
        return words
    return [_COMMAND_FLAGS[words[at]], *words[:at], *words[at + 1 :]]


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
    ours = _commands_by_flag(ours)
    lenient = "_CCLOCAL_COMPLETE" in os.environ or bool({"-h", "--help", "--version"} & set(ours))
    try:
        started = Start(dict(os.environ), theirs, lenient=lenient)
        _add_model_flags((packaged("models.toml"), started.folders.user_file))
        if ours and ours[0] in ("check", "fetch", "plan", "rm"):
            # a model by its flag, as everywhere else
            known = tomlfile.flags(packaged("models.toml"), started.folders.user_file).values()
            flags = {f"--{name}" for _, names in known for name in names}
            ours = [_plain(word) if word in flags else word for word in ours]
        app.callback(invoke_without_command=True, epilog=_epilog(started.folders.user_file))(launch)
        sys.exit(_run(ours, started) or 0)
    except CclocalError as error:
        from cclocal.ui.console import show_error

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
