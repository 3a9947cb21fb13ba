"""`cclocal doctor --self-test`: what this project's tests cannot run, run on the user's machine with the tiny model.

Its rows have the names that docs/unverified.md gives. Nothing is downloaded, nothing is changed, and it takes less than
two minutes. It needs an engine and no agent.
"""

from __future__ import annotations

import os
import platform
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cclocal import __version__
from cclocal.agents.session import AgentSession, ConfigDir
from cclocal.command import Command
from cclocal.discovery.look import look
from cclocal.errors import CclocalError, SandboxError
from cclocal.facts import Facts
from cclocal.models.catalog import Catalog
from cclocal.paths import Env, make_folder
from cclocal.programs import is_mac
from cclocal.sandbox.enter import wrapped
from cclocal.sandbox.look import Needs, find_sandbox, walls_for
from cclocal.sandbox.walls import Sandbox, no_typing
from cclocal.server.process import boot_id, start_of
from cclocal.server.registry import SessionRecord, sessions
from cclocal.server.start import free_port
from cclocal.settings import Settings
from cclocal.ui.tables import Finding
from cclocal.units import memory_size

#: Seconds for the server to load the tiny model, and to end once its launcher is gone.
_LOAD_LIMIT_S, _END_LIMIT_S = 60.0, 20.0
#: How far the engine's own number of a card's memory may be from the driver's.
_TOLERANCE = 0.05
#: What engines write about the device that they use.
_DEVICE = re.compile(r"ggml_metal_device_init: GPU name.*|using device \w+.*|found \d+ .* devices?.*", re.IGNORECASE)
#: A file in the home that the sandbox must prevent.
_MARK = ".cclocal-self-test"
#: Tried in the sandbox by a shell, in a folder of its own: what would be done → the commands. Whether the first two
#: were done is seen from outside: inside, other folders are empty ones in memory.
_BESIDE, _HOME = "write beside its folder", "write in your home"
_ATTEMPTS = {
    _BESIDE: "echo x > ../evil",
    _HOME: f'echo x > "$HOME/{_MARK}"',
    "read a file of yours": 'cat "$SECRET"',
    "reach a port of this machine": "exec 3<>/dev/tcp/127.0.0.1/$PORT",
    "signal a process of yours": "kill -0 $PID",
    "change its own settings": "mkdir -p .claude && echo x > .claude/settings.json",
}


def run(settings: Settings, catalog: Catalog, env: Env) -> Iterator[Finding]:
    """Yield every row as soon as it is known."""
    facts = look(env, replace(settings, agent_args=()), catalog, engines_must_run=False)
    machine = facts.machine
    yield Finding("machine", "info", f"cclocal {__version__} on {machine.os} {machine.os_version} {machine.arch}")
    yield _processes()
    yield from _memory(facts)
    yield from _server(facts)
    yield from _sandbox(facts)


def _processes() -> Finding:
    start, boot = start_of(os.getpid()), boot_id()
    if not start or not boot:
        return Finding("processes", "problem", f"no identity of a process (start {start!r}, boot {boot!r})")
    return Finding("processes", "ok", f"a process is known by its start ({start}) and the boot ({boot})")


def _memory(facts: Facts) -> Iterator[Finding]:
    machine = facts.machine
    words = f"{memory_size(machine.ram_bytes)}, {memory_size(machine.available_bytes)} free ({machine.memory_words})"
    yield Finding("memory", "ok" if machine.ram_bytes and machine.available_bytes else "problem", words)
    if machine.os == "macos":
        limit = machine.wired_limit_mib
        said = "cannot be set here" if limit is None else f"is {limit} MiB" if limit else "is the system's own share"
        yield Finding(
            "wired limit", "info", f"the GPU's memory limit {said}; MLX: {memory_size(machine.mlx_limit_bytes)}"
        )
    for gpu in machine.gpus:
        yield Finding(
            "GPU", "info", f"{gpu.name}: {memory_size(gpu.total_bytes) if gpu.total_bytes else 'its own size unknown'}"
        )
    for name, engines in facts.engines.items():
        for engine in engines:
            yield from (_device(f"{name} {engine.version}", device, facts) for device in engine.devices)


def _device(engine: str, device: str, facts: Facts) -> Finding:
    """What an engine says of a device, against the driver."""
    found = re.search(r"\((\d+) MiB", device)
    size = int(found[1]) << 20 if found else 0
    sizes = [gpu.total_bytes for gpu in facts.machine.gpus if gpu.total_bytes]
    differs = size and sizes and all(abs(size - other) > _TOLERANCE * other for other in sizes)
    return Finding(
        "GPU", "note" if differs else "ok", f"{engine} lists {device}{'; the driver says otherwise' if differs else ''}"
    )


# -- a server, and its keeper


