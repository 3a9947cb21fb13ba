"""The steps of a launch before the server: each returns what is known and agreed to after it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from cclocal import tiny
from cclocal.discovery.hardware import resident_servers
from cclocal.discovery.look import look_at_model, look_at_other_tags
from cclocal.errors import CclocalError, DoesNotFitError, UsageError
from cclocal.facts import Facts
from cclocal.memory.gguf import BadHeaderError
from cclocal.models import hub, screen
from cclocal.models.catalog import CONFIG, Catalog, Model
from cclocal.models.headers import offers_tools
from cclocal.models.repo_files import ask_hub, listed_bytes, peek, peek_projector, refuse_unnamed
from cclocal.models.resolve import resolve
from cclocal.paths import Env
from cclocal.planning.choose import choose_variant, model_path
from cclocal.planning.make import DOWNLOAD, make_plan
from cclocal.planning.plan import Plan
from cclocal.programs import Answers, is_mac
from cclocal.server import wired_limit
from cclocal.session.servers import settle_port
from cclocal.settings import Settings
from cclocal.ui import memory_view
from cclocal.ui.console import busy, can_ask, confirm, download_bar, say, say_once
from cclocal.units import memory_size


@dataclass(frozen=True, slots=True)
class Launch:
    """What is launched: a model, the settings, the facts so far. Each step returns a new one that knows more."""

    catalog: Catalog
    model: Model
    settings: Settings
    facts: Facts

    @property
    def env(self) -> Env:
        return self.facts.env

    def plan(self) -> Plan:
        """The plan from what is known now."""
        return make_plan(self.model, self.settings, self.facts)

    def with_model_files(self) -> Launch:
        """The model that the settings name, and what is on disk of it. The machine is not looked at again."""
        word = self.settings.model or self.catalog.default
        model = resolve(self.catalog, word, self.settings.backend, self.env)
        variant = choose_variant(model, self.settings, self.facts)[0]
        facts = look_at_other_tags(look_at_model(self.facts, model, variant), variant)
        return replace(self, model=model, facts=facts)


def prepare(settings: Settings, catalog: Catalog, facts: Facts) -> Launch:
    """What is launched, with what is on disk of the model."""
    return Launch(catalog, catalog.find(catalog.default), settings, facts).with_model_files()


# -- the network ------------------------------------------------------------------------------------------------


def look_at_hub(now: Launch) -> Launch:
    """With the names of the model's files and its header, where they are not on disk: megabytes before gigabytes.

    Failures are left to the download to report. Raises UsageError for a model that must not be used.
    """
    now = _with_projector(_with_file_names(now))
    plan = now.plan()
    is_elsewhere = (plan.fetch.repo and plan.fetch.projector != "alone") or (plan.fetch.tag and plan.fit is None)
    if not is_elsewhere or not now.settings.mem_check:
        return now
    try:
        with busy(f"{plan.model.name}: looking at its header"):
            header = peek(plan.variant, now.env)
    except UsageError:
        raise
    except (CclocalError, BadHeaderError):
        return now
    if found := screen.of_config(CONFIG, header.config):
        commit = plan.variant.revision or hub.commit_of(plan.variant.repo or "")
        screen.refuse(found, plan.variant.source, commit, now.settings.trust_model)
    path = model_path(plan.variant, now.facts)
    has_template = plan.variant.repo and not plan.variant.is_folder
    is_toolless = bool(has_template) and not offers_tools(header.template)
    return replace(now, facts=now.facts.with_shape(path, header.shape, is_toolless=is_toolless))


def _with_projector(now: Launch) -> Launch:
    """With the header of a projector that is to be downloaded. Failures are left to the download to report."""
    plan = now.plan()
    name = plan.variant.mmproj or ""
    if name not in plan.fetch.files or not now.settings.mem_check:
        return now
    try:
        with busy(f"{plan.model.name}: looking at its projector"):
            found = peek_projector(plan.variant)
    except (CclocalError, BadHeaderError):
        return now
    return replace(now, facts=replace(now.facts, projectors={name: found}))


def _with_file_names(now: Launch) -> Launch:
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
    if projector and not plan.variant.mmproj:
        say(f"{repo} has no projector (mmproj) now, so {plan.model.name} sees no pictures.", "yellow")
    if plan.fetch.repo and not plan.fetch.files:
        refuse_unnamed(plan.variant, now.env)
    return now


def fetch(now: Launch) -> Launch:
    """With the model's files on disk. A projector that cannot be had is left out: the model works without it."""
    plan = now.plan()
    try:
        return now.with_model_files() if _fetch(plan, now.env) else now
    except CclocalError as error:
        if plan.fetch.projector != "alone":
            raise
        say(f"{error.message} Without its projector {plan.model.name} sees no pictures in this session.", "yellow")
        return replace(now, settings=now.settings.changed({"vision": False}, DOWNLOAD)).with_model_files()


def refuse_toolless(now: Launch) -> None:
    """Raises UsageError for an agent with tools on a model whose chat template knows none: it would never call one."""
    plan = now.plan()
    if plan.is_toolless and plan.session.tools and not plan.settings.server:
        raise UsageError(
            f"The chat template of {plan.model.name} knows no tools, so the model would never see the agent's.",
            hint="--no-tools to chat with it, or chat_template_file of its variant in config.toml",
        )


