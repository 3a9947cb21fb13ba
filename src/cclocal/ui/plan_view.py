"""A plan as lines for people and as JSON for scripts."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cclocal.planning.plan import Plan
from cclocal.ui.console import output


def show_plan(plan: Plan, environ: Mapping[str, str]) -> None:
    """Print a plan for people."""
    screen = output()
    for line in plan_lines(plan, environ):
        style = "" if line.startswith(" ") or not line else "bold"
        screen.print(line, style=style, soft_wrap=True, markup=False)


def plan_lines(plan: Plan, environ: Mapping[str, str]) -> Iterator[str]:
    """A plan as plain lines; headings start at the margin."""
    engine = plan.engine
    where = f", {', '.join(engine.device_names) or 'CPU only'}" if engine.uses == "listed" else ""
    server, _ = plan.server_command(plan.shown)
    agent, _ = plan.agent_command(plan.shown)
    yield "Model"
    yield f"  {plan.model.name} ({plan.model.id}), {plan.variant.quant}"
    yield f"  fetch: {plan.fetch.in_words}"
    yield "Engine"
    yield f"  {plan.variant.backend}, {engine.title}, version {engine.version}{where}"
    yield "Context"
    yield f"  {plan.context_tokens:,} tokens, replies of at most {plan.out_tokens:,}"
    yield f"  memory: {plan.memory}"
    if plan.wired_limit_mib:
        yield f"  the wired limit is raised to {plan.wired_limit_mib:,} MiB for the session"
    yield "Server"
    yield from _command_lines(server.argv)
    if not plan.settings.server:
        yield "Agent"
        yield from _command_lines(agent.argv)
        yield "  with these variables set:"
        yield from (f"    {name}={quoted(value)}" for name, value in agent.env.items())
        yield from _wrapped("  handed on:", sorted(agent.kept(environ)))
        yield from _wrapped("  removed:", agent.removed(environ))
    if plan.sources:
        yield "Where each setting came from"
        yield from (f"  {name}: {source}" for name, source in sorted(plan.sources.items()))
    if plan.notes:
        yield "Notes"
        yield from (f"  {note}" for note in plan.notes)


def _command_lines(argv: tuple[str, ...]) -> Iterator[str]:
    """A command, one flag with its values per line. Placeholders stay readable."""
    line = "  "
    for word in argv:
        shown = quoted(word)
        if word.startswith("--") and line.strip():
            yield f"{line.rstrip()} \\"
            line = "    "
        line += f"{shown} "
    yield line.rstrip()


def quoted(word: str) -> str:
    """A word quoted for a shell; text in angle brackets such as <free port> needs no quotes."""
    bare = re.sub(r"<[^<>]*>", "x", word)
    return word if shlex.quote(bare) == bare else shlex.quote(word)


def _wrapped(head: str, names: Iterable[str]) -> Iterator[str]:
    text = " ".join(names) or "nothing"
    yield from textwrap.wrap(
        f"{head} {text}",
        110,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
        initial_indent="  ",
    )


def plan_json(plan: Plan, environ: Mapping[str, str]) -> dict[str, Any]:
    """A plan for scripts. Values of the caller's own variables are left out, their names are not."""
    server, server_files = plan.server_command(plan.shown)
    agent, agent_files = plan.agent_command(plan.shown)
    fetch, engine = plan.fetch, plan.engine
    return {
        "model": {"id": plan.model.id, "name": plan.model.name, "variant": plan.variant.quant},
        "backend": {"name": plan.variant.backend, "form": engine.form, "version": engine.version},
        "fetch": {
            "repo": fetch.repo,
            "files": list(fetch.files),
            "size_bytes": fetch.size_bytes,
            "builtin": fetch.builtin,
            "tag": fetch.tag or None,
        },
        "context_tokens": plan.context_tokens,
        "out_tokens": plan.out_tokens,
        "memory": plan.fit.as_json() if plan.fit else None,
        "wired_limit_mib": plan.wired_limit_mib,
        "remedies": [
            {
                "name": remedy.name,
                "words": remedy.words,
                "context_tokens": remedy.fit.config.context_tokens,
                "max_context_tokens": remedy.max_context_tokens,
            }
            for remedy in plan.remedies
            if plan.requested or (plan.fit and plan.fit.verdict != "roomy")
        ],
        "server": {"argv": list(server.argv), "env": dict(server.env)},
        "agent": {
            "name": plan.agent,
            "argv": list(agent.argv),
            "env": dict(agent.env),
            "kept": sorted(agent.kept(environ)),
            "removed": list(agent.removed(environ)),
        },
        "files": {plan.shown.file(file.name): file.content for file in (*server_files, *agent_files)},
        "notes": list(plan.notes),
        "sources": dict(plan.sources),
    }
