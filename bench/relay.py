"""What the relay costs between an agent and its server: python bench/relay.py [RUNS]

A stand-in engine answers at once; requests go to it directly and through the relay, interleaved, in one run. Shown are
medians: the first byte for prompts of 20 kB, 200 kB and 2 MB, a stream of 500 tokens, and the relay's memory.
Aims: +1 ms for 200 kB, +5 ms for 2 MB, a stream at a ratio of at most 1.02.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time

import psutil

from cclocal.server import relay
from cclocal.server.process import start_of
from cclocal.server.start import free_port, listen

TOKENS, TOKEN_S = 500, 0.004
ENGINE = f"""
import socket, sys, threading, time
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))

def serve(client):
    data = b""
    while b"\\r\\n\\r\\n" not in data:
        data += client.recv(65536)
    head, _, body = data.partition(b"\\r\\n\\r\\n")
    length = [int(line.split(b":")[1]) for line in head.split(b"\\r\\n") if line.lower().startswith(b"content-length")]
    left = (length or [0])[0] - len(body)
    while left > 0:
        left -= len(client.recv(65536))
    client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nConnection: close\\r\\n\\r\\n")
    tokens = {TOKENS} if b"stream" in head else 1
    for _ in range(tokens):
        client.sendall(b"data: a token\\n\\n")
        if tokens > 1:
            time.sleep({TOKEN_S})
    client.close()

while True:
    client, _ = listener.accept()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=serve, args=(client,), daemon=True).start()
"""


def ask(port: int, key: str, body: bytes, path: str = "/v1/messages") -> tuple[float, float]:
    """(seconds to the first byte of the answer's body, to its end)."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nx-api-key: {key}\r\nContent-Length: {len(body)}\r\n\r\n"
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(head.encode() + body)
        heard = b""
        while b"data: " not in heard:
            heard += connection.recv(65536)
        first_s = time.perf_counter() - began
        while connection.recv(65536):
            pass
        return first_s, time.perf_counter() - began


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 150
    port = free_port()
    engine = subprocess.Popen([sys.executable, "-c", ENGINE, str(port)], start_new_session=True)
    listener = listen(None)
    ours, theirs = socket.socketpair()
    ends = (listener.fileno(), theirs.fileno())
    env = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    program = [sys.executable, "-I", "-S", relay.__file__, *map(str, ends)]
    process = subprocess.Popen(program, pass_fds=ends, env=env)
    try:
        options = {"session": "bench", "key": "k", "url": f"http://127.0.0.1:{port}", "is_ours": True, "fields": []}
        started = {"server": engine.pid, "start": start_of(engine.pid), "again": False}
        for message in ({**options, "health": "/health"}, started):
            ours.sendall(json.dumps(message).encode() + b"\n")
        ours.recv(4096)
        through = listener.getsockname()[1]
        for size in (20_000, 200_000, 2_000_000):
            body = b"x" * size
            pairs = [(ask(port, "k", body)[0], ask(through, "k", body)[0]) for _ in range(runs)]
            direct, relayed = (statistics.median(column) * 1000 for column in zip(*pairs, strict=True))
            print(f"{size:>9,} bytes: first byte {direct:.2f} ms, relayed {relayed:.2f} ms (+{relayed - direct:.2f})")
        pairs = [
            (ask(port, "k", b"", "/stream")[1], ask(through, "k", b"", "/stream")[1]) for _ in range(max(3, runs // 30))
        ]
        direct, relayed = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{TOKENS} tokens: {direct:.3f} s, relayed {relayed:.3f} s: ratio {relayed / direct:.3f}")
        memory = psutil.Process(process.pid).memory_full_info()
        print(f"the relay: {memory.pss / 1e6:.1f} MB PSS, {memory.uss / 1e6:.1f} MB private")
    finally:
        for child in (process, engine):
            child.kill()
            child.wait()


if __name__ == "__main__":
    main()
