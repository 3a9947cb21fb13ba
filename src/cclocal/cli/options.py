"""Command-line options made from the fields of `Settings`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cclocal import config_file
from cclocal.config_file import UserFile
from cclocal.errors import InterruptedByUser, UsageError
from cclocal.paths import Env, packaged
from cclocal.settings import Settings, base_type, default_of, flags, options, variables

_SOURCES = {"COMMANDLINE": "command line", "ENVIRONMENT": "environment", "DEFAULT_MAP": "user file"}
#: An option that is no setting, for commands with a result.
Json = Annotated[bool, typer.Option("--json", help="For scripts.")]


@dataclass(frozen=True)
class Call:
    """What main() found before the options were read: the environment, the user's file, the agent's arguments."""

    env: Env
    user_file: UserFile
    agent_args: tuple[str, ...] = ()
    #: parameter name of each model flag → the model's id
    model_flags: Mapping[str, str] = field(default_factory=dict)

    def origin(self, name: str) -> str:
        """Where the user's file sets a lasting default: "user file PATH:LINE"."""
        return f"user file {self.user_file.path}:{config_file.line_of(self.user_file.text, ('defaults', name))}"


#: What a launch takes, without what only concerns its own session or another server: what `check` and `plan` take.
WITHOUT_A_SESSION = tuple(
    name
    for name in options()
    if name not in ("server", "url", "key_env", "insecure_http", "yes", "cold", "no_tools", "safe")
)


