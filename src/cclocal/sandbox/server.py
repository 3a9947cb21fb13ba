"""The sandbox of a model server: no network, and of the files only its engine, its model and its kept prompts.

Whether an engine runs in one is found out by asking it for its devices, outside and inside, once for each build.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from cclocal.command import Command
from cclocal.facts import Engine, ServerSandbox
from cclocal.paths import Env
from cclocal.programs import Answers, ask
from cclocal.sandbox.look import homes_of, program_folders
from cclocal.sandbox.walls import HIDDEN_FILES, NAMESPACES, OF_KERNEL

#: Folders of the system: programs, libraries, drivers and their settings. The last three are those of NixOS and Guix.
_SYSTEM = tuple("/usr /bin /sbin /lib /lib32 /lib64 /etc /opt /sys /nix /gnu /run/opengl-driver".split())
#: What GPUs are reached by, in /dev.
_GPUS = ("nvidia*", "dri", "kfd", "accel*", "dxg")
#: Variables that name folders of libraries.
_LIBRARY_VARIABLES = ("LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "ROCM_PATH", "ONEAPI_ROOT")


def with_sandbox(engine: Engine, program: str, env: Env, answers: Answers) -> Engine:
    """An engine with the sandbox that its server runs in; as it was if it does not run in one.

    program: bubblewrap. The engine has to see the same devices inside as outside, and to listen on a unix socket: its
    ports are not reached from outside.
    """
    if not engine.unix_socket or not engine.asks_devices:
        return engine

    def probe() -> list[str]:
        folders = tuple(dict.fromkeys(map(str, _folders(engine, env))))
        inside = enclosed(Command(engine.asks_devices), ServerSandbox(program, folders), env)
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            seen = [ask(argv, env.environ) for argv in (engine.asks_devices, inside.argv)]
            # how much memory is free may differ
            words = [re.sub(r"\d+", "", done.stdout) for done in seen]
            if words[0] == words[1] and not any(done.returncode for done in seen):
                return list(folders)
        return []

    libraries = (env.environ.get(name, "") for name in _LIBRARY_VARIABLES)
    also = ("in a sandbox", program, engine.version, *engine.asks_devices, *engine.device_names, *libraries)
    folders = answers.of(answers.key(Path(engine.command[0]), *also), probe)
    return replace(engine, sandbox=ServerSandbox(program, tuple(folders))) if folders else engine


def enclosed(
    command: Command,
    sandbox: ServerSandbox,
    env: Env,
    reads: Iterable[str] = (),
    writes: Iterable[str] = (),
    *,
    has_network: bool = False,
) -> Command:
    """A server's command in its sandbox: it reads these files beside its engine, and writes these folders.

    The log is a descriptor that it has already. What GPU drivers compile is kept in a folder of its own.
    """
    gpu_cache = env.folders.cache / "gpu"
    gpus = sorted(path for pattern in _GPUS for path in Path("/dev").glob(pattern))
    if gpus:
        gpu_cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        writes = (*writes, str(gpu_cache))
    mounts = [("--ro-bind", path, _place(path)) for path in (*sandbox.folders, *reads)]
    mounts += [("--bind", path, _place(path)) for path in writes]
    # a folder before what lies in it
    mounts.sort(key=lambda mount: mount[2].count("/"))
    masks = [path for path in HIDDEN_FILES if Path(path).is_file()]
    argv = (
        sandbox.program,
        *(word for word in NAMESPACES if not (has_network and word == "--unshare-net")),
        *(word for folder in _SYSTEM for word in ("--ro-bind-try", folder, folder)),
        *(word for path in masks for word in ("--ro-bind", "/dev/null", path)),
        *("--proc", "/proc", *(word for name in OF_KERNEL for word in ("--ro-bind-try", name, name))),
        *("--dev", "/dev", *(word for path in gpus for word in ("--dev-bind", str(path), str(path)))),
        *("--tmpfs", "/tmp"),  # noqa: S108 - its own
        *(word for mount in mounts for word in mount),
        *("--remount-ro", "/", "--chdir", "/", "--"),
        *command.argv,
    )
    kept = {"CUDA_CACHE_PATH": str(gpu_cache), "MESA_SHADER_CACHE_DIR": str(gpu_cache)} if gpus else {}
    return replace(command, argv=argv, env={**command.env, **kept})


def _place(path: str) -> str:
    """Where a path is mounted: in a folder of the system behind its links, which are there inside too."""
    is_shown = any(Path(path).is_relative_to(folder) for folder in _SYSTEM)
    return str(Path(os.path.realpath(Path(path).parent), Path(path).name)) if is_shown else path


def _folders(engine: Engine, env: Env) -> Iterator[Path]:
    """The folders that an engine's program needs beside the system's. A home is never among them."""
    program = engine.command[0]
    found = [*program_folders(program, env.environ["HOME"])]
    found += [folder.with_name(name) for folder in found if folder.name == "bin" for name in ("lib", "lib64")]
    found += [Path(word) for name in _LIBRARY_VARIABLES for word in env.environ.get(name, "").split(":") if word]
    if program == sys.executable:
        found += [Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[1]]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        libraries = re.findall(r"(?:=> |^\s+)(/\S+)", ask(["ldd", program], env.environ).stdout, re.MULTILINE)
        found += [Path(library).parent for library in libraries]
    homes = homes_of(env)
    for folder in dict.fromkeys(path for name in found for path in (name, Path(os.path.realpath(name)))):
        holds_home = any(home.is_relative_to(folder) for home in homes)
        is_shown = any(folder.is_relative_to(top) for top in _SYSTEM)
        if folder.is_absolute() and folder.is_dir() and not holds_home and not is_shown:
            yield folder