def _server(facts: Facts) -> Iterator[Finding]:
    """Start the tiny model's server as `cclocal --server` does, kill the launcher, and see the server end."""
    env = facts.env
    command = [sys.executable, "-P", "-m", "cclocal", "--server", "--tiny", "--cold", "--port", str(free_port())]
    before, began = {session.folder for session in sessions(env)}, time.monotonic()
    child = subprocess.Popen(
        command,
        env=dict(env.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout
        assert child.stderr
        # the line is written when the model has answered
        ready = select.select([child.stdout], [], [], _LOAD_LIMIT_S)[0] and child.stdout.readline()
        mine = [one for one in sessions(env) if one.folder not in before and one.facts.get("watched") == child.pid]
        if not ready or not mine:
            child.kill()
            yield Finding("server", "problem", child.stderr.read().strip()[-300:] or "it did not start")
            return
        [session] = mine
        log = Path(str(session.facts["log"])).read_text("utf-8", "replace")
        device = _DEVICE.search(log)
        words = f"the tiny model answers after {time.monotonic() - began:.1f} s, on {session.facts.get('backend')}"
        yield Finding("server", "ok", f"{words}{f': {device[0].strip()}' if device else ''}")
        yield Finding(
            "lock", "ok" if session.is_running else "problem", "the session's lock tells that its keeper is there"
        )
        yield _ends_with_its_launcher(session, child)
    finally:
        child.kill()
        child.wait()


def _ends_with_its_launcher(session: SessionRecord, child: subprocess.Popen[str]) -> Finding:
    began = time.monotonic()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    while time.monotonic() - began < _END_LIMIT_S:
        if not session.is_alive("server") and not session.folder.exists():
            took, how = (time.monotonic() - began) * 1000, "pidfd" if hasattr(os, "pidfd_open") else "kqueue"
            words = f"server and session are gone {took:.0f} ms after the launcher was killed (watched by {how})"
            return Finding("keeper", "ok", words)
        time.sleep(0.005)
    pid = session.facts.get("server")
    return Finding(
        "keeper", "problem", f"the server (process {pid}) goes on after its launcher was killed", f"kill {pid}"
    )


# -- the sandbox


def _sandbox(facts: Facts) -> Iterator[Finding]:
    """What a shell gets done in the strict sandbox, against the same without one."""
    env = facts.env
    try:
        program = find_sandbox(env.environ)
    except SandboxError as error:
        yield Finding("sandbox", "note", " ".join((error.message, *error.cause)), error.hint or "")
        return
    stage = make_folder(env.folders.state / f"self-test-{os.getpid()}")
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            inside, outside = (_done(stage, program if sealed else "", listener, env) for sealed in (True, False))
    except (OSError, CclocalError, subprocess.SubprocessError) as error:
        yield Finding("sandbox", "problem", f"it does not run: {error}")
        return
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    for name in _ATTEMPTS:
        if name in inside:
            yield Finding("sandbox", "problem", f"{name}: done in the sandbox")
        else:
            without = "done without it" if name in outside else "refused without it too"
            yield Finding("sandbox", "ok", f"{name}: refused; {without}")


def _done(stage: Path, program: str, listener: socket.socket, env: Env) -> set[str]:
    """The attempts that succeed, in the sandbox or without one."""
    place = make_folder(stage / ("in" if program else "out"))
    project = make_folder(place / "project")
    (place / "secret").write_text("x")
    lines = (f"( {command} ) >/dev/null 2>&1 && echo '{name}'\n" for name, command in _ATTEMPTS.items())
    bash = shutil.which("bash") or "/bin/sh"
    argv, fds = [bash, "-c", "".join(lines)], tuple[int, ...]()
    if program:
        session = AgentSession(found=None, context_tokens=1, out_tokens=1, cwd=project, home=place / "agent")
        make_folder(session.home)
        walls = walls_for(session, ConfigDir(session.home), Command((bash,)), Needs(make_folder(place / "tmp")), env)
        sandbox = Sandbox(program, walls, no_typing(platform.machine()) or b"", is_seatbelt=is_mac(env.environ))
        argv, fds = wrapped(argv, sandbox)
    variables = {"SECRET": str(place / "secret"), "PORT": str(listener.getsockname()[1]), "PID": str(os.getpid())}
    try:
        done = subprocess.run(
            argv,
            env={"HOME": env.environ["HOME"], "PATH": os.defpath, **variables},
            cwd=project,
            pass_fds=fds,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    finally:
        for fd in fds:
            os.close(fd)
    effects = {_BESIDE: place / "evil", _HOME: Path(env.environ["HOME"], _MARK)}
    found = {name for name in done.stdout.splitlines() if name not in effects}
    found |= {name for name, path in effects.items() if path.exists()}
    effects[_HOME].unlink(missing_ok=True)
    return found
