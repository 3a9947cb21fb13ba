"""Command-line options made from the fields of `Settings`, and what completes their values."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cclocal import config_file
from cclocal.agents.session import Asked
from cclocal.config_file import UserFile
from cclocal.errors import InterruptedByUser, UsageError
from cclocal.paths import Env, packaged
from cclocal.settings import (
    MODELS,
    Settings,
    accepts,
    base_type,
    flags,
    number_in,
    options,
    type_in_words,
    variables,
)

if TYPE_CHECKING:
    from cclocal.models.catalog import Catalog

_SOURCES = {"COMMANDLINE": "command line", "ENVIRONMENT": "environment", "DEFAULT_MAP": "user file"}
#: An option that is no setting, for commands with a result.
Json = Annotated[bool, typer.Option("--json", help="For scripts.")]


@dataclass(frozen=True)
class Call:
    """The environment, the user's file, the agent's arguments; and, once the options are read, what they say."""

    env: Env
    user_file: UserFile
    agent_args: tuple[str, ...]
    #: what the user asked of the agent in words of ours
    asked: Asked
    #: model id → (a line about it, its flags)
    models: Mapping[str, tuple[str, tuple[str, ...]]]
    settings: Settings = field(default_factory=Settings)
    #: the ids of the models whose flags were given
    named: tuple[str, ...] = ()
    #: the name of the subcommand that follows, if any
    invoked: str | None = None

    def catalog(self) -> Catalog:
        """The shipped catalog and the user's models. Raises UsageError with file:line for a mistake."""
        from cclocal.discovery.look import load_catalog

        return load_catalog(self.user_file)

    def origin(self, name: str) -> str:
        """Where the user's file sets a lasting default: "user file PATH:LINE"."""
        return f"user file {self.user_file.path}:{config_file.line_of(self.user_file.text, ('defaults', name))}"


#: What concerns a server that runs already.
ANOTHER_SERVER = ("url", "ssh", "key_env", "ca", "insecure_http", "wait")
#: What a launch takes, without what only concerns its own session or another server: what `check` and `plan` take.
WITHOUT_A_SESSION = tuple(
    name for name in options() if name not in (*ANOTHER_SERVER, "model", "server", "yes", "cold", "no_tools", "safe")
)


