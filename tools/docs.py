"""Write the generated parts of the docs, or check that they are in step: python tools/docs.py [--check]."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = ["README.md", "docs/reference.md", "docs/catalog.md", "docs/trust.md", "docs/security.md"]
#: one width, no colours, and a home that is nobody's
ENVIRON = {"HOME": "/home/you", "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "LANG": "C.UTF-8"}


def help_text(*command: str) -> str:
    """The help of cclocal or of one of its commands, as a code block."""
    done = subprocess.run(
        [sys.executable, "-m", "cclocal", *command, "--help"],
        env={**ENVIRON, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.rstrip() for line in done.stdout.strip("\n").splitlines()]
    return "```text\n" + "\n".join(lines) + "\n```\n"


def models_table() -> str:
    """The catalog as a Markdown table."""
    from cclocal.discovery.look import load_catalog
    from cclocal.units import file_size, window

    rows = ["| flag | model | download | context | note | reported by others |", "|---|---|---:|---:|---|---|"]
    for model in load_catalog().models.values():
        variant = model.variants[0]
        size = "none" if variant.builtin else file_size(variant.size_bytes)
        context = f"{window(model.served_context_tokens)} of {window(model.native_context_tokens)}"
        names = ", ".join(f"`--{flag}`" for flag in (model.id, *model.flags))
        rows.append(f"| {names} | {model.name} | {size} | {context} | {model.note} | {model.reported or ''} |")
    return "\n".join(rows) + "\n"


#: Memory of a machine in GB → the model to begin with.
BY_MEMORY = {16: "gemma-light", 24: "gpt-oss", 32: "qwen38", 64: "coder-next"}


def models_by_memory() -> str:
    """The four models to begin with, by the memory of the machine."""
    from cclocal.discovery.look import load_catalog
    from cclocal.units import file_size

    models = load_catalog().models
    rows = ["| a Mac with | type | model | download |", "|---:|---|---|---:|"]
    for size_gib, id_ in BY_MEMORY.items():
        model = models[id_]
        size_bytes = model.variants[0].size_bytes
        download = file_size(size_bytes) if size_bytes else "said before it begins"
        rows.append(f"| {size_gib} GB | `cclocal {id_}` | {model.name} | {download} |")
    return "\n".join(rows) + "\n"


def catalog_keys() -> str:
    """Every key of models.toml with its type."""
    from dataclasses import fields
    from typing import Literal, get_args, get_origin, get_type_hints

    from cclocal.models.catalog import Model, Sampling, Variant

    parts = []
    for title, owner in (
        ("`[models.ID]`", Model),
        ("`[[models.ID.variants]]`", Variant),
        ("`sampling` and `think_sampling`", Sampling),
    ):
        parts.append(f"### {title}\n")
        parts.append("| key | type |\n|---|---|")
        hints = get_type_hints(owner)
        for field in fields(owner):
            if field.name != "id":
                # of a type with a name of its own the words that it allows
                is_words = get_origin(hints[field.name]) is Literal
                type_ = " or ".join(get_args(hints[field.name])) if is_words else str(field.type).replace("|", "or")
                parts.append(f"| `{field.name}` | `{type_}` |")
        parts.append("")
    return "\n".join(parts)


def settings_table() -> str:
    """Every lasting default, its option and its variable."""
    from cclocal.settings import flags, lasting, type_in_words, variables

    rows = ["| in `[defaults]` | option | variable | type |", "|---|---|---|---|"]
    for name in lasting():
        rows.append(f"| `{name}` | `--{flags(name)[0]}` | `{variables(name)[0]}` | {type_in_words(name)} |")
    return "\n".join(rows) + "\n"


def agent_variables() -> str:
    """Every variable a session of Claude Code is given, with an example's values."""
    from cclocal.agents.claude.command import environment
    from cclocal.command import SHOWN, Endpoint

    made = environment(Endpoint.of_relay(SHOWN, "gemma"), 65536, 8192)
    rows = ["| variable | value (for `--gemma`) |", "|---|---|"]
    return "\n".join((*rows, *(f"| `{name}` | `{value}` |" for name, value in made.items()))) + "\n"


