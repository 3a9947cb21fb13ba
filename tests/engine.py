"""llama.cpp's server itself, without cclocal around it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx

from cclocal import http
from cclocal.backends.llama_server import xllamacpp_server
from cclocal.server.start import free_port
from tests.world import wait_for


@contextlib.contextmanager
def engine(binary: Path | None, model: Path, folder: Path, *words: str) -> Iterator[httpx.Client]:
    """A client of the server, once it answers; None = the one in the wheel. It saves slots in `folder`."""
    program = [str(binary)] if binary else [sys.executable, "-P", "-m", xllamacpp_server.__name__]
    key, port = folder / "key", free_port()
    key.write_text("key\n")
    flags = f"--model {model} --alias m --port {port} --api-key-file {key} --ctx-size 8192 --parallel 1".split()
    more = ["--slot-save-path", f"{folder}/", "--log-verbosity", "1", *words]
    with (
        subprocess.Popen([*program, *flags, *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child,
        http.client(f"http://127.0.0.1:{port}", "key", limit_s=900.0) as client,
    ):

        def is_up() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return client.get("/health").status_code == 200
            return False

        try:
            wait_for(is_up, "the engine", 120)
            yield client
        finally:
            child.kill()
