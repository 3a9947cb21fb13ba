"""Finds vllm-mlx on this machine: the Python it is installed in, its version and mlx-lm's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cclocal import http
from cclocal.backends import Runtime, StartedServer
from cclocal.backends.vllm_mlx import wrapper
from cclocal.backends.vllm_mlx.spec import VllmMlxSpec
from cclocal.errors import BackendMissingError, NotReadyError
from cclocal.facts import Engine, Machine
from cclocal.paths import Env, find_program
from cclocal.programs import Answers, ask, help_of
from cclocal.settings import Settings

#: Its imports take seconds, and longer the first time.
_IMPORTS_LIMIT_S = 60.0
_PROBE = """
import json
from importlib.metadata import version
print(json.dumps({name: version(name) for name in ("vllm-mlx", "mlx-lm")}))
"""


def _python_of(program: Path) -> Path:
    """The Python that an entry point runs in: the one its first line names, else the one beside it."""
    with program.open("rb") as file:
        first = file.readline(1024).decode("utf-8", "replace").strip()
    named = first.removeprefix("#!").strip().split(" ")[0] if first.startswith("#!/") else ""
    if "python" in Path(named).name and Path(named).exists():
        return Path(named)
    beside = (program.with_name(name) for name in ("python", "python3"))
    return next((path for path in beside if path.exists()), program.with_name("python"))


class VllmMlx(Runtime):
    """vllm-mlx: it loads its model by itself."""

    def verify(self, server: StartedServer) -> None:
        """By its own health report."""
        with http.client(server.endpoint.url, server.endpoint.key) as client:
            status = client.get("/health").json()["status"]
        if status != "healthy":
            raise NotReadyError(f"The server reports the status {status}.", log=str(server.log))

    def find(self, env: Env, settings: Settings, machine: Machine, answers: Answers) -> Iterator[Engine]:
        """The vllm-mlx on PATH, else in cclocal's own environment."""
        own = str(Path(sys.executable).parent)
        path = find_program("vllm-mlx", env.environ) or find_program("vllm-mlx", env.environ, own)
        if not path:
            return
        program = Path(os.path.realpath(path))
        python = _python_of(program)
        # an update may leave the entry point as it is: the names of the packages' folders carry their versions
        packages = program.parent.parent.glob("lib/python*/site-packages/*mlx*.dist-info")
        key = answers.key(program, "vllm-mlx", _PROBE, *sorted(package.name for package in packages))

        def probe() -> dict[str, Any]:
            answer = ask([str(python), "-I", "-c", _PROBE], env.environ)
            if answer.returncode != 0:
                raise OSError(answer.stderr.strip().splitlines()[-1])
            versions = json.loads(answer.stdout)
            _, names = help_of([str(program), "serve"], env.environ, _IMPORTS_LIMIT_S)
            return {"version": f"{versions['vllm-mlx']}, mlx-lm {versions['mlx-lm']}", "flags": names}

        try:
            known = answers.of(key, probe)
        except (OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
            if settings.backend == VllmMlxSpec.NAME:
                raise BackendMissingError(f"{path} does not run: {error}.", hint=VllmMlxSpec.INSTALL) from None
            return
        command, title = (str(python), str(wrapper.__file__)), "in its own environment"
        yield Engine("vllm-mlx", command, known["version"], frozenset(known["flags"]), title=title, uses="untold")
