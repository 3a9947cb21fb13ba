"""Look around: the machine, its engines, its agents, the folder we are in, what is on disk → `Facts`."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cclocal import tiny
from cclocal.agents.claude import status_line
from cclocal.backends.llama_server import spec as llama_server
from cclocal.backends.ollama import lease as borrowed
from cclocal.backends.ollama import spec as ollama
from cclocal.backends.vllm_mlx import spec as vllm_mlx
from cclocal.backends.vllm_mlx import wrapper as mlx_server
from cclocal.checks.results import known
from cclocal.discovery.calibration import corrections
from cclocal.discovery.hardware import machine
from cclocal.errors import AgentMissingError, BackendMissingError, FolderError
from cclocal.facts import AgentFound, Alternative, Engine, Facts, Machine
from cclocal.memory.config import shape_of_config
from cclocal.memory.gguf import read_header
from cclocal.memory.known import known_mlx_shape, known_shape
from cclocal.memory.shape import Shape, shape_of
from cclocal.models.catalog import CONFIG, Catalog, Model, Variant
from cclocal.models.headers import listed_bytes, local_tag, of_folder, of_gguf
from cclocal.models.hub import cached_files
from cclocal.paths import Folders, is_loopback, ollama_url, packaged, write_private
from cclocal.planning.plan import choose_variant, model_path
from cclocal.server.start import ask
from cclocal.settings import Settings


def probe(settings: Settings, model: Model, folders: Folders, environ: Mapping[str, str]) -> Facts:
    """Everything the plan may look at. Starts small programs (`--version`, `--help`) and remembers their answers.

    Raises AgentMissingError or BackendMissingError if a program was found but does not run.
    """
    facts = surroundings(settings, folders, environ)
    return with_variant(facts, model, choose_variant(model, settings, facts)[0])


def surroundings(settings: Settings, folders: Folders, environ: Mapping[str, str]) -> Facts:
    """What is the same for every model: the machine, its engines, the agent, what earlier starts and checks told."""
    memory = Remembered(folders.cache / "probes.json")
    facts = look_around(folders, environ, memory, want_agent=not settings.server_only)
    found = replace(
        facts,
        engines={
            llama_server.NAME: tuple(find_engines(settings.llama_server, environ, facts.machine, memory)),
            vllm_mlx.NAME: tuple(find_vllm_mlx(settings.backend, environ, memory)),
            ollama.NAME: tuple(find_ollama(settings.backend, environ, memory)),
        },
        corrections=corrections(folders),
        proofs={name: bool(row.get("works")) for name, row in known(folders).items()},
    )
    memory.save()
    return found


def with_variant(facts: Facts, model: Model, variant: Variant) -> Facts:
    """The facts with what is on disk of the variant that would be used. Raises UsageError if that is damaged."""
    repo = variant.repo or ""
    here = cached_files(repo, variant.hub_files, facts.environ) if repo else {}
    cached = {(repo, file): path for file, path in here.items()}
    shape = _shape(model, variant, cached, facts)
    projector = _projector_bytes(variant, cached, facts.folders) if variant.mmproj else 0
    return replace(
        facts,
        cached=cached,
        shapes={model_path(variant, cached): shape} if shape else {},
        projector_bytes={variant.mmproj: projector} if variant.mmproj and projector else {},
    )


def alternatives(shelf: Catalog, chosen: Model, facts: Facts) -> tuple[Alternative, ...]:
    """The other models of the catalog whose dimensions are published, as they would be served here."""
    found = []
    for model in shelf.models.values():
        variant = choose_variant(model, Settings(), facts)[0]
        published = known_mlx_shape if variant.is_folder else known_shape
        shape = published(model.shape or "", variant.size_bytes) if model.id != chosen.id else None
        if shape:
            found.append(Alternative(model.id, model.name, shape, model.served_context_tokens))
    return tuple(found)


def _projector_bytes(variant: Variant, cached: Mapping[tuple[str, str], Path], folders: Folders) -> int:
    """A projector's size: of the file, else what the hub said of it."""
    name, repo = variant.mmproj or "", variant.repo or ""
    path = Path(name) if variant.path else cached.get((repo, name))
    return path.stat().st_size if path and path.is_file() else listed_bytes(repo, name, folders)


