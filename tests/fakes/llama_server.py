"""A stand-in for llama-server with fault switches: what the real one cannot be made to do, on demand.

`World.fake_server(**switches)` writes an executable that runs main() with these switches:

    load_s            seconds between the start and the socket
    ignore_term       TERM is ignored
    worker            "child" or "setsid": a process of its own beside the server
    daemonise         the one who serves has left for a session of its own
    die_at_start      exit status, after die_log was written
    die_after_s       exits 3 so long after the first real message
    bind              address to listen on
    lets_anybody_in   no key is checked
    model             the id it claims, instead of --alias
    hang_messages     /v1/messages never answers
    loads_messages    seconds in which it answers 503
    no_socket         runs, but never listens
    foreign           another program's answers
    replies           what /v1/messages answers, one after another: {"text": …} or {"tool": [name, input]}
    record            a folder: pids.json and one requests.jsonl line per request go there
    devices           what --list-devices tells, a line each
    buffers           lines of the log about buffers
    routes            {path: JSON} that GET answers beside the models
    no_messages       /v1/messages is no route
    obeys             calls tools as asked, but for these faults: "mangles" quotes, "leaks" thinking, "talks" instead
                      of calling, is "silent" about a reply cut off, "swallows" a prompt that is too long, "drops" a
                      connection, answers "odd" things
    faults            see obeys
    tls               a file with a certificate and its key
    help_lacks        flags that --help does not name
"""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FLAGS = (
    "--model --alias --host --port --api-key-file --ctx-size --parallel --jinja --cache-ram --timeout --batch-size "
    "--ubatch-size --chat-template-kwargs --reasoning-budget --temp --top-p --top-k --min-p --repeat-penalty "
    "--override-kv --mmproj --no-webui --offline --list-devices --cache-type-k --cache-type-v --flash-attn "
    "--n-gpu-layers --n-cpu-moe --log-verbosity"
).split()