def kept_variables() -> str:
    """The names of the caller's variables that reach the agent."""
    from cclocal.command import AGENT_NAMES

    return "`" + "` `".join(sorted(AGENT_NAMES)) + "` and `LC_*`.\n"


def exit_codes() -> str:
    """Every exit status of cclocal's own, from the docstring that defines them."""
    import inspect

    from cclocal import errors

    text = inspect.getdoc(errors) or ""
    lines = [line for line in text.splitlines() if line[:4].strip().isdigit() or line.startswith("    ")]
    return "```text\n" + "\n".join(line.strip() for line in lines) + "\n```\n"


def fault_matrix() -> str:
    """What can go wrong, and the test that shows what is left then. Raises SystemExit if there is no such test."""
    rows = ["| what goes wrong | what is left or said | shown by |", "|---|---|---|"]
    part = ""
    for line in (ROOT / "tests/faults.txt").read_text("utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        of, fault, then, shown = (cell.strip() for cell in line.split("|"))
        rows += [f"| **{of}** | | |"] if of != part else []
        part = of
        file, _, test = shown.partition("::")
        if test and not re.search(rf"^def {test}\(", (ROOT / "tests" / file).read_text("utf-8"), re.MULTILINE):
            raise SystemExit(f"tests/faults.txt: there is no test {shown}")
        words = test.removeprefix("test_").replace("_", " ") if test else f"not run{shown.removeprefix('none')}"
        rows.append(f"| {fault} | {then} | {f'[{words}](../tests/{file})' if test else words} |")
    return "\n".join(rows) + "\n"


def attempts() -> str:
    """What a hostile agent tries, and at which levels it is done."""
    from tests.sandbox.attempts import table

    return table()


def work() -> str:
    """What works at --sandbox strict."""
    from tests.sandbox.work import table

    return table()


def picture_of_the_menu() -> str:
    """The menu on a Mac of 32 GB with two models on disk, as an SVG."""
    import io

    from rich.console import Console
    from rich.text import Text

    from cclocal.discovery.look import load_catalog
    from cclocal.paths import Env
    from cclocal.session.models import TITLE, menu_rows
    from cclocal.session.plan import look_at_machine, plan_catalog
    from cclocal.settings import Settings
    from cclocal.ui import menu

    catalog = load_catalog()
    with tempfile.TemporaryDirectory() as home:
        env = Env.of({"HOME": home, "PATH": "/nowhere"})
        rows = plan_catalog(catalog, Settings(), look_at_machine(catalog, Settings(), env, 32, "26"))
    here = {"tiny", "gemma", "gemma-light"}
    styles = {"class:cursor": "bold reverse", "class:dim": "bright_black", "class:good": "green"}
    styles |= {"class:warn": "yellow", "class:bad": "red"}
    console = Console(width=80, record=True, file=io.StringIO(), force_terminal=True)
    for part in menu.Menu(
        menu_rows(catalog, {row.id: row for row in rows}, here, {}, {}), TITLE, menu.HELP
    ).fragments():
        console.print(Text(part[1], style=styles.get(part[0], part[0])), end="")
    return console.export_svg(title="cclocal", unique_id="menu")


def _write_picture(*, check: bool) -> int:
    path, drawn = ROOT / "docs/menu.svg", picture_of_the_menu()
    if path.exists() and path.read_text("utf-8") == drawn:
        return 0
    if check:
        print("docs/menu.svg is not in step: python tools/docs.py")
        return 1
    path.write_text(drawn, "utf-8")
    return 0


def main() -> int:
    from cogapp import Cog

    mode = ["--check", "--diff"] if "--check" in sys.argv else ["-r"]
    code = 0
    for name in FILES:
        code = max(code, Cog().main(["cog", *mode, "-I", str(ROOT / "tools"), "-I", str(ROOT), str(ROOT / name)]))
    return max(code, _write_picture(check="--check" in sys.argv))


if __name__ == "__main__":
    sys.exit(main())