def takes(
    *names: str, models: Iterable[tuple[str, tuple[str, ...]]] = (), hidden: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command these settings as options; it is called with `call` and its own parameters.

    models: (a line about it, its flags) of each model that gets an option, so that a new model needs no code. hidden:
    they are not in its help.
    """

    def wrap(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(context: typer.Context, **given: Any) -> Any:
            call: Call = context.obj
            named = tuple(id_ for number, id_ in enumerate(call.models) if given.pop(f"model_{number}", False))
            settings = _settings(context, call, names, given)
            call = replace(call, settings=settings, named=named, invoked=context.invoked_subcommand)
            try:
                return command(call, **given)
            except KeyboardInterrupt:
                raise InterruptedByUser("Interrupted; nothing was left running.") from None

        parameters = [_keyword("context", typer.Context)]
        for number, (text, flags_of_model) in enumerate(models):
            declared = [f"--{flag}" for flag in flags_of_model]
            option = typer.Option(*declared, rich_help_panel=MODELS, help=text, metavar="")
            if declared:
                parameters.append(_keyword(f"model_{number}", Annotated[bool, option], default=False))
        # the page of a launch names the variables, which are the same for every command
        parameters += (_option(name, hidden=hidden, shows_variable=bool(models)) for name in names)
        _, *own = inspect.signature(command, eval_str=True).parameters.values()
        parameters += (parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in own)
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return wrap


def _keyword(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _option(name: str, *, hidden: bool, shows_variable: bool) -> inspect.Parameter:
    """A setting as a parameter that Typer makes an option of."""
    kind, option = options()[name]
    assert base_type(name) is bool or option.metavar, f"{name} needs a metavar"
    declared = typer.Option(
        *option.declarations,
        metavar=option.metavar,
        help=option.help,
        rich_help_panel=option.panel,
        show_default=False,
        hidden=hidden,
        envvar=list(variables(name)) or None,
        show_envvar=shows_variable,
        parser=functools.partial(_number, name) if base_type(name) is int else None,
        autocompletion=_COMPLETIONS.get(name),
    )
    # Typer knows no tuple of any length
    kind = list[str] if base_type(name) is tuple else kind
    return _keyword(name, Annotated[kind, declared], getattr(Settings(), name))


def _number(name: str, given: object) -> int:
    """The value of a setting that is a number. Raises UsageError."""
    number = number_in(name, str(given))
    if number is None or not accepts(name, number):
        flag = options()[name][1].declarations[0]
        if not any(word.partition("=")[0] == flag for word in sys.argv):
            # the value comes from a variable, not from the command line
            flag = next((one for one in variables(name) if os.environ.get(one) == str(given)), flag)
        raise UsageError(f"{flag} takes {type_in_words(name)}; “{str(given)[:40]}” is not one.")
    return number


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
    if "pass_env" in values:
        values["pass_env"] = tuple(values["pass_env"])
    settings = Settings(**values, agent_args=call.agent_args, sources=sources)
    if call.asked != Asked() and "agent" in names:
        from cclocal.planning.choose import choose_agent

        settings = replace(settings, agent_args=(*choose_agent(settings).arguments(call.asked), *call.agent_args))
    if settings.pass_env:
        from cclocal.command import refusal
        from cclocal.planning.choose import choose_agent

        forbidden = choose_agent(settings).FORBIDDEN
        for variable in settings.pass_env:
            if reason := refusal(variable, forbidden):
                raise UsageError(f"--pass-env: {reason}.{settings.origin('pass_env')}")
    return settings


def _memory_check_is_off(call: Call, sources: Mapping[str, str]) -> bool:
    """Whether CCLOCAL_NO_MEMCHECK switches the check off; an option that asks for it beats the variable."""
    value = call.env.environ.get("CCLOCAL_NO_MEMCHECK", "").strip().lower()
    is_typed = "command line" in (sources.get("mem_check"), sources.get("safe"))
    return not is_typed and value not in ("", "0", "false", "no", "off")


def if_typed(settings: Settings, *names: str) -> Settings:
    """The settings with these kept only if they were typed: on a server that runs already, a lasting default of the
    window or the model does not count, because it is about servers that cclocal starts.
    """
    dropped: dict[str, Any] = {name: None for name in names if settings.sources.get(name) != "command line"}
    return replace(settings, **dropped)


def typed(settings: Settings, *scopes: str) -> list[str]:
    """The flags that stand on the command line, of the settings of these scopes; of a pair, the one for its value."""
    return [
        f"--{flags(name)[-1 if getattr(settings, name) is False else 0]}"
        for name, (_, option) in options().items()
        if option.scope in scopes and settings.sources.get(name) == "command line"
    ]


# -- completion: Typer keeps what begins as the word that is being typed


def complete_model(incomplete: str) -> list[str]:
    """Names of models, and GGUF files and folders that begin so."""
    place = "".join(incomplete.rpartition("/")[:2])
    found = sorted(Path(place or ".").expanduser().glob("[!.]*")) if incomplete else []
    return [
        *config_file.flags(packaged("models.toml")),
        *(
            f"{place}{path.name}/" if path.is_dir() else f"{place}{path.name}"
            for path in found
            if path.suffix == ".gguf" or path.is_dir()
        ),
    ]


def _choices(name: str) -> Callable[[], list[str]]:
    """Completes with the words that a setting takes, which are imported only then."""

    def words() -> list[str]:
        from cclocal.planning.choose import CHOICES

        return list(CHOICES[name])

    return words


_COMPLETIONS: Mapping[str, Callable[..., list[str]]] = {
    "model": complete_model,
    **{name: _choices(name) for name in ("agent", "backend", "kv", "sandbox")},
    "pass_env": lambda: sorted(os.environ),
    "key_env": lambda: sorted(os.environ),
}
