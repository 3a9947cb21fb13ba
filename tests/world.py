"""A user's world for a test: a home of its own, a project folder, programs on PATH, and what is left afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pexpect
import psutil

from cclocal.errors import SandboxError
from cclocal.sandbox.look import find_sandbox
from cclocal.server.start import free_port

FAKES = Path(__file__).parent / "fakes"
#: generous, because the machine may be busy; nothing waits for it when things go well
PATIENCE_S = 30.0


def _has_sandbox() -> bool:
    try:
        return bool(find_sandbox(dict(os.environ)))
    except SandboxError:
        return False


#: Whether the strict sandbox works here. It needs user namespaces and bubblewrap.
HAS_SANDBOX = _has_sandbox()


def wait_for(true: Callable[[], Any], what: str = "it", limit_s: float = PATIENCE_S) -> Any:
    """Poll until `true()` is truthy, and return its value."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if value := true():
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {limit_s:.0f} s for {what}")


def leave(child: pexpect.spawn) -> None:  # type: ignore[type-arg]
    """Leave an agent on its terminal. While it still answers, the first Ctrl-C only interrupts the answer."""
    for _ in range(3):
        child.send("\x03\x03")
        if child.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=PATIENCE_S / 2) == 0:
            return
    raise AssertionError(f"the agent did not end: {child.before}")


def cores() -> list[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


#: Those of the whole test run, before each of its processes took its share.
EVERY_CORE = cores()


def run_on(share: list[int]) -> None:
    """Run this process, and what it starts from now on, on these cores."""
    if share and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) != 0


