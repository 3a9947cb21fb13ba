"""Other machines that hold a part of a model for llama.cpp: workers of its RPC (ggml-rpc-server).

A worker takes one client at a time and lets a second one wait without end, so all are asked before the server starts,
with a limit. The protocol has neither a key nor encryption.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import replace

from cclocal.errors import BackendMissingError, NotReadyError, UsageError
from cclocal.facts import Engine
from cclocal.programs import ask
from cclocal.settings import Settings

#: How to get an engine that has it.
BUILD = "a llama-server built with cmake -DGGML_RPC=ON, on PATH or by --llama-server PATH"
#: Seconds in which a worker must take a connection, and in which all must have told their devices.
_CONNECT_S, _TELL_S = 3.0, 20.0
_ADDRESS = re.compile(r"(?P<host>[\w.-]+):(?P<port>\d{1,5})", re.ASCII)
_DEVICE = re.compile(r"^\s*(RPC\d+: .+\(\d+ MiB.*)$", re.MULTILINE)


def addresses(settings: Settings) -> tuple[str, ...]:
    """The workers that --rpc names. Raises UsageError for what is no address, or one of the public internet."""
    found = tuple(word.strip() for word in (settings.rpc or "").split(",") if word.strip())
    if found and settings.also:
        raise UsageError("--also is not possible with --rpc: which workers are left is planned for one model.")
    for word in found:
        match = _ADDRESS.fullmatch(word)
        if not match or not 0 < int(match["port"]) < 65536:
            raise UsageError(
                f"--rpc {word}: not an address of a worker.{settings.origin('rpc')}", hint="--rpc 10.0.0.2:50052"
            )
        if _is_public(match["host"]):
            raise UsageError(
                f"--rpc {word}: RPC has neither a key nor encryption, and this is an address of the public internet.",
                hint="a private wire, or ssh -L 50052:127.0.0.1:50052 and --rpc 127.0.0.1:50052",
            )
    if len(set(found)) < len(found):
        raise UsageError("--rpc names a worker twice.")
    return found


def _is_public(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        # a name of the user's own network
        return False


def with_workers(engine: Engine, workers: tuple[str, ...], environ: Mapping[str, str]) -> Engine:
    """The engine with the workers' devices before its own. Raises BackendMissingError if it cannot use workers,
    NotReadyError for one that does not answer.
    """
    for worker in workers:
        host, _, port = worker.rpartition(":")
        try:
            socket.create_connection((host, int(port)), _CONNECT_S).close()
        except OSError as error:
            raise NotReadyError(
                f"The worker at {worker} does not answer.",
                cause=[error.strerror or str(error)],
                hint=f"ggml-rpc-server -H ADDRESS -p {port} on that machine, which only a private wire may reach",
            ) from None
    argv = [*engine.command, "--rpc", ",".join(workers), "--list-devices"]
    try:
        done = ask(argv, environ, _TELL_S)
    except subprocess.TimeoutExpired:
        raise NotReadyError(
            f"A worker of {', '.join(workers)} does not tell its memory.",
            hint="end the program that uses it: a worker takes one client at a time",
        ) from None
    devices = _DEVICE.findall(done.stdout)
    if "not supported" in done.stderr + done.stdout:
        raise BackendMissingError(f"{engine.command[0]} was built without RPC.", hint=BUILD)
    if len(devices) < len(workers):
        raise NotReadyError(
            f"The workers at {', '.join(workers)} cannot be used.", cause=done.stderr.strip().splitlines()[-2:]
        )
    return replace(engine, devices=(*devices, *engine.devices), workers=workers)
