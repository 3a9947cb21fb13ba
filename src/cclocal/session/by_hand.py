"""`cclocal env PORT`: what a plain agent, an editor or a script needs to use a server that `--server` holds."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cclocal.agents import Agent
from cclocal.agents.session import AgentSession, ByHand
from cclocal.backends import BACKENDS
from cclocal.command import Endpoint
from cclocal.errors import UsageError
from cclocal.paths import Env, read_table
from cclocal.planning.choose import choose_agent
from cclocal.server.registry import SessionRecord
from cclocal.session.servers import ENDPOINT, serving
from cclocal.settings import Settings

#: The arguments of `cclocal env` that print the key alone.
KEY_OPTION = "--key"


@dataclass(frozen=True, slots=True)
class Handed:
    """A server, and how an agent uses it without cclocal."""

    model: str
    port: str
    endpoint: Endpoint
    agent: Agent
    how: ByHand


def hand(port: int, settings: Settings, env: Env) -> Handed:
    """Raises UsageError if no server of ours listens there, or if it cannot speak the agent's API."""
    record = next((one for one in serving(env) if one.port == str(port)), None)
    if record is None:
        raise UsageError(f"No server of cclocal's listens on port {port}.", hint="cclocal ps")
    served, agent = read_table(record.folder / ENDPOINT), choose_agent(settings)
    check_wire(record, agent)
    endpoint = Endpoint(served["url"], served["key"], served["model"])
    session = AgentSession(
        found=None,
        context_tokens=served["context_tokens"],
        out_tokens=served["out_tokens"],
        cwd=Path.cwd(),
        home=env.folders.data / agent.NAME,
    )
    return Handed(record.model, record.port, endpoint, agent, agent.by_hand(session, endpoint))


def check_wire(record: SessionRecord, agent: Agent) -> None:
    """Raises UsageError if the backend of a running server does not speak an agent's API."""
    backend = BACKENDS.get(str(record.facts.get("backend")))
    if backend and agent.WIRE not in backend.WIRES:
        raise UsageError(
            f"{agent.TITLE} needs an API that {backend.NAME}, which holds {record.model}, does not speak.",
            hint="cclocal --server --backend llama-server",
        )


def shell_lines(handed: Handed, *, show_key: bool) -> Iterator[str]:
    """Lines for a shell: eval "$(cclocal env PORT)". Without the key a command stands in its place."""
    command = f"cclocal env {handed.port}"
    yield f'# {handed.model}. In a shell: eval "$({command} --agent {handed.agent.NAME})"'
    for name, value in handed.how.env.items():
        is_key = value == handed.endpoint.key
        shown = f'"$({command} {KEY_OPTION})"' if is_key and not show_key else shlex.quote(value)
        yield f"export {name}={shown}"
    yield from handed.how.lines
    yield f"# then: {shlex.join(handed.how.command)}"


def as_json(handed: Handed, *, show_key: bool) -> dict[str, Any]:
    """The same for scripts."""
    env = {name: _hidden(value, handed, show_key=show_key) for name, value in handed.how.env.items()}
    url = {"url": handed.endpoint.url, "model": handed.endpoint.model, "api": handed.agent.WIRE}
    return {**url, "env": env, "command": list(handed.how.command)}


def vscode(handed: Handed, *, show_key: bool) -> str:
    """Workspace settings of VS Code for Claude Code's extension (.vscode/settings.json).

    Source: public reports about the extension's own settings; not run here, and some versions ignore them.
    """
    variables = [
        {"name": name, "value": _hidden(value, handed, show_key=show_key)} for name, value in handed.how.env.items()
    ]
    settings: Mapping[str, Any] = {
        "claudeCode.environmentVariables": variables,
        "claudeCode.selectedModel": handed.endpoint.model,
        "claudeCode.disableLoginPrompt": True,
    }
    return json.dumps(settings, indent=2)


def _hidden(value: str, handed: Handed, *, show_key: bool) -> str:
    return "<key: --show-key>" if value == handed.endpoint.key and not show_key else value