def look_around(
    folders: Folders, environ: Mapping[str, str], memory: Remembered | None = None, *, want_agent: bool = True
) -> Facts:
    """The machine, the agent, and the folder we are in; no engines and no models.

    Raises FolderError if that folder is gone.
    """
    memory = memory or Remembered(folders.cache / "probes.json")
    try:
        cwd = Path(os.path.realpath(Path.cwd()))
    except FileNotFoundError:
        raise FolderError("The folder you are in is no longer there.", hint="cd to one that is") from None
    root = next((p for p in (cwd, *cwd.parents) if (p / ".git").exists()), None)
    facts = Facts(
        machine=machine(environ),
        folders=folders,
        cwd=cwd,
        environ=environ,
        agent=find_agent(environ, memory) if want_agent else None,
        pip=_pip(),
        git_root=root,
        user_claude_md=_user_claude_md(environ),
        parent_claude_mds=dict(reversed(list(_parent_claude_mds(cwd, root)))),
        mcp_config=packaged("mcp-local.json"),
        status_line=(sys.executable, "-I", "-S", str(status_line.__file__)),
    )
    memory.save()
    return facts


def _pip() -> str:
    """How a package is added to our own environment: uv's tool environments have no pip of their own."""
    if importlib.util.find_spec("pip"):
        return f"{sys.executable} -m pip install"
    return f"uv pip install --python {sys.executable}"


def _user_claude_md(environ: Mapping[str, str]) -> Path | None:
    folder = Path(environ.get("CLAUDE_CONFIG_DIR") or Path(environ["HOME"], ".claude"))
    path = folder / "CLAUDE.md"
    return path if path.is_file() else None


def _parent_claude_mds(cwd: Path, root: Path | None) -> Iterator[tuple[Path, int]]:
    for folder in cwd.parents if root else ():
        if not folder.is_relative_to(root or folder):
            return
        if (folder / "CLAUDE.md").is_file():
            yield folder / "CLAUDE.md", (folder / "CLAUDE.md").stat().st_size


def _shape(model: Model, variant: Variant, cached: Mapping[tuple[str, str], Path], facts: Facts) -> Shape | None:
    """A variant's shape: what its files say once they are all here, else what its published dimensions make of it."""
    files = [(variant.repo or "", file) for file in variant.files]
    # the first of several parts tells nothing of the others
    if variant.path or (files and all(file in cached for file in files)):
        path = Path(model_path(variant, cached))
        known = of_folder(path) if variant.is_folder else of_gguf(path)
        return known.shape if known else None
    if variant.tag:
        known = local_tag(variant.tag, facts.environ)
        return known.shape if known else None
    if variant.builtin:
        # looking writes nothing: a model not built yet is read from its recipe
        if variant.is_folder:
            mlx = tiny.mlx_files()
            return shape_of_config(json.loads(mlx[CONFIG]), len(mlx["model.safetensors"]))
        built = tiny.path_in(facts.folders.cache)
        known = of_gguf(built) if built.exists() else None
        return known.shape if known else shape_of(read_header(tiny.gguf()))
    published = known_mlx_shape if variant.is_folder else known_shape
    return published(model.shape or "", variant.size_bytes)


# -- programs ---------------------------------------------------------------------------------------------------