def refuse_unsafe(now: Launch) -> None:
    """Raises UnsafeModelError (40) if the model's files could run code, or are not those that the catalog pins."""
    plan, answers = now.plan(), Answers(now.env.folders.cache / "probes.json")
    if plan.variant.builtin:
        return
    with busy(f"{plan.model.name}: looking at its files"):
        screen.refuse_unsafe(plan.variant, model_path(plan.variant, now.facts), now.settings.trust_model, now.env)
        screen.refuse_others(plan.variant, answers, now.env)
    answers.save()


def _fetch(plan: Plan, env: Env) -> bool:
    """Put the model's files on disk. Returns False if they are there already."""
    if plan.fetch.builtin:
        tiny.build(env.folders.cache, name=plan.fetch.builtin, is_mlx=plan.variant.is_folder)
    elif plan.fetch.repo:
        with download_bar(plan.model.name) as bar:
            hub.fetch(plan.fetch.repo, plan.fetch.files, env.environ, bar, plan.variant.revision)
    else:
        return False
    return True


def fetch_only(now: Launch) -> None:
    """`cclocal fetch`: download a model, and no more. Raises UsageError for a model that Ollama fetches."""
    plan = now.plan()
    if plan.fetch.tag:
        raise UsageError(f"{plan.fetch.tag} is fetched by Ollama.", hint=f"ollama pull {plan.fetch.tag}")
    now = _with_file_names(now)
    is_new = _fetch(now.plan(), now.env)
    say(f"{now.model.name} is on this disk{'' if is_new else ' already'}.")


# -- memory -----------------------------------------------------------------------------------------------------


def settle_memory(now: Launch, *, safe: bool) -> Launch:
    """Say what the plan needs, and ask what to do if that is too much or hardly fits (if `safe`, in any case).

    The answer is a change of the settings, or another model. Raises DoesNotFitError if nothing fits and there is no
    terminal to ask on, UserQuit or KeyboardInterrupt if the user quits.
    """
    plan = now.plan()
    requested = plan.requested or plan.fit
    if not now.settings.mem_check or requested is None:
        if now.settings.mem_check and not plan.fetch.repo:
            say(f"{plan.model.name}: the memory that it needs is unknown.", "yellow")
        if safe and not confirm("Start it?"):
            raise KeyboardInterrupt
        return now
    if requested.verdict in ("roomy", "unknown") and not safe:
        say_once(f"{plan.model.name} {plan.memory}.", "dim" if requested.verdict == "roomy" else "yellow")
        return now
    if not can_ask():
        refuse_unfitting(plan)
        if plan.requested is None:
            say(f"{plan.model.name} {plan.memory}.")
        return now
    servers = resident_servers() if requested.verdict != "roomy" else []
    remedy = memory_view.ask(plan.model.name, plan, servers)
    changes = dict(remedy.changes) if remedy else {"mem_check": False}
    now = replace(now, settings=now.settings.changed(changes, "memory menu"))
    if "model" not in changes:
        return now
    # these were given for the other model
    quant = changes.get("quant")
    kept = replace(now.settings, quant=str(quant) if quant else None, parser=None)
    now = replace(now, settings=kept).with_model_files()
    now = replace(now, settings=settle_port(now.settings, now.plan().port, now.env))
    return look_at_hub(now)


def refuse_unfitting(plan: Plan) -> None:
    """Raises DoesNotFitError for a model that does not fit as planned."""
    if plan.settings.mem_check and plan.fit is not None and plan.fit.verdict == "too_big":
        servers = [f"{name} (pid {pid}) holds {memory_size(held)}" for name, pid, held in resident_servers()]
        raise DoesNotFitError(
            f"{plan.model.name} {plan.memory}.",
            cause=[*(one.words for one in plan.remedies), *servers],
            hint="a smaller model or a smaller --ctx; --no-mem-check starts it anyway",
        )


def hold_raised_limit(env: Env) -> int | None:
    """On a Mac: the descriptor that keeps the limit that another session raised, if one did."""
    if not is_mac(env.environ):
        return None
    held, line = wired_limit.join(env)
    if line:
        say(f"The wired limit is still raised, and no process is left to restore it. To restore it: {line}", "yellow")
    return held


def raise_limit(now: Launch, held: int | None) -> tuple[Launch, int | None]:
    """On a Mac, with the limit raised as planned, or with less context if that is denied; and what keeps it raised.

    Done before the download, while the user is there to give a password.
    """
    limit_mib = now.plan().wired_limit_mib
    if not limit_mib:
        return now, held
    waiting = partial(say, "Waiting for another session that is raising the wired limit…")
    try:
        raised = wired_limit.raise_limit(limit_mib, now.env, can_ask=can_ask(), waiting=waiting)
    except wired_limit.DeniedError as error:
        say(f"{error.message} Continuing with less context.", "yellow")
        if error.hint:
            say(f"To restore it: {error.hint}", "yellow")
        now = replace(now, settings=now.settings.changed({"wired_limit": None}, "memory menu"))
        refuse_unfitting(now.plan())
        return now, held
    return now, raised if raised is not None else held
