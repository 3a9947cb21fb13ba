"""Finds llama.cpp's server on this machine, and uses what a running one offers beyond the agents' API."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cclocal.backends import Get, Reported, Runtime
from cclocal.backends.llama_server.spec import BINARY, WHEEL
from cclocal.backends.llama_server.workers import BUILD, addresses, with_workers
from cclocal.backends.llama_server.xllamacpp_server import flags
from cclocal.errors import BackendMissingError
from cclocal.facts import Engine, Machine
from cclocal.paths import Env, find_program
from cclocal.programs import Answers, ask, help_of
from cclocal.settings import Settings, Sight
from cclocal.turns import Turn

if TYPE_CHECKING:
    import httpx


#: The status of what an engine does not support.
_NOT_IMPLEMENTED = 501


def _devices_depend_on(machine: Machine) -> str:
    """What an engine's list of devices depends on beside its own file."""
    # a higher wired limit changes the memory that a Mac's GPU reports
    return f"{machine.boot_id}|{','.join(gpu.name for gpu in machine.gpus)}|{machine.wired_limit_mib}"


def _binary(path: Path, env: Env, machine: Machine, answers: Answers) -> Engine:
    def probe() -> dict[str, Any]:
        text, names = help_of([str(path)], env.environ)
        version = ask([str(path), "--version"], env.environ)
        first = re.search(r"version:\s*(.+)", version.stdout + version.stderr)
        devices = ask([str(path), "--list-devices"], env.environ).stdout if "--list-devices" in names else ""
        # BLAS counts as a device there, with no memory
        listed = [
            line for line in re.findall(r"^\s*(\w+: .+\(\d+ MiB.*)$", devices, re.MULTILINE) if "(0 MiB" not in line
        ]
        found = {"version": first[1].strip() if first else "unknown", "flags": names, "devices": listed}
        return {**found, "unix_socket": "UNIX socket" in text}

    known = answers.of(answers.key(path, "llama-server 2", _devices_depend_on(machine)), probe)
    return Engine(
        BINARY,
        (str(path),),
        known["version"],
        frozenset(known["flags"]),
        tuple(known["devices"]),
        title="a llama-server program",
        unix_socket=known["unix_socket"],
        asks_devices=(str(path), "--list-devices") if "--list-devices" in known["flags"] else (),
    )


_WHEEL_PROBE = """
import json, xllamacpp
from importlib.metadata import version
devices = [d for d in xllamacpp.get_device_info() if "GPU" in d["type"].name]
listed = [f'{d["name"]}: {d["description"]} ({d["memory_total"] >> 20} MiB, {d["memory_free"] >> 20} MiB free)'
          for d in devices]
print(json.dumps({"version": version("xllamacpp"), "devices": listed}))
"""


def _wheel(env: Env, machine: Machine, answers: Answers) -> Iterator[Engine]:
    spec = importlib.util.find_spec("xllamacpp")
    if not spec or not spec.origin:
        return
    libraries = sorted(Path(spec.origin).parent.glob("xllamacpp*.so")) or [Path(spec.origin)]

    def probe() -> Any:
        done = ask([sys.executable, "-P", "-c", _WHEEL_PROBE], env.environ)
        if done.returncode != 0:
            raise BackendMissingError(
                "The xllamacpp package is installed but does not load.",
                cause=done.stderr.strip().splitlines()[-2:],
                hint='pip install --force-reinstall "cclocal[engine]"    (it needs the system library libgomp1)',
            )
        return json.loads(done.stdout)

    # the question belongs to the key: another version of cclocal may ask another one
    known = answers.of(answers.key(libraries[0], _WHEEL_PROBE, _devices_depend_on(machine)), probe)
    command = (sys.executable, "-P", "-m", "cclocal.backends.llama_server.xllamacpp_server")
    yield Engine(
        WHEEL,
        command,
        known["version"],
        flags(),
        tuple(known["devices"]),
        title="inside the xllamacpp package",
        unix_socket=True,
        asks_devices=(sys.executable, "-P", "-c", _WHEEL_PROBE),
    )