def main(switches: dict[str, Any]) -> None:
    argv = sys.argv[1:]
    if "--version" in argv:
        print("version: 4242 (fake)", file=sys.stderr)
        return
    if "--help" in argv:
        print("\n".join(f"{flag} X" for flag in FLAGS if flag not in switches.get("help_lacks", ())))
        return
    if "--list-devices" in argv:
        print("Available devices:", *switches.get("devices", ()), sep="\n  ")
        return
    options = {flag: argv[i + 1] for i, flag in enumerate(argv) if flag.startswith("--") and i + 1 < len(argv)}
    if switches.get("ignore_term"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if switches.get("daemonise") and (child := os.fork()):
        os.waitpid(child, 0)
        return
    if switches.get("daemonise"):
        os.setsid()
    pids = {"server": os.getpid()}
    if worker := switches.get("worker"):
        pids["worker"] = subprocess.Popen(["sleep", "900"], start_new_session=worker == "setsid").pid
    record = switches.get("record")
    if record:
        # two that start at once may have the same process id, each in a namespace of its own
        part = f"{record}/pids.{os.urandom(4).hex()}.part"
        with open(part, "w") as out:
            json.dump({**pids, "port": int(options["--port"]), "argv": argv}, out)
        os.replace(part, f"{record}/pids.json")
    if "die_at_start" in switches:
        print(switches.get("die_log", "error: the fake died as it was told"), flush=True)
        sys.exit(switches["die_at_start"])
    print("loading the model", *switches.get("buffers", ()), sep="\n", flush=True)
    time.sleep(switches.get("load_s", 0))
    if switches.get("no_socket"):
        time.sleep(900)
    with open(options["--api-key-file"]) as file:
        key = file.read().strip()
    server = ThreadingHTTPServer((switches.get("bind", "127.0.0.1"), int(options["--port"])), Handler)
    if "tls" in switches:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(switches["tls"])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    server.state = State(switches, key, switches.get("model", options["--alias"]))  # type: ignore[attr-defined]
    print("listening", flush=True)
    server.state.note("listening")  # type: ignore[attr-defined]
    server.serve_forever()


def _said(message: dict[str, Any]) -> tuple[str, bool]:
    """(the text of a message, whether it brings results of tools)."""
    content = message["content"]
    if isinstance(content, str):
        return content, False
    text = "".join(block.get("text", "") for block in content if block["type"] == "text")
    return text, any(block["type"] == "tool_result" for block in content)


class State:
    def __init__(self, switches: dict[str, Any], key: str, model: str) -> None:
        self.switches, self.key, self.model = switches, key, model
        self.replies = list(switches.get("replies", ()))
        self.lock = threading.Lock()
        self.asked, self.began_s = 0, time.monotonic()
        self.times: dict[str, float] = {}

    def note(self, event: str) -> None:
        """Remember when something happened, for the benches."""
        self.times[event] = time.time()
        if record := self.switches.get("record"):
            with open(f"{record}/times.json", "w") as out:
                json.dump(self.times, out)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # one packet per answer: unbuffered, the body would wait 40 ms for the acknowledgement of the headers
    wbufsize = 65536

    def log_message(self, format: str, *args: Any) -> None:
        pass

    @property
    def state(self) -> State:
        return self.server.state  # type: ignore[attr-defined,no-any-return]

    def do_HEAD(self) -> None:
        self._record(None)
        self._json(200, {})

    def do_GET(self) -> None:
        self._record(None)
        if self.state.switches.get("foreign"):
            self._json(200, {"hello": "I am another app"})
        elif self.path in self.state.switches.get("routes", {}):
            self._json(200, self.state.switches["routes"][self.path])
        elif self.path not in ("/v1/models", "/health"):
            self._json(404, {"error": "no such route"})
        elif self._allowed():
            self._json(200, {"object": "list", "data": [{"id": self.state.model}]})

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        body = json.loads(data)
        self._record(body, len(data))
        if not self._allowed():
            return
        silent = self.state.switches.get("no_messages")
        if not body and not silent:
            self._json(500, {"error": {"code": 500, "message": "'messages' is required", "type": "server_error"}})
            return
        if silent or not self.path.startswith("/v1/messages") or "count_tokens" in self.path:
            self._json(404, {"type": "error", "error": {"type": "not_found_error", "message": "no such route"}})
            return
        if self.state.switches.get("hang_messages"):
            time.sleep(900)
        if time.monotonic() - self.state.began_s < self.state.switches.get("loads_messages", 0):
            self._json(503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}})
            return
        if body["max_tokens"] == 1:
            self._json(200, self._message(body, [{"type": "text", "text": "H"}], "max_tokens"))
            self.state.note("probe_answered")
            return
        if "die_after_s" in self.state.switches:
            threading.Timer(self.state.switches["die_after_s"], self._die).start()
        if self.state.switches.get("obeys"):
            self._obey(body)
            return
        with self.state.lock:
            reply = self.state.replies.pop(0) if self.state.replies else {"text": "OK done."}
            self.state.asked += 1
        self._answer(body, reply, f"toolu_{self.state.asked:04d}")

    def _obey(self, body: dict[str, Any]) -> None:
        """Answer as a model that does what it is told, but for what `faults` names."""
        faults = self.state.switches.get("faults", ())
        text, results = _said(body["messages"][-1])
        if len(json.dumps(body)) > 100_000 and "swallows" not in faults:
            self._json(
                400, {"type": "error", "error": {"type": "invalid_request_error", "message": "the prompt is too long"}}
            )
            return
        if "drops" in faults and "notes.py" in text:
            self.close_connection = True
            self.connection.close()
            return
        if "odd" in faults and "one.txt" in text:
            self._json(200, {"type": "message", "content": [{"type": "tool_use", "input": "x"}], "usage": [1]})
            return
        create = re.search(r"Create the file (\S+) with content: (.*)", text, re.DOTALL)
        run = re.findall(r"(?:Run the command|run): (echo \w+|.*)", text)
        if create and not results:
            content = create[2].replace('"', "'") if "mangles" in faults else create[2]
            reply: dict[str, Any] = {"tool": ["Write", {"file_path": create[1], "content": content}]}
        elif run:
            reply = {"tool": ["Bash", {"command": run[0].strip()}]}
        else:
            reply = {"text": "<think>hm</think> Fine." if "leaks" in faults else "Done." if results else "Fine."}
        if "talks" in faults:
            reply = {"text": json.dumps(reply)}
        if body["max_tokens"] < 32 and "tool" in reply:
            if "silent" in faults:
                reply = {"text": ""}
            else:
                self._answer(body, {"text": "I"}, "", stop="max_tokens")
                return
        with self.state.lock:
            self.state.asked += 1
        self._answer(body, reply, f"toolu_{self.state.asked:04d}")

    def _die(self) -> None:
        print("ggml_abort: the fake fell over in mid-session", flush=True)
        os._exit(3)

    def _allowed(self) -> bool:
        given = {self.headers.get("x-api-key"), (self.headers.get("authorization") or "").removeprefix("Bearer ")}
        if self.state.key in given or self.state.switches.get("lets_anybody_in"):
            return True
        self._json(401, {"error": {"message": "Invalid API Key", "type": "authentication_error"}})
        return False

    def _record(self, body: Any, size: int = 0) -> None:
        record = self.state.switches.get("record")
        if record:
            entry = {"method": self.command, "path": self.path, "bytes": size, "body": body}
            with self.state.lock, open(f"{record}/requests.jsonl", "a") as out:
                out.write(json.dumps(entry) + "\n")

    def _json(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _message(self, body: dict[str, Any], content: list[Any], stop: str) -> dict[str, Any]:
        return {
            # the agent takes messages of one id for one message
            "id": f"msg_{self.state.asked:04d}",
            "type": "message",
            "role": "assistant",
            "model": body.get("model"),
            "content": content,
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": {"input_tokens": 100, "output_tokens": 10},
        }

    def _answer(self, body: dict[str, Any], reply: dict[str, Any], call_id: str, stop: str = "end_turn") -> None:
        if "tool" in reply:
            name, given = reply["tool"]
            start = {"type": "tool_use", "id": call_id, "name": name, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(given)}
            full, stop = {**start, "input": given}, "tool_use"
        else:
            start = {"type": "text", "text": ""}
            delta = {"type": "text_delta", "text": reply["text"]}
            full = {"type": "text", "text": reply["text"]}
        if not body.get("stream"):
            self._json(200, self._message(body, [full], stop))
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        for event in (
            {"type": "message_start", "message": self._message(body, [], "")},
            {"type": "content_block_start", "index": 0, "content_block": start},
            {"type": "content_block_delta", "index": 0, "delta": delta},
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": stop, "stop_sequence": None},
                "usage": {"input_tokens": 100, "output_tokens": 10},
            },
            {"type": "message_stop"},
        ):
            self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()