def takes(*names: str, model_argument: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command these settings as options; it is called with `settings` and `call`.

    A parameter `invoked` gets the name of the subcommand that follows, if any.

    model_argument: the model is an argument of the command instead of an option.
    """

    def wrap(command: Callable[..., Any]) -> Callable[..., Any]:
        own = [
            parameter.replace(kind=parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.name not in ("settings", "call", "invoked") and parameter.kind is not parameter.VAR_KEYWORD
        ]
        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        made = [_model_argument() if model_argument and name == "model" else _parameter(name) for name in names]

        @functools.wraps(command)
        def run(context: typer.Context, **given: Any) -> Any:
            call: Call = context.obj
            if "invoked" in inspect.signature(command).parameters:
                given["invoked"] = context.invoked_subcommand
            settings = _settings(context, call, names, given)
            try:
                return command(settings=settings, call=call, **given)
            except KeyboardInterrupt:
                raise InterruptedByUser("Interrupted; nothing was left running.") from None

        parameters = [context, *made, *own]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return wrap


def _parameter(name: str) -> inspect.Parameter:
    """A setting as a parameter that Typer makes an option of."""
    kind, option = options()[name]
    is_flag = base_type(name) is bool
    declared = typer.Option(
        *option.declarations,
        metavar=option.metavar,
        help=option.help,
        rich_help_panel=option.panel,
        show_default=False,
        envvar=list(variables(name)) or None,
        min=option.at_least,
        max=option.at_most,
        autocompletion=_COMPLETIONS.get(name),
    )
    if base_type(name) is tuple:
        kind = list[str] | None
    default = None if base_type(name) is tuple else default_of(name)
    assert is_flag or option.metavar, f"{name} needs a metavar"
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, declared]
    )


def _model_argument() -> inspect.Parameter:
    option = options()["model"][1]
    declared = typer.Argument(
        metavar="[MODEL]",
        help=option.help,
        show_default=False,
        envvar=list(variables("model")),
        autocompletion=complete_model,
    )
    annotation = Annotated[str | None, declared]
    return inspect.Parameter("model", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _settings(context: typer.Context, call: Call, names: Sequence[str], given: dict[str, Any]) -> Settings:
    """The settings of a command, and where each was given. Raises UsageError for a variable that is never handed on."""
    sources = {}
    for name in names:
        source = context.get_parameter_source(name)
        if source and source.name in _SOURCES:
            sources[name] = call.origin(name) if source.name == "DEFAULT_MAP" else _SOURCES[source.name]
    values = {name: given.pop(name) for name in names}
    if "mem_check" in values and _memory_check_is_off(call, sources):
        values["mem_check"], sources["mem_check"] = False, "environment"
    if values.get("pass_env") is not None:
        values["pass_env"] = tuple(values["pass_env"])
    values = {name: default_of(name) if value is None else value for name, value in values.items()}
    settings = Settings(**values, agent_args=call.agent_args, sources=sources)
    _check_passed(settings)
    return settings


def _memory_check_is_off(call: Call, sources: Mapping[str, str]) -> bool:
    """Whether CCLOCAL_NO_MEMCHECK switches the check off; an option that asks for it beats the variable."""
    value = call.env.environ.get("CCLOCAL_NO_MEMCHECK", "").strip().lower()
    is_typed = "command line" in (sources.get("mem_check"), sources.get("safe"))
    return not is_typed and value not in ("", "0", "false", "no", "off")


def _check_passed(settings: Settings) -> None:
    """Raises UsageError for a variable in --pass-env that must never reach the agent."""
    if not settings.pass_env:
        return
    from cclocal.command import refusal
    from cclocal.planning.choose import choose_agent

    forbidden = choose_agent(settings).FORBIDDEN
    for variable in settings.pass_env:
        if reason := refusal(variable, forbidden):
            raise UsageError(f"--pass-env: {reason}.{settings.origin('pass_env')}")


def if_typed(settings: Settings, *names: str) -> Settings:
    """The settings with these kept only if they were typed: on a server that runs already, a lasting default of the
    window or the model does not count, because it is about servers that cclocal starts.
    """
    dropped: dict[str, Any] = {name: None for name in names if settings.sources.get(name) != "command line"}
    return replace(settings, **dropped)


def typed(settings: Settings, scope: str) -> list[str]:
    """The flags of the settings of a scope that stand on the command line."""
    return [
        f"--{_typed_flag(settings, name)}"
        for name, (_, option) in options().items()
        if option.scope == scope and settings.sources.get(name) == "command line"
    ]


def _typed_flag(settings: Settings, name: str) -> str:
    """The flag by which a setting was given: of a pair, the one for its value."""
    first, *rest = flags(name)
    return rest[0] if rest and getattr(settings, name) is False else first


def complete_model(incomplete: str) -> list[str]:
    """Names of models, and files and folders, that begin so."""
    names = [name for name in config_file.flags(packaged("models.toml")) if name.startswith(incomplete)]
    return [*names, *complete_path(incomplete)]


def complete_path(incomplete: str) -> list[str]:
    """GGUF files and folders that begin so."""
    base = Path(incomplete).expanduser()
    folder = base if incomplete.endswith("/") else base.parent
    try:
        found = [path for path in folder.iterdir() if path.suffix == ".gguf" or path.is_dir()]
    except OSError:
        return []
    stem = "" if incomplete.endswith("/") else base.name
    prefix = incomplete if incomplete.endswith("/") else incomplete[: len(incomplete) - len(stem)]
    return [
        f"{prefix}{path.name}{'/' if path.is_dir() else ''}"
        for path in sorted(found)
        if path.name.startswith(stem) and (stem or prefix) and not path.name.startswith(".")
    ]


def complete_backend(incomplete: str) -> list[str]:
    """Names of backends that begin so."""
    from cclocal.backends import BACKENDS

    return [name for name in BACKENDS if name.startswith(incomplete)]


def complete_agent(incomplete: str) -> list[str]:
    """Names of agents that begin so."""
    from cclocal.agents import AGENTS

    return [name for name in AGENTS if name.startswith(incomplete)]


def complete_kv(incomplete: str) -> list[str]:
    """KV cache types that begin so."""
    from cclocal.memory.footprint import KV_TYPES

    return [name for name in KV_TYPES if name.startswith(incomplete)]


def _complete_variable(incomplete: str) -> list[str]:
    import os

    return sorted(name for name in os.environ if name.startswith(incomplete))


_COMPLETIONS: Mapping[str, Callable[[str], list[str]]] = {
    "model": complete_model,
    "backend": complete_backend,
    "agent": complete_agent,
    "kv": complete_kv,
    "pass_env": _complete_variable,
    "key_env": _complete_variable,
}