class Remembered:
    """Answers of programs that cost time to ask, kept as long as the file they came from is the same."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Any] = {}
        self.fresh = False
        with contextlib.suppress(OSError, ValueError):
            self.known = dict(json.loads(path.read_text("utf-8")))

    def key(self, program: Path, *also: str) -> str:
        stat = program.stat()
        return "|".join((os.path.realpath(program), str(stat.st_size), str(stat.st_mtime_ns), *also))

    def get(self, key: str) -> Any:
        return self.known.get(key)

    def put(self, key: str, value: Any) -> Any:
        self.known[key] = value
        self.fresh = True
        return value

    def save(self) -> None:
        if self.fresh:
            self.fresh = False
            latest = dict(list(self.known.items())[-20:])
            write_private(self.path, json.dumps(latest))


def find_agent(environ: Mapping[str, str], memory: Remembered) -> AgentFound | None:
    """Claude Code on PATH, and its version."""
    found = shutil.which("claude", path=environ.get("PATH", os.defpath))
    if not found:
        return None
    path = Path(found).absolute()
    key = memory.key(path)
    version = memory.get(key)
    if version is None:
        try:
            done = ask([str(path), "--version"], environ)
            version = re.match(r"\d+(\.\d+)+", done.stdout.strip())
        except (OSError, subprocess.SubprocessError) as error:
            raise AgentMissingError(f"{path} does not run: {error}.") from None
        if not version:
            raise AgentMissingError(
                f"{path} does not tell its version, so it is hardly Claude Code.",
                cause=(done.stdout + done.stderr).strip().splitlines()[-3:],
                hint="npm install -g @anthropic-ai/claude-code",
            )
        version = memory.put(key, version[0])
    return AgentFound(path, version)


def find_engines(wish: str | None, environ: Mapping[str, str], here: Machine, memory: Remembered) -> Iterator[Engine]:
    """llama.cpp's server, best first: the one wished for, else a llama-server on PATH, then the wheel's."""
    if wish == "wheel":
        yield from _wheel(environ, here, memory)
        return
    found = shutil.which(wish or "llama-server", path=environ.get("PATH", os.defpath))
    if found:
        try:
            yield _binary(Path(found).absolute(), environ, here, memory)
        except (OSError, subprocess.SubprocessError) as error:
            if wish:
                raise BackendMissingError(f"{found} does not run: {error}.") from None
    elif wish:
        raise BackendMissingError(
            f"There is no program {wish}.", hint="--llama-server PATH, or “wheel” for the xllamacpp package"
        )
    if not wish:
        yield from _wheel(environ, here, memory)


def find_ollama(wish: str | None, environ: Mapping[str, str], memory: Remembered) -> Iterator[Engine]:
    """An Ollama that runs already, then the ollama program on PATH, and their versions."""
    found = shutil.which("ollama", path=environ.get("PATH", os.defpath))
    if found or wish == ollama.NAME or "OLLAMA_HOST" in environ:
        yield from _running_ollama(ollama_url(environ))
    if not found:
        return
    path = Path(found).absolute()
    key = memory.key(path, "ollama")
    version = memory.get(key)
    if version is None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            # with no daemon running it warns, and tells its own
            done = ask([str(path), "--version"], {**environ, "OLLAMA_HOST": "127.0.0.1:1"})
            told = re.search(r"version is (\S+)", done.stdout + done.stderr)
            version = memory.put(key, told[1] if told else "unknown")
    yield Engine("ollama", (str(path),), str(version), frozenset())


def _running_ollama(url: str) -> Iterator[Engine]:
    """The daemon at an address of this machine, if it answers."""
    import httpx

    if not is_loopback(url) or not url.startswith("http://"):
        return
    with contextlib.suppress(httpx.HTTPError, httpx.InvalidURL, ValueError, AttributeError):
        # a proxy has no business between us and a daemon of this machine
        version = httpx.get(f"{url}/api/version", timeout=_DAEMON_LIMIT_S, trust_env=False).json().get("version")
        if isinstance(version, str):
            # isolated, as the keeper: it must hold the model before anything else happens
            holder = (sys.executable, "-I", "-S", str(borrowed.__file__))
            yield Engine(ollama.RUNNING, holder, version, frozenset(), url=url)


#: Its imports take seconds, and many the first time.
_IMPORTS_LIMIT_S = 60.0
#: A daemon of this machine answers at once.
_DAEMON_LIMIT_S = 1.0
_MLX_PROBE = """
import json
from importlib.metadata import version
print(json.dumps({name: version(name) for name in ("vllm-mlx", "mlx-lm")}))
"""


def find_vllm_mlx(wish: str | None, environ: Mapping[str, str], memory: Remembered) -> Iterator[Engine]:
    """vllm-mlx, on PATH or in our own environment: the Python it is installed in, its version and mlx-lm's.

    Raises BackendMissingError if it does not run although it is the backend wished for.
    """
    path = shutil.which("vllm-mlx", path=environ.get("PATH", os.defpath)) or shutil.which(
        "vllm-mlx", path=str(Path(sys.executable).parent)
    )
    if not path:
        return
    program = Path(os.path.realpath(path))
    python = _python_of(program)
    # the environment may change and the entry point stay: its packages' folders carry their versions
    packages = program.parent.parent.glob("lib/python*/site-packages/*mlx*.dist-info")
    key = memory.key(program, "vllm-mlx", _MLX_PROBE, *sorted(package.name for package in packages))
    known = memory.get(key)
    if known is None:
        try:
            answer = ask([str(python), "-I", "-c", _MLX_PROBE], environ)
            if answer.returncode != 0:
                raise OSError(answer.stderr.strip().splitlines()[-1])
            told = json.loads(answer.stdout)
            flags = _flags([str(program), "serve"], environ, _IMPORTS_LIMIT_S)
        except (OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
            if wish == vllm_mlx.NAME:
                raise BackendMissingError(f"{path} does not run: {error}.", hint=vllm_mlx.INSTALL) from None
            return
        known = memory.put(key, {"version": f"{told['vllm-mlx']}, mlx-lm {told['mlx-lm']}", "flags": flags})
    command = (str(python), str(mlx_server.__file__))
    yield Engine("vllm-mlx", command, known["version"], frozenset(known["flags"]))


def _python_of(program: Path) -> Path:
    """The Python that an entry point runs in: the one its first line names, else the one beside it."""
    with program.open("rb") as file:
        first = file.readline(1024).decode("utf-8", "replace").strip()
    named = first.removeprefix("#!").strip().split(" ")[0] if first.startswith("#!/") else ""
    if "python" in Path(named).name and Path(named).exists():
        return Path(named)
    beside = (program.with_name(name) for name in ("python", "python3"))
    return next((path for path in beside if path.exists()), program.with_name("python"))


def _context_of(here: Machine) -> str:
    """What an engine's view of its devices depends on beside its own file."""
    from cclocal.server.keeper import boot_id

    # a Mac's GPU tells more once more may be wired
    return f"{boot_id()}|{','.join(gpu.name for gpu in here.gpus)}|{here.wired_limit_mib}"