class LlamaServer(Runtime):
    """llama.cpp's server: it counts tokens, and saves and restores the KV cache of a prompt."""

    COUNTED = r'"n_saved": ?(\d+)'

    def find(self, env: Env, settings: Settings, machine: Machine, answers: Answers) -> Iterator[Engine]:
        """The llama-server asked for, else the one on PATH and then the wheel's."""
        asked, workers = settings.llama_server, addresses(settings)
        found = None if asked == WHEEL else find_program(asked or "llama-server", env.environ)
        if found:
            try:
                engine = _binary(Path(found).absolute(), env, machine, answers)
                yield with_workers(engine, workers, env.environ) if workers else engine
            except (OSError, subprocess.SubprocessError) as error:
                if asked:
                    raise BackendMissingError(f"{found} does not run: {error}.") from None
        elif asked and asked != WHEEL:
            raise BackendMissingError(
                f"There is no program {asked}.{settings.origin('llama_server')}",
                hint="--llama-server PATH, or “wheel” for the xllamacpp package",
            )
        if workers and (not found or asked == WHEEL):
            raise BackendMissingError("The engine in the xllamacpp package has no RPC.", hint=BUILD)
        if not workers and (not asked or asked == WHEEL):
            yield from _wheel(env, machine, answers)

    def reported(self, get: Get, model: str) -> Reported | None:
        """llama.cpp reports the window of one slot in /props, and what else than text it reads."""
        props = get("/props")
        settings = props.get("default_generation_settings") if isinstance(props, dict) else None
        if not isinstance(settings, dict):
            return None
        reads = props.get("modalities")
        sees: Sight | None = ("all" if reads.get("vision") else "none") if isinstance(reads, dict) else None
        return Reported("llama-server", settings.get("n_ctx"), sees, refuses_empty=True)

    def count_tokens(self, client: httpx.Client, text: str) -> int | None:
        """Counted by /tokenize."""
        reply = client.post("/tokenize", json={"content": text}).raise_for_status()
        return len(reply.json()["tokens"])

    def prompt_tokens(self, client: httpx.Client, request: Mapping[str, Any]) -> list[int]:
        """Rendered by the server's own template, then tokenised as its completion endpoint does."""
        rendered = client.post("/apply-template", json=request).raise_for_status().json()["prompt"]
        body = {"content": rendered, "add_special": True, "parse_special": True}
        return [int(token) for token in client.post("/tokenize", json=body).raise_for_status().json()["tokens"]]

    def read_prompt(self, client: httpx.Client, tokens: list[int]) -> int:
        """Evaluated into slot 0, without a reply."""
        body = {"prompt": tokens, "n_predict": 0, "cache_prompt": True, "id_slot": 0}
        reply = client.post("/completion", json=body, timeout=None).raise_for_status().json()
        return int(reply["timings"]["prompt_n"])

    def write(self, client: httpx.Client, tokens: list[int], most_tokens: int) -> tuple[str, Turn]:
        """By slot 0, greedily."""
        body = {"prompt": tokens, "n_predict": most_tokens, "temperature": 0, "cache_prompt": True, "id_slot": 0}
        reply = client.post("/completion", json=body, timeout=None).raise_for_status().json()
        cost = reply["timings"]
        return str(reply["content"]), Turn(
            prompt_tokens=len(tokens),
            read_tokens=int(cost["prompt_n"]),
            first_s=cost["prompt_ms"] / 1000,
            written_tokens=int(cost["predicted_n"]),
            writing_s=cost["predicted_ms"] / 1000,
            accepted_tokens=cost.get("draft_n_accepted"),
        )

    def save_request(self, name: str) -> tuple[str, str, str]:
        """Of slot 0."""
        return "POST", "/slots/0?action=save", json.dumps({"filename": name})

    def save_prompt(self, client: httpx.Client, name: str) -> int | None:
        """The KV cache of slot 0. Before 2026 llama.cpp answered 501 beside a projector."""
        method, path, body = self.save_request(name)
        reply = client.request(method, path, content=body, timeout=None)
        if reply.status_code == _NOT_IMPLEMENTED:
            return None
        return int(reply.raise_for_status().json()["n_saved"])

    def restore_request(self, name: str) -> tuple[str, str, str]:
        """Into slot 0."""
        return "POST", "/slots/0?action=restore", json.dumps({"filename": name})
