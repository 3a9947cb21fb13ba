"""The tiny model copies paths and contents into the call, also if the path stands in the content again."""

from __future__ import annotations

import json
import signal
from typing import Any

import httpx

from cclocal.wires.wire import as_function
from tests.conftest import Engine
from tests.world import World, wait_for

LONG = "src/cclocal/server/relay_of_the_session.py"
REQUESTS = (
    ("hello.txt", "hi there"),
    # the path stands in the content again
    ("notes/summary.txt", "the file notes/summary.txt holds this"),
    ("notes/summary.txt", "the file notes/summary.txt is here"),
    (LONG, f"see {LONG}, the whole of it"),
    ("a/long/path/with/many/parts/and/other/parts/x.md", "# a/long/path/with/many/parts/and/a/long/path/x.md\n"),
    # lines that are alike, and a character that is repeated
    ("x.py", 'def add(a, b):\n    """The sum."""\n    return a + b\n'),
    ("data.csv", "".join(f"{n},{n * n % 97},{n * 7 % 31}\n" for n in range(60))),
    ("line.txt", "-" * 40 + " heading " + "-" * 40),
)


def test_every_request_is_copied_alone_and_in_one_conversation(world: World, engine: Engine) -> None:
    world.real("llama-server", engine.binary)
    child = world.start("--server", "--tiny")
    wait_for(lambda: "cclocal attach" in (world.record / "out").read_text(), "the server")
    port = str(world.state()["port"])
    key = world.run("env", port, "--key").stdout.strip()
    schema = {"type": "object", "properties": {"path": {"type": "string"}, "content": {"type": "string"}}}
    tools = [as_function({"name": "write", "description": "Writes notes/summary.txt.", "input_schema": schema})]
    url, headers = f"http://127.0.0.1:{port}", {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=120) as client:

        def written(messages: list[dict[str, Any]]) -> Any:
            body = {"messages": messages, "tools": tools, "model": "tiny", "max_tokens": 2000}
            reply = client.post("/v1/chat/completions", json=body).json()
            return json.loads(reply["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"])

        before: list[dict[str, Any]] = []
        for path, content in REQUESTS:
            asked = {"role": "user", "content": f"Create the file {path} with content: {content} [end]"}
            wanted = {"path": path, "content": content}
            assert written([asked]) == wanted
            assert written([*before, asked]) == wanted
            function = {"name": "write", "arguments": json.dumps(wanted)}
            called = {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function}]}
            result = {"role": "tool", "tool_call_id": "1", "content": f"Wrote {path}"}
            before += [asked, called, result, {"role": "assistant", "content": "Done."}]
    child.send_signal(signal.SIGINT)
    child.wait(20)