def _flags(command: list[str], environ: Mapping[str, str], limit_s: float = 20.0) -> list[str]:
    """Every flag that a program's help names. Raises OSError with its last words if it does not run."""
    done = ask([*command, "--help"], environ, limit_s)
    flags = sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", done.stdout)))
    if done.returncode != 0 or not flags:
        raise OSError((done.stderr.strip() or "its --help says nothing").splitlines()[-1])
    return flags


def _binary(path: Path, environ: Mapping[str, str], here: Machine, memory: Remembered) -> Engine:
    key = memory.key(path, "llama-server", _context_of(here))
    known = memory.get(key)
    if known is None:
        flags = _flags([str(path)], environ)
        version = ask([str(path), "--version"], environ)
        first = re.search(r"version:\s*(.+)", version.stdout + version.stderr)
        devices = ask([str(path), "--list-devices"], environ).stdout if "--list-devices" in flags else ""
        known = memory.put(
            key,
            {
                "version": first[1].strip() if first else "unknown",
                "flags": flags,
                # BLAS counts as a device there, with no memory
                "devices": [
                    d for d in re.findall(r"^\s*(\w+: .+\(\d+ MiB.*)$", devices, re.MULTILINE) if "(0 MiB" not in d
                ],
            },
        )
    return Engine("binary", (str(path),), known["version"], frozenset(known["flags"]), tuple(known["devices"]))


_WHEEL_PROBE = """
import json, xllamacpp
from importlib.metadata import version
devices = [d for d in xllamacpp.get_device_info() if "GPU" in d["type"].name]
told = [f'{d["name"]}: {d["description"]} ({d["memory_total"] >> 20} MiB, {d["memory_free"] >> 20} MiB free)'
        for d in devices]
print(json.dumps({"version": version("xllamacpp"), "devices": told}))
"""


def _wheel(environ: Mapping[str, str], here: Machine, memory: Remembered) -> Iterator[Engine]:
    spec = importlib.util.find_spec("xllamacpp")
    if not spec or not spec.origin:
        return
    from cclocal.backends.llama_server.xllamacpp_server import flags

    libraries = sorted(Path(spec.origin).parent.glob("xllamacpp*.so")) or [Path(spec.origin)]
    # the question belongs to the key: another version of cclocal may ask another one
    key = memory.key(libraries[0], _WHEEL_PROBE, _context_of(here))
    known = memory.get(key)
    if known is None:
        done = ask([sys.executable, "-P", "-c", _WHEEL_PROBE], environ)
        if done.returncode != 0:
            raise BackendMissingError(
                "The xllamacpp package is installed but does not load.",
                cause=done.stderr.strip().splitlines()[-2:],
                hint='pip install --force-reinstall "cclocal[engine]"    (it needs the system library libgomp1)',
            )
        known = memory.put(key, json.loads(done.stdout))
    command = (sys.executable, "-P", "-m", "cclocal.backends.llama_server.xllamacpp_server")
    yield Engine("wheel", command, known["version"], flags(), tuple(known["devices"]))
