"""Runs a program on a network of its own, on which this machine has a public address with a web server.

    unshare --net --mount python elsewhere.py HOSTS LOG PROGRAM ARGUMENT…

HOSTS becomes /etc/hosts. The server answers "from outside" on port 443, without TLS, and writes each request to LOG.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: An address that is public everywhere; on this network it is ours.
ADDRESS = "93.184.216.34"
#: linux/sockios.h and linux/if.h
SIOCSIFFLAGS, SIOCSIFADDR, IFF_UP = 0x8914, 0x8916, 1


def main() -> None:
    hosts, log, *command = sys.argv[1:]
    with socket.socket(type=socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
        address = struct.pack("16sHH4s8x", b"lo:1", socket.AF_INET, 0, socket.inet_aton(ADDRESS))
        fcntl.ioctl(any_socket, SIOCSIFADDR, address)
    subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)
    server = ThreadingHTTPServer((ADDRESS, 443), Handler)
    server.daemon_threads = True
    server.log = log  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.exit(subprocess.run(command, check=False).returncode)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        with open(self.server.log, "a") as log:  # type: ignore[attr-defined]
            log.write(f"{self.headers.get('Host')} {self.path}\n")

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"from outside")


if __name__ == "__main__":
    main()