class World:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.project = root / "project"
        self.bin = root / "bin"
        self.record = root / "record"
        for folder in (self.home, self.project, self.bin, self.record):
            folder.mkdir(parents=True)
        self.env = {
            "HOME": str(self.home),
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            # the same plans on a machine of any size
            "CCLOCAL_TEST_FREE_BYTES": str(64 << 30),
            # the sandbox is strict, as it is by default: what a fake agent is told and records is beside its folder
            "CCLOCAL_ALLOW_READ": str(FAKES),
            "CCLOCAL_ALLOW_WRITE": str(self.record),
        }
        if not HAS_SANDBOX:
            self.env["CCLOCAL_SANDBOX"] = "off"
        self.terminal = (24, 100)
        self.patience_s = 120.0
        self._children: list[subprocess.Popen[str]] = []

    # -- programs on PATH

    def program(self, name: str, fake: str, folder: Path | None = None, **switches: Any) -> Path:
        path = (folder or self.bin) / name
        switches = {"record": str(self.record), **switches}
        # never through a link into the real thing
        path.unlink(missing_ok=True)
        path.write_text(
            f"#!{sys.executable} -S\nimport sys\nsys.path.insert(0, {str(FAKES)!r})\n"
            f"from {fake} import main\nmain({switches!r})\n"
        )
        path.chmod(0o755)
        return path

    def fake_server(self, **switches: Any) -> Path:
        return self.program("llama-server", "llama_server", **switches)

    def fake_mlx(self, **switches: Any) -> None:
        """vllm-mlx as it is found: a link on PATH into an environment, whose Python it names."""
        folder = self.root / "mlx/bin"
        folder.mkdir(parents=True, exist_ok=True)
        python = self.program("python", "vllm_mlx", folder, **switches)
        (folder / "vllm-mlx").write_text(f"#!{python}\n")
        (folder / "vllm-mlx").chmod(0o755)
        (self.bin / "vllm-mlx").unlink(missing_ok=True)
        (self.bin / "vllm-mlx").symlink_to(folder / "vllm-mlx")

    def fake_claude(self, **switches: Any) -> Path:
        return self.program("claude", "claude", **switches)

    def real(self, name: str, target: Path | None) -> None:
        """Put a real program on PATH; None = the one of cclocal's own environment is used."""
        if target and name == "llama-server":
            # by itself it starts a thread per core of the machine, also where it may use one core only (conftest.py)
            (self.bin / name).write_text(f'#!/bin/sh\nexec "{target}" --threads {len(cores())} "$@"\n')
            (self.bin / name).chmod(0o755)
        elif target:
            (self.bin / name).symlink_to(target)
        if name == "ollama":
            # it has a thread per core in any case, and is four times as slow with several on one
            run_on(EVERY_CORE)

    # -- running

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-P", "-m", "cclocal"]

    def run(self, *args: str, under: Sequence[str] = (), **env: str) -> subprocess.CompletedProcess[str]:
        """cclocal with these arguments, in the project, to its end; `under` a program that starts it."""
        return subprocess.run(
            [*under, *self.command, *args],
            env={**self.env, **env},
            cwd=self.project,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=self.patience_s,
            check=False,
        )

    def start(self, *args: str, **env: str) -> subprocess.Popen[str]:
        """cclocal in the background, in a session of its own; a server on any port, not on the one of its model."""
        if "--server" in args and not {"--port", "--"} & set(args):
            args = (*args, "--port", str(free_port()))
        with (self.record / "out").open("w") as out, (self.record / "err").open("w") as err:
            child = subprocess.Popen(
                [*self.command, *args],
                env={**self.env, **env},
                cwd=self.project,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                text=True,
                start_new_session=True,
            )
        self._children.append(child)
        return child

    @contextlib.contextmanager
    def on_terminal(self, *args: str, under: Sequence[str] = (), **env: str) -> Iterator[pexpect.spawn]:  # type: ignore[type-arg]
        """cclocal on a terminal of `self.terminal` rows and columns, with somebody to answer; `under` a program."""
        program, *words = (*under, *self.command, *args)
        child: pexpect.spawn = pexpect.spawn(  # type: ignore[type-arg]
            program,
            words,
            env={**self.env, **env},
            cwd=str(self.project),
            encoding="utf-8",
            timeout=PATIENCE_S,
            dimensions=self.terminal,
        )
        try:
            yield child
        finally:
            child.close(force=True)

    def mac(self, ram_gib: int, macos: str, *, denied: bool = False, cpu: str = "Apple M4") -> None:
        """Have everything that only macOS can answer be answered by stand-ins: sysctl, sw_vers, vm_stat, sudo.

        The limit lives in the file `wired_limit`; only under the stand-in for sudo can it be set.
        """
        folder = self.root / "mac"
        folder.mkdir()
        (self.root / "wired_limit").write_text("0\n")
        programs = {
            "sysctl": f"""
                case "$2" in
                hw.memsize) echo {ram_gib << 30};;
                machdep.cpu.brand_string) echo {cpu};;
                iogpu.wired_limit_mb) cat {self.root}/wired_limit;;
                *) case "$1" in
                   iogpu.wired_limit_mb=*) [ -n "$AS_ROOT" ] || {{ echo "not permitted" >&2; exit 1; }}
                      echo "${{1#*=}}" >{self.root}/wired_limit;;
                   *) exit 1;;
                   esac;;
                esac""",
            "sw_vers": f"echo asked >>{self.record}/sw_vers; echo {macos}",
            "vm_stat": f"""
                echo "Mach Virtual Memory Statistics: (page size of 16384 bytes)"
                echo "Pages free:                              {(ram_gib << 30) // 16384 * 9 // 10}."
                echo "Pages inactive:                               10." """,
            "sudo": f"""
                echo "$@" >>{self.record}/sudo
                [ "$1" = -n ] && shift
                {"exit 1" if denied else 'AS_ROOT=1 exec "$@"'}""",
        }
        for name, text in programs.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        self.env["CCLOCAL_TEST_MAC"] = str(folder)

    def wired_limit(self) -> int:
        """What the stand-in Mac's GPU may wire now."""
        return int((self.root / "wired_limit").read_text() or 0)

    # -- looking

    @property
    def sessions(self) -> Path:
        return self.home / ".local/state/cclocal/sessions"

    @property
    def log(self) -> Path:
        return self.home / ".local/state/cclocal/server.log"

    def state(self) -> dict[str, Any]:
        """The state file of the one session there is."""
        return dict(json.loads(wait_for(self._state_text, "a state file")))

    def _state_text(self) -> str | None:
        paths = list(self.sessions.glob("*/session.json"))
        return paths[0].read_text() if paths else None

    def agent(self) -> dict[str, Any]:
        """What the fake agent was given."""
        try:
            wait_for((self.record / "agent.json").exists, "the agent")
        except AssertionError as error:
            said = (self.record / "err").read_text() if (self.record / "err").exists() else ""
            raise AssertionError(f"{error}; cclocal said: {said}; left: {self.leftovers()}") from None
        return dict(json.loads((self.record / "agent.json").read_text()))

    def watched(self) -> int:
        """The process of a running agent as the user's shell sees it: in a sandbox it is bubblewrap's."""
        self.agent()
        return int(self.state()["watched"])

    def server_pids(self) -> dict[str, Any]:
        wait_for((self.record / "pids.json").exists, "the server")
        return dict(json.loads((self.record / "pids.json").read_text()))

    @property
    def server_argv(self) -> list[str]:
        """The arguments of the fake server that was started last."""
        return list(self.server_pids()["argv"])

    def requests(self) -> list[dict[str, Any]]:
        """What the fake server was asked, but for the launcher's own readiness probes."""
        path = self.record / "requests.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        every = [json.loads(line) for line in lines]
        return [r for r in every if r["path"] != "/v1/models" and (r["body"] or {}).get("max_tokens") != 1]

    def ask(
        self, content: Any = "Hi", limit_s: float = 60.0, *, out_tokens: int = 8, model: str = "", **fields: Any
    ) -> httpx.Response:
        """A message of the agent's, with what it was given. `model`: another one than that. `fields`: of its body."""
        got = self.agent()["env"]
        return httpx.post(
            f"{got['ANTHROPIC_BASE_URL']}/v1/messages",
            json={
                "model": model or got["ANTHROPIC_MODEL"],
                "max_tokens": out_tokens,
                "messages": [{"role": "user", "content": content}],
                **fields,
            },
            headers={"x-api-key": got["ANTHROPIC_AUTH_TOKEN"]},
            trust_env=False,
            timeout=limit_s,
        )

    def kill_server(self, number: int = signal.SIGKILL, times: int = 1) -> None:
        """Kill a session's server, and each one that takes its place."""
        servers = [0]

        def another() -> int | None:
            server = int(self.state()["server"])
            return server if server != servers[-1] else None

        for _ in range(times):
            servers.append(wait_for(another, "another server"))
            wait_for(lambda: "listening" in self.log.read_text().rpartition("started again")[2], "an answer")
            os.kill(servers[-1], number)

    def wait_for_end(self, limit_s: float = PATIENCE_S) -> None:
        """Return when no session is left: its keeper removes its folder last."""
        wait_for(lambda: not list(self.sessions.glob("*")), "the session's end", limit_s)

    # -- the invariant

    def leftovers(self) -> list[str]:
        """Processes of this world that are still there: servers, keepers, twins, agents. All know its HOME."""
        found = []
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                if alive(process.pid):
                    found.append(f"{process.pid} {' '.join(process.cmdline())[:120]}")
        return found

    def _processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("HOME") == str(self.home):
                    yield process

    def assert_clean(self) -> None:
        """No process, no session folder, no port is left."""
        wait_for(lambda: not self.leftovers() or None, f"an end of {self.leftovers()}", 15)
        assert not list(self.sessions.glob("*")), "a session's folder was left behind"
        if (self.record / "pids.json").exists():
            assert port_is_free(self.server_pids()["port"])
        if (self.record / "agent.json").exists():
            url = self.agent()["env"].get("ANTHROPIC_BASE_URL", "")
            # a killed process of several threads may hold it for a moment
            assert not url or wait_for(lambda: port_is_free(int(url.rpartition(":")[2])), "the relay's end", 5)

    def close(self) -> None:
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        for child in self._children:
            child.wait()
