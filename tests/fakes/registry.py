"""A stand-in for Ollama's registry: one model, `library/m:tag`, whose blob is a file.

    python registry.py FILE LOG

Prints its port. Blobs are answered by a redirect, as the real one does; LOG gets a line per request and per answer.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FILE, LOG = Path(sys.argv[1]), Path(sys.argv[2])


class Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        digest = f"sha256:{hashlib.sha256(FILE.name.encode()).hexdigest()}"
        with LOG.open("a") as log:
            log.write(f"GET {self.path} {self.headers.get('Range') or ''}\n")
        if self.path == "/v2/library/m/manifests/tag":
            layers = [
                {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "0" * 64, "size": 9},
                {
                    "mediaType": "application/vnd.ollama.image.model",
                    "digest": digest,
                    "size": FILE.stat().st_size,
                },
            ]
            self._answer(200, json.dumps({"schemaVersion": 2, "layers": layers}).encode())
        elif self.path == f"/v2/library/m/blobs/{digest}":
            self.send_response(307)
            self.send_header("location", "/elsewhere")
            self.end_headers()
        elif self.path == "/elsewhere":
            wanted = re.fullmatch(r"bytes=0-(\d+)", self.headers.get("Range") or "")
            with FILE.open("rb") as file:
                data = file.read(int(wanted[1]) + 1 if wanted else -1)
            self._answer(206, data, {"content-range": f"bytes 0-{len(data) - 1}/{FILE.stat().st_size}"})
        else:
            self._answer(404 if "missing" in self.path else 500, b"{}")

    def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        with LOG.open("a") as log:
            log.write(f"SENT {len(data)}\n")
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
