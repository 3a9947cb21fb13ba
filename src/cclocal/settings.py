"""The settings of a launch: the only table of options.

A field of `Settings` with an `Option` is a command-line option, an environment variable, a key of config.toml with its
type and range, a row of docs/reference.md and a line of `--dry-run`. None of these is written down anywhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Annotated, Any, Literal, get_args, get_type_hints

#: More digits make no number of anything.
_MOST_DIGITS = 15
#: The shortest reply that --out-tokens allows.
LEAST_OUT_TOKENS = 256
#: Slots with --subagents: the conversation's own, and two for its subagents.
SUBAGENT_SLOTS = 3
#: The levels of --sandbox.
STRICT, BASH, OFF = "strict", "bash", "off"
SANDBOXES = (STRICT, BASH, OFF)
#: An agent's own prompt with its tools, the short one of --lean, that of --no-tools.
Prompt = Literal["full", "lean", "chat"]
#: Which pictures a model sees: none, those in the user's messages, those in results of tools too.
Sight = Literal["none", "messages", "all"]
#: Those of a model that sees.
SEES: tuple[Sight, ...] = ("messages", "all")
#: The kinds of --speculate.
Speculation = Literal["off", "ngram-simple", "ngram-mod", "mtp"]
SPECULATIONS: tuple[Speculation, ...] = get_args(Speculation)
MTP: Speculation = "mtp"

MODELS, SESSION, MEMORY, OTHER = "Models", "The session", "Memory", "Another server"


@dataclass(frozen=True, slots=True)
class Option:
    """How one setting is given.

    `flags` as Typer takes them, with a metavar: "--ctx TOKENS", "--lean/--full", "--ubatch --prefill-step TOKENS".
    `scope`: "server" settings shape a server that cclocal starts, so they are refused when a running server is used;
    "agent" settings shape the agent; "window" is both. `lasting`: it has a variable CCLOCAL_<NAME> and may stand in
    config.toml; "environment": only the variable. `variables` are further names of that variable. `short`: its words on
    the first help page, which has only the options with such words.
    """

    flags: str
    help: str
    panel: str = SESSION
    scope: Literal["server", "agent", "window", ""] = ""
    at_least: int | None = None
    at_most: int | None = None
    lasting: bool | Literal["environment"] = True
    variables: tuple[str, ...] = ()
    short: str = ""

    @property
    def metavar(self) -> str:
        """The name of its value; empty for a switch."""
        return " ".join(word for word in self.flags.split() if not word.startswith("-"))

    @property
    def declarations(self) -> tuple[str, ...]:
        """Its flags as Typer takes them."""
        return tuple(word for word in self.flags.split() if word.startswith("-"))


Server = partial(Option, scope="server")
Memory = partial(Option, scope="server", panel=MEMORY)
ForAgent = partial(Option, scope="agent")
_MODEL = "A model of the catalog, a GGUF file, an MLX folder, owner/name[:QUANT] of the hub, or an Ollama tag."
_PARSER = "vllm-mlx: how the model writes tool calls. [dim]default: from the catalog or its chat template[/]"
_VISION = "Load a model's projector, with which it sees pictures; --no-vision saves the memory. [dim]default: on[/]"
_PICTURE = (
    "Most tokens of one picture; a larger one is scaled down. [dim]default: the model's own, less on a processor[/]"
)
_TRUST = "Load this model although its files could run code; a message names the words. Repeatable."
_ALSO = "Another model that /model changes to within the session; they take turns in memory. Repeatable."
_SERVER = "Start only the server, until Ctrl-C; cclocal attach PORT uses it from another terminal."
_AGENT = "The coding agent: claude (default), codex, pi."
_OUT_TOKENS = "Longest reply; a file written in one go must fit into it. [dim]default: 8192[/]"
_PORT = "Port of the server. [dim]default: any free one; with --server the model's own[/]"
_EXTRA_VARIABLE = "Give the agent this variable too; repeatable. [dim]In CCLOCAL_PASS_ENV separated by spaces.[/]"
_THINK = "Let the model think before it answers: slower, sometimes better. [dim]default: off[/]"
_UBATCH = "Micro-batch (MLX: prefill step): larger reads prompts faster, needs more memory. [dim]default: 512 (2048)[/]"
_SPECULATE = (
    "Guess tokens and check several at once: ngram-simple, ngram-mod (from the text so far), mtp (by the model's own "
    "head) or off. [dim]default: what cclocal check found to be the fastest here, else off[/]"
)
_WIRED = "Mac: raise the GPU's memory limit to this for the session (needs sudo)."
_URL = "Use the server at this address and start none. --model selects one of its models."
_SSH = (
    "Use a server on that machine, through the system's ssh; --url is its address there. "
    "[dim]default: http://127.0.0.1:8080[/]"
)
_CA = "Trust this authority's certificate (PEM) for --url https://, beside those that the system trusts."
_WAIT = "Minutes that a request waits for that server while it does not answer. [dim]default: 0, the agent is told[/]"
_INSECURE = "Allow --url http:// to another machine, although it is not encrypted."
_RPC = "Machines that hold a part of the model, by llama.cpp's RPC; see docs/scale.md first: it is not encrypted."
_BACKEND = "What serves the model: llama-server, vllm-mlx, ollama. [dim]default: by machine and model[/]"
_LLAMA = "This llama-server, or “wheel” for the xllamacpp package's. [dim]default: the one on PATH, else the wheel[/]"
_CHECK = "Ask about a model that does not fit. [dim]CCLOCAL_NO_MEMCHECK=1 switches it off[/]"
_NUDGE = "Send the agent on once when a reply announces a step and takes none. [dim]default: on; Claude Code only[/]"
_CHILDREN = "What the agent's commands left in the background goes on after the session. [dim]default: it is ended[/]"
_SUBAGENTS = (
    "Claude Code's Agent tool; the conversation and two subagents get a slot each, with the whole window. "
    "[dim]default: off[/]"
)
_SANDBOX = (
    "What the agent reaches: strict (this folder and the model only), bash (its own sandbox, for commands) or off. "
    "[dim]default: strict; on a Mac bash[/]"
)
_ALLOW_WRITE = "At strict: the agent writes here too, or may change this read-only name of the folder; repeatable."
_ALLOW_READ = "At strict: the agent reads this too, although it is in a hidden folder; repeatable."
_ALLOW_NET = "At strict: the agent reaches this too, by a proxy; or a set: pypi, npm, crates, go, github; repeatable."
_WEB = "Claude Code's WebFetch, and at strict every public https server. [dim]default: off[/]"
_MCP = "Give the agent the MCP servers of this file (mcpServers in JSON); repeatable."
_RECEIPT = "Say at the end what the agent connected to, as the sandbox knows it. [dim]cclocal stats has it too[/]"
_PROTECT = "At strict: this name in the folder and its repository is read-only too, as CLAUDE.md is; repeatable."
_YES = "Start without asking: a model that failed its check, or in your home."
_LEAN = "A short system prompt and four tools, or the agent's own. [dim]default: full[/]"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user asked for. None means not given: the catalog or the plan decides.

    `sources` says where each setting came from: "command line", "environment" or "user file PATH:LINE".
    """

    model: Annotated[str | None, Option("--model ID|FILE|REPO|TAG", _MODEL, MODELS, short="any other model")] = None
    quant: Annotated[
        str | None, Server("--quant NAME", "Another quantisation, such as Q8_0.", MODELS, lasting=False)
    ] = None
    parser: Annotated[str | None, Server("--parser NAME", _PARSER, MODELS, lasting=False)] = None
    vision: Annotated[bool, Server("--vision/--no-vision", _VISION, MODELS)] = True
    trust_model: Annotated[tuple[str, ...], Server("--trust-model REPO@COMMIT", _TRUST, MODELS)] = ()
    also: Annotated[tuple[str, ...], Server("--also MODEL", _ALSO, MODELS)] = ()
    server: Annotated[bool, Server("--server", _SERVER, lasting=False, short="only the server")] = False
    agent: Annotated[str | None, ForAgent("--agent NAME", _AGENT, short="claude, codex, pi")] = None
    ctx: Annotated[
        int | None,
        Option("--ctx TOKENS", "Context window.", scope="window", at_least=1, short="context window"),
    ] = None
    out_tokens: Annotated[
        int | None, ForAgent("--out-tokens TOKENS", _OUT_TOKENS, at_least=LEAST_OUT_TOKENS, short="longest reply")
    ] = None
    port: Annotated[int | None, Server("--port N", _PORT, at_least=1, at_most=65535, short="the server's port")] = None
    pass_env: Annotated[tuple[str, ...], ForAgent("--pass-env NAME", _EXTRA_VARIABLE, short="pass a variable")] = ()
    think: Annotated[bool, Server("--think/--no-think", _THINK, short="think first")] = False
    no_tools: Annotated[
        bool, ForAgent("--no-tools", "Chat only, for models that cannot call tools.", lasting=False)
    ] = False
    kv: Annotated[
        str | None, Memory("--kv TYPE", "KV cache: f16 (default), q8_0, q5_1, q4_0.", short="KV cache type")
    ] = None
    slots: Annotated[
        int | None, Memory("--slots N", "Conversations at once; they share the context.", at_least=1, at_most=64)
    ] = None
    speculate: Annotated[str | None, Server("--speculate KIND", _SPECULATE)] = None
    ubatch: Annotated[int | None, Memory("--ubatch --prefill-step TOKENS", _UBATCH, at_least=1, at_most=65536)] = None
    picture_tokens: Annotated[int | None, Memory("--picture-tokens TOKENS", _PICTURE, at_least=128)] = None
    gpu_layers: Annotated[int | None, Memory("--gpu-layers N", "Layers to put on the GPU.", at_least=0)] = None
    cpu_moe: Annotated[int | None, Memory("--cpu-moe N", "Layers whose experts stay on the CPU.", at_least=0)] = None
    wired_limit: Annotated[int | None, Memory("--wired-limit MIB", _WIRED, at_least=1)] = None
    url: Annotated[str | None, Option("--url URL", _URL, OTHER, lasting="environment", short="another server")] = None
    key_env: Annotated[
        str | None, Option("--key-env NAME", "Variable with that server's key.", OTHER, lasting=False)
    ] = None
    ssh: Annotated[str | None, Option("--ssh USER@BOX[:PORT]", _SSH, OTHER, lasting=False)] = None
    ca: Annotated[str | None, Option("--ca FILE", _CA, OTHER, lasting="environment")] = None
    wait: Annotated[
        int | None, Option("--wait MINUTES", _WAIT, OTHER, lasting="environment", at_least=0, at_most=1440)
    ] = None
    insecure_http: Annotated[bool, Option("--insecure-http", _INSECURE, OTHER, lasting=False)] = False
    backend: Annotated[str | None, Server("--backend NAME", _BACKEND, short="what serves it")] = None
    llama_server: Annotated[str | None, Server("--llama-server PATH|wheel", _LLAMA)] = None
    rpc: Annotated[str | None, Server("--rpc HOST:PORT,…", _RPC, lasting=False)] = None
    safe: Annotated[
        bool, Memory("--safe/--no-safe", "Always show the plan and ask.", variables=("CCLOCAL_FORCE_MEMCHECK",))
    ] = False
    mem_check: Annotated[bool, Option("--mem-check/--no-mem-check", _CHECK, MEMORY)] = True
    cold: Annotated[bool, Option("--cold/--no-cold", "Neither restore nor save the prompt's KV cache.")] = False
    lean: Annotated[bool | None, ForAgent("--lean/--full", _LEAN, short="a short prompt")] = None
    subagents: Annotated[bool, ForAgent("--subagents/--no-subagents", _SUBAGENTS)] = False
    sandbox: Annotated[str | None, ForAgent("--sandbox LEVEL", _SANDBOX, short="strict, bash, off")] = None
    allow_write: Annotated[tuple[str, ...], ForAgent("--allow-write PATH", _ALLOW_WRITE)] = ()
    allow_read: Annotated[tuple[str, ...], ForAgent("--allow-read PATH", _ALLOW_READ)] = ()
    allow_net: Annotated[tuple[str, ...], ForAgent("--allow-net HOST:PORT", _ALLOW_NET)] = ()
    web: Annotated[bool, ForAgent("--web/--no-web", _WEB)] = False
    mcp: Annotated[tuple[str, ...], ForAgent("--mcp --mcp-config FILE", _MCP)] = ()
    protect: Annotated[tuple[str, ...], ForAgent("--protect NAME", _PROTECT)] = ()
    nudge: Annotated[bool, ForAgent("--nudge/--no-nudge", _NUDGE)] = True
    receipt: Annotated[bool, ForAgent("--receipt/--no-receipt", _RECEIPT)] = False
    keep_children: Annotated[bool, ForAgent("--keep-children/--end-children", _CHILDREN)] = False
    yes: Annotated[bool, ForAgent("--yes", _YES, lasting=False)] = False
    #: not an option: host memory for the prompts of idle slots, which a remedy of the memory plan may set to 0
    cache_ram_mib: int | None = None
    agent_args: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def prompt(self) -> Prompt:
        """Which of an agent's prompts is sent."""
        return "chat" if self.no_tools else "lean" if self.lean else "full"

    def changed(self, changes: Mapping[str, Any], source: str) -> Settings:
        """The same settings with some of them changed, and who changed them. A None is only taken for `wired_limit`."""
        known = {name: value for name, value in changes.items() if value is not None or name == "wired_limit"}
        return replace(self, **known, sources={**self.sources, **dict.fromkeys(known, source)})

    def origin(self, name: str) -> str:
        """Where a setting was made, as the end of a message about it; nothing if it was typed."""
        source = self.sources.get(name, "")
        return f" It was set in the {source}." if source.startswith(("user file", "environment")) else ""


