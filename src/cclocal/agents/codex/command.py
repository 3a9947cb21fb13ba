"""The command that starts Codex: its overrides, its catalog of one model, its variables, its use of the window."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cclocal.agents.session import AgentSession, ByHand, ConfigDir, Window
from cclocal.command import AGENT_NAMES, AGENT_PREFIXES, SHOWN, Binding, Command, CommandAndFiles, Endpoint
from cclocal.settings import SEES, STRICT, Prompt

PROGRAM = "codex"
#: Our server in its configuration, and the variable that holds the key.
_PROVIDER, _KEY = "cclocal", "CCLOCAL_KEY"
_CATALOG = "codex-models.json"
#: Replaces its own instructions of 17 kB. Files are written by the shell: there is no other tool.
INSTRUCTIONS = (
    "You are a coding agent in the user's terminal. Do what is asked with the shell, no more and no less: look before "
    "you act (ls, grep, git), read a file before you change it, and run what you changed. Create and change files with "
    "shell commands; write a file longer than about 150 lines in parts. Paths are relative to the working directory. "
    "Never make up a result. If something fails, say so and try another way. Answer in a few plain sentences."
)
#: What it sends besides, or asks other servers; those that a version does not have are left out.
_FEATURES_OFF = (
    """apps plugins remote_plugin multi_agent goals image_generation browser_use browser_use_external computer_use
    in_app_browser tool_suggest skill_search hooks shell_snapshot workspace_dependencies guardian_approval
    deferred_tool_world_state view_image unbounded_connection_retries"""
).split()
#: Longer than any prefill.
_TIMEOUT_MS = 1_800_000
#: The longest result of a command, in tokens.
RESULT_TOKENS = 4000
#: Its fixed prompt and a few turns.
LEAST_PROMPT_TOKENS = 4096
#: What it keeps of the user's messages when it compacts (0.169.0: seen to compact again and again with less).
KEPT_TOKENS = 20_000
#: What the request for a summary adds to the conversation that it summarises.
_COMPACT_PROMPT_TOKENS = 1024
#: A proxy on which nothing listens: it stops the one call to another server that no switch stops.
_NO_PROXY_THERE = "http://127.0.0.1:9"
#: Subcommands that hold a conversation without the terminal; they work outside of repositories only if told so.
EXEC = frozenset(("exec", "e"))
#: Subcommands that hold no conversation.
COMMANDS = frozenset(
    """review login logout mcp plugin app-server remote-control completion update doctor sandbox debug apply a archive
    delete migrate-rollouts migrate-nfs-db unarchive cloud exec-server features help agents queue""".split()
)


@dataclass(frozen=True, slots=True)
class Context:
    """What was looked up for Codex: the features of this version, and the folders that may be trusted.

    untrusted: a folder with a .codex of its own, which can start programs; then Codex itself asks. sandbox_problem: why
    no command runs in Codex's sandbox here; empty if one did.
    """

    features: frozenset[str] = frozenset()
    untrusted: Path | None = None
    sandbox_problem: str = ""


def context_of(session: AgentSession) -> Context:
    context = session.found.context if session.found else None
    return context if isinstance(context, Context) else Context()


def window(context_tokens: int, out_tokens: int, prompt: Prompt = "full") -> Window:
    """It compacts when so many tokens are used: one more result, the request for a summary and a reply still fit."""
    reserve = out_tokens + RESULT_TOKENS + _COMPACT_PROMPT_TOKENS
    return Window(LEAST_PROMPT_TOKENS + reserve, context_tokens - reserve, RESULT_TOKENS)


def _catalog(session: AgentSession, model: str) -> str:
    """Its list of models: the one that is loaded. Without it Codex goes by a fallback of another size."""
    return json.dumps(
        {
            "models": [
                {
                    "slug": model,
                    "display_name": model,
                    "description": "on this machine",
                    "default_reasoning_level": None,
                    "supported_reasoning_levels": [],
                    "shell_type": "unified_exec",
                    "visibility": "list",
                    "supported_in_api": True,
                    "priority": 0,
                    "availability_nux": None,
                    "upgrade": None,
                    "base_instructions": INSTRUCTIONS,
                    "support_verbosity": False,
                    "default_verbosity": None,
                    "apply_patch_tool_type": None,
                    "truncation_policy": {"mode": "tokens", "limit": RESULT_TOKENS},
                    "supports_parallel_tool_calls": False,
                    "context_window": session.context_tokens,
                    "experimental_supported_tools": [],
                    "input_modalities": ["text", *(["image"] if session.sees in SEES else [])],
                    "supports_reasoning_summaries": False,
                }
            ]
        },
        indent=1,
    )


def _toml(value: object) -> str:
    """A value as TOML writes it in one line. JSON's strings, numbers and lists are TOML's too."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{json.dumps(str(key))}={_toml(one)}" for key, one in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def _overrides(session: AgentSession, endpoint: Endpoint, binding: Binding) -> dict[str, object]:
    provider = {
        "name": _PROVIDER,
        "base_url": f"{endpoint.url}/v1",
        "env_key": _KEY,
        "wire_api": "responses",
        "supports_websockets": False,
        "request_max_retries": 4,
        "stream_max_retries": 5,
        "stream_idle_timeout_ms": _TIMEOUT_MS,
    }
    settings: dict[str, object] = {
        "model_provider": _PROVIDER,
        "model": endpoint.model,
        "model_catalog_json": binding.file(_CATALOG),
        f"model_providers.{_PROVIDER}": provider,
        "model_context_window": session.context_tokens,
        "model_auto_compact_token_limit": window(session.context_tokens, session.out_tokens).compacts_at_tokens,
        # quiet: nothing is asked of or told to other servers
        "web_search": "disabled",
        "analytics.enabled": False,
        "feedback.enabled": False,
        "check_for_update_on_startup": False,
        "history.persistence": "none",
        "otel.exporter": "none",
        "otel.metrics_exporter": "none",
        # commands write in the working folder only, and reach no network; a sandbox cannot be made in one of ours
        "sandbox_mode": "danger-full-access" if session.level == STRICT else "workspace-write",
        "sandbox_workspace_write.exclude_slash_tmp": True,
        "sandbox_workspace_write.exclude_tmpdir_env_var": True,
        # a command never sees the key, nor the proxy that is none
        "shell_environment_policy.exclude": [_KEY, *(() if session.proxied else ("HTTPS_PROXY", "HTTP_PROXY"))],
        # a login shell would reset PATH
        "allow_login_shell": False,
        # one developer message: strict chat templates refuse a second one
        "skills.bundled.enabled": False,
        "skills.include_instructions": False,
        "include_permissions_instructions": False,
        "include_apps_instructions": False,
        "include_collaboration_mode_instructions": False,
        "tools.experimental_request_user_input.enabled": False,
        # without this the terminal has a server of tools inside, and asks for a title
        "mcp_servers.codex_tui": {"command": "true", "enabled": False},
        "tui.show_tooltips": False,
    }
    settings |= {f"mcp_servers.{json.dumps(name)}": server for name, server in session.mcp.items()}
    context = context_of(session)
    if context.untrusted is None:
        settings["projects"] = {str(folder): {"trust_level": "trusted"} for folder in sorted(session.folders)}
    return settings


