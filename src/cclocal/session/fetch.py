"""Steps of a launch that use the network: a model's file names and header from the hub, and the download."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cclocal import tiny
from cclocal.errors import CclocalError, UsageError
from cclocal.facts import Facts
from cclocal.memory.gguf import BadHeaderError
from cclocal.models import download
from cclocal.models.catalog import Variant
from cclocal.models.peek import peek
from cclocal.models.repo_files import ask_hub, listed_bytes, refuse_unnamed
from cclocal.paths import Env
from cclocal.planning.choose import model_path
from cclocal.planning.plan import Plan
from cclocal.ui.console import busy, say
from cclocal.ui.progress import download_bar

if TYPE_CHECKING:
    from cclocal.session.launch import Launch


def look_at_hub(now: Launch) -> Launch:
    """With the names of the model's files and its header, where they are not on disk: megabytes before gigabytes."""
    now = with_file_names(now)
    plan = now.plan()
    is_elsewhere = plan.fetch.repo or (plan.fetch.tag and plan.fit is None)
    if not is_elsewhere or not now.settings.mem_check:
        return now
    return replace(now, facts=with_header(now.facts, plan.model.name, plan.variant))


def with_file_names(now: Launch) -> Launch:
    """With the names of the files and a projector's size, where only the repository was known."""
    plan = now.plan()
    repo, projector = plan.fetch.repo, plan.variant.mmproj
    is_known = plan.fetch.files and (not projector or listed_bytes(repo or "", projector, now.env))
    if not repo or is_known:
        return now
    try:
        with busy(f"{plan.model.name}: asking the hub for its files"):
            ask_hub(repo, now.env)
    except CclocalError:
        if not plan.fetch.files:
            raise
        # only a size was missing; the download reports what is wrong
        return now
    now = now.with_model_files()
    plan = now.plan()
    if plan.fetch.repo and not plan.fetch.files:
        refuse_unnamed(plan.variant, now.env)
    return now


def with_header(facts: Facts, name: str, variant: Variant) -> Facts:
    """The facts with what the model's header says, read from elsewhere. Failures are left to the download to report.

    Raises UsageError for a model that must not be used.
    """
    try:
        with busy(f"{name}: looking at its header"):
            header = peek(variant, facts.env)
    except UsageError:
        raise
    except (CclocalError, BadHeaderError):
        return facts
    return facts.with_shape(model_path(variant, facts), header.shape)


def fetch(now: Launch) -> Launch:
    """Put the model's files on disk, and look at them."""
    plan = now.plan()
    if not plan.fetch.repo and not plan.fetch.builtin:
        return now
    _download(plan, now.env)
    return now.with_model_files()


def _download(plan: Plan, env: Env) -> None:
    if plan.fetch.builtin:
        build = tiny.build_mlx if plan.variant.is_folder else tiny.build
        build(env.folders.cache)
    elif plan.fetch.repo:
        with download_bar(plan.model.name) as bar:
            download.fetch(plan.fetch.repo, plan.fetch.files, env.environ, bar)


def fetch_only(now: Launch) -> None:
    """`cclocal fetch`: download a model, and no more. Raises UsageError for a model that Ollama fetches."""
    plan = now.plan()
    if plan.fetch.tag:
        raise UsageError(f"{plan.fetch.tag} is fetched by Ollama.", hint=f"ollama pull {plan.fetch.tag}")
    now = with_file_names(now)
    plan = now.plan()
    is_here = not plan.fetch.repo and not plan.fetch.builtin
    _download(plan, now.env)
    say(f"{plan.model.name} is on this disk{' already' if is_here else ''}.")