@cache
def options() -> Mapping[str, tuple[Any, Option]]:
    """Every setting that is an option: name → (its type, its Option), in the order of the fields."""
    hints = get_type_hints(Settings, include_extras=True)
    return {
        name: (get_args(hint)[0], found)
        for name, hint in hints.items()
        for found in get_args(hint)[1:]
        if isinstance(found, Option)
    }


def lasting() -> tuple[str, ...]:
    """The settings that may stand in config.toml under [defaults]."""
    return tuple(name for name, (_, option) in options().items() if option.lasting is True)


def variables(name: str) -> tuple[str, ...]:
    """The environment variables of a setting, the main one first."""
    option = options()[name][1]
    return (f"CCLOCAL_{name.upper()}", *option.variables) if option.lasting else ()


def flags(name: str) -> tuple[str, ...]:
    """The flags of a setting without their dashes: lean, full."""
    return tuple(flag.removeprefix("--") for part in options()[name][1].declarations for flag in part.split("/"))


def base_type(name: str) -> type:
    """int, str, bool or tuple: the type of a setting without its None."""
    kind = options()[name][0]
    return tuple if kind == tuple[str, ...] else (get_args(kind) or (kind,))[0]


def type_in_words(name: str) -> str:
    """What a setting may be, for messages and docs."""
    option = options()[name][1]
    words = {int: "a whole number", str: "a text", bool: "true or false", tuple: "a list of texts"}[base_type(name)]
    if option.at_least is None:
        return words
    words = f"{words} of tokens, such as 65536 or 64k" if option.metavar == "TOKENS" else words
    return f"{words}, {option.at_least} " + ("or more" if option.at_most is None else f"to {option.at_most}")


def number_in(name: str, text: str) -> int | None:
    """The number that a text means for a setting: of tokens also 64k, in units of 1,024. None if it is none."""
    text = text.strip().lower()
    units = {"k": 1024, "m": 1024**2} if options()[name][1].metavar == "TOKENS" else {}
    unit = units.get(text[-1:], 1)
    digits = text[: -1 if unit > 1 else None].replace("_", "")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= _MOST_DIGITS):
        return None
    return int(digits) * unit


def accepts(name: str, value: object) -> bool:
    """Whether a value from config.toml has the type and range of a setting."""
    kind, option = base_type(name), options()[name][1]
    if kind is tuple:
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        return False
    return not isinstance(value, int) or (
        (option.at_least is None or value >= option.at_least) and (option.at_most is None or value <= option.at_most)
    )