def by_hand(session: AgentSession, endpoint: Endpoint) -> ByHand:
    """With the provider and the window alone: the user's own configuration stands."""
    wanted = ("model_provider", "model", f"model_providers.{_PROVIDER}", "model_context_window")
    every = _overrides(session, endpoint, SHOWN)
    chosen = [f"{name}={_toml(every[name])}" for name in (*wanted, "model_auto_compact_token_limit", "web_search")]
    return ByHand({_KEY: endpoint.key}, (PROGRAM, *(word for one in chosen for word in ("-c", one))))


def command(session: AgentSession, endpoint: Endpoint, binding: Binding) -> CommandAndFiles:
    overrides = [f"{name}={_toml(value)}" for name, value in _overrides(session, endpoint, binding).items()]
    known = context_of(session).features
    off = [feature for feature in _FEATURES_OFF if feature in known or not session.found]
    argv = (
        program_of(session),
        *(word for override in overrides for word in ("--config", override)),
        *(word for feature in off for word in ("--disable", feature)),
        *_arguments(session.arguments),
    )
    env = {
        "CODEX_HOME": str(session.home),
        # inside it: under another temporary folder it refuses to make the helper of its sandbox
        "TMPDIR": str(session.home / "tmp"),
        _KEY: endpoint.key,
        "HTTPS_PROXY": _NO_PROXY_THERE,
        "HTTP_PROXY": _NO_PROXY_THERE,
        # a proxy would carry the loopback traffic, prompt and key included
        "NO_PROXY": "127.0.0.1,localhost,::1",
    }
    return Command(argv, env, AGENT_NAMES | set(session.passed), AGENT_PREFIXES), {
        _CATALOG: _catalog(session, endpoint.model)
    }


def _arguments(arguments: Sequence[str]) -> tuple[str, ...]:
    first, *others = arguments or ("",)
    anywhere = "--skip-git-repo-check"
    if first in EXEC and anywhere not in others:
        # a folder need not be a repository; given twice, it is an error
        return (first, anywhere, *others)
    return tuple(arguments)


def program_of(session: AgentSession) -> str:
    return str(session.found.path) if session.found else PROGRAM


def config_dir(session: AgentSession) -> ConfigDir:
    return ConfigDir(
        session.home,
        keeps=frozenset("sessions archived_sessions thread-writer-locks".split()),
        renewed=frozenset(
            """tmp log skills shell_snapshots memories cache installation_id version.json models_cache.json .tmp
            .codex-global-state.json internal_storage.json .sandbox_migration""".split()
        ),
        kept_patterns=("*.sqlite*",),
        folders=("tmp",),
    )
