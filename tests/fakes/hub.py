"""A stand-in for the Hugging Face hub: one repo with the files of a folder, and fault switches.

    python hub.py FOLDER LOG [--rate BYTES_PER_S] [--status N] [--gated] [--stall NAME] [--no-ranges] [--closes]
        [--lists NAME] [--size BYTES] [--deep]

--stall: that file falls silent after its first bytes. --no-ranges: a request for a part gets the whole file. --closes:
a file ends after 20 MB, and nothing says that it is longer. --lists: a file of that name and --size is listed too.
--deep: lists are nested a hundred thousand times.

Prints its port, then serves FOLDER as every repo; LOG gets a line per request.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "a" * 40


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("log", type=Path)
    parser.add_argument("--rate", type=int, default=0)
    parser.add_argument("--status", type=int, default=0)
    parser.add_argument("--gated", action="store_true")
    parser.add_argument("--stall")
    parser.add_argument("--no-ranges", action="store_true")
    parser.add_argument("--closes", action="store_true")
    parser.add_argument("--lists")
    parser.add_argument("--size", type=int, default=1)
    parser.add_argument("--deep", action="store_true")
    options = parser.parse_args()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.options = options  # type: ignore[attr-defined]
    print(server.server_address[1], flush=True)
    server.serve_forever()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        options = self.server.options  # type: ignore[attr-defined]
        with options.log.open("a") as log:
            log.write(f"{self.command} {self.path}\n")
        files = {p.name: p.read_bytes() for p in sorted(options.folder.iterdir())}
        if options.status:
            self._error(options.status, "GatedRepo" if options.gated else "")
        elif "/resolve/" in self.path:
            name = self.path.split("/")[-1].split("?")[0]
            silent = name == options.stall and not (self.headers.get("Range") or "").startswith("bytes=0-")
            self._file(files.get(name), options.rate, silent=silent)
        elif "/tree/" in self.path:
            rows = [
                {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for n, d in files.items()
            ]
            self._json(200, rows)
        else:
            siblings: Any = [{"rfilename": n, "size": len(d)} for n, d in files.items()]
            if options.lists:
                siblings.append({"rfilename": options.lists.replace("NUL", "\0"), "size": options.size})
            info = {"id": "org/m", "modelId": "org/m", "sha": COMMIT, "siblings": siblings, "tags": []}
            self._json(200, {**info, "private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0})

    def _error(self, status: int, code: str) -> None:
        data = b'{"error": "no"}'
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        if self.server.options.deep:  # type: ignore[attr-defined]
            data = b"[" * 100_000 + b"]" * 100_000
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _file(self, data: bytes | None, rate: int, *, silent: bool) -> None:
        if data is None:
            self._error(404, "EntryNotFound")
            return
        etag, whole = hashlib.sha256(data).hexdigest(), len(data)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        # a header is asked for as bytes=0-N
        if wanted and self.server.options.no_ranges and wanted[1] != "0":  # type: ignore[attr-defined]
            wanted = None
        if wanted:
            data = data[int(wanted[1]) : int(wanted[2]) + 1 if wanted[2] else None]
        with self.server.options.log.open("a") as log:  # type: ignore[attr-defined]
            log.write(f"SENT {self.command} {len(data)}\n")
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("content-range", f"bytes {wanted[1]}-{int(wanted[1]) + len(data) - 1}/{whole}")
        self.send_header("etag", f'"{etag}"')
        self.send_header("x-repo-commit", COMMIT)
        if self.server.options.closes and self.command == "GET" and not wanted:  # type: ignore[attr-defined]
            data = data[:20_000_000]
            self.close_connection = True
            self.send_header("connection", "close")
        else:
            self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if silent:
            self.wfile.write(data[:100_000])
            self.wfile.flush()
            time.sleep(900)
        step = max(1, rate // 20) if rate else len(data)
        for at in range(0, len(data), step):
            self.wfile.write(data[at : at + step])
            if rate:
                time.sleep(0.05)


if __name__ == "__main__":
    main()
