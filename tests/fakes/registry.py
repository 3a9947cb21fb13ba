"""A stand-in for Ollama's registry: one model, `library/m:tag`, whose blob is a file.

    python registry.py FILE LOG [TEMPLATE]

With a template it can be pulled from, as it has a configuration then. Prints its port. Blobs are answered by a
redirect, as the real one does; LOG gets a line per request and per answer.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FILE, LOG = Path(sys.argv[1]), Path(sys.argv[2])
TEMPLATE = Path(sys.argv[3]).read_bytes() if len(sys.argv) > 3 else b""
CONFIG = json.dumps({"model_format": "gguf", "model_family": "llama", "model_type": "1M", "file_type": "F16"}).encode()


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


#: What a pull needs besides the model, by digest.
SMALL = {digest_of(data): data for data in (TEMPLATE, CONFIG)} if TEMPLATE else {}


#: A sparse file of gigabytes need not be hashed for its header to be read; one that is pulled must be.
MODEL = digest_of(FILE.read_bytes() if TEMPLATE else FILE.name.encode())
LAYERS = [
    {
        "mediaType": "application/vnd.ollama.image.template",
        "digest": digest_of(TEMPLATE),
        "size": len(TEMPLATE),
    },
    {"mediaType": "application/vnd.ollama.image.model", "digest": MODEL, "size": FILE.stat().st_size},
]
MANIFEST = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
    "config": {
        "mediaType": "application/vnd.docker.container.image.v1+json",
        "digest": digest_of(CONFIG),
        "size": len(CONFIG),
    },
    "layers": LAYERS,
}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        digest = self.path.rpartition("/")[2]
        size = FILE.stat().st_size if digest == MODEL else len(SMALL.get(digest, b""))
        self.send_response(200)
        self.send_header("content-length", str(size))
        self.end_headers()

    def do_GET(self) -> None:
        with LOG.open("a") as log:
            log.write(f"GET {self.path} {self.headers.get('Range') or ''}\n")
        digest = self.path.rpartition("/")[2]
        if self.path == "/v2/library/m/manifests/tag":
            self._answer(200, json.dumps(MANIFEST).encode())
        elif self.path.startswith("/v2/library/m/blobs/") and digest in {MODEL, *SMALL}:
            self.send_response(307)
            # Ollama wants a redirect for each, and to another host
            self.send_header("location", f"http://localhost:{server.server_port}/elsewhere/{digest}")
            self.end_headers()
        elif digest in SMALL:
            self._range(len(SMALL[digest]), lambda start, size: SMALL[digest][start : start + size])
        elif digest == MODEL:
            self._range(FILE.stat().st_size, _part_of_file)
        else:
            self._answer(404 if "missing" in self.path else 500, b"{}")

    def _range(self, size: int, read: Callable[[int, int], bytes]) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        start, end = (int(wanted[1]), min(int(wanted[2]), size - 1)) if wanted else (0, size - 1)
        data = read(start, end - start + 1)
        self._answer(206 if wanted else 200, data, {"content-range": f"bytes {start}-{end}/{size}"} if wanted else None)

    def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        with LOG.open("a") as log:
            log.write(f"SENT {len(data)}\n")
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _part_of_file(start: int, size: int) -> bytes:
    with FILE.open("rb") as file:
        file.seek(start)
        return file.read(size)


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
