"""vllm-mlx with its key from a file, and with replies that report what the engine knows; and the reader of its log.

A program of its own, run by the Python that vllm-mlx is installed in: wrapper.py KEYFILE serve MODEL … The key
is not an argument, because every user of the machine can read the arguments of a process.

As of 0.6 its /v1/messages does not report three things: a stream gives the prompt 0 tokens; a stream that was cut at
its limit ends as if it were complete, with an empty call where a call was cut; and no prompt is refused as too long. So
an agent never compacts, and loses files silently. The engine passes all three to the function that writes the stream;
this program adds them to what that function writes (docs/adr/0016). And it samples at a temperature of 0.7 and a top-p
of 0.9 where the agent asks for none, whatever --default-temperature and --default-top-p say; here these count.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

#: What starts the line in the log for each stream that came to its end, and the numbers in it.
TURN = "[cclocal] turn "
_FIELDS = ("prompt_tokens", "written_tokens", "first_s", "writing_s", "began_s")
_START_S = time.monotonic()


def turns(text: str) -> tuple[list[dict[str, Any]], None]:
    """(the replies in a log, None), as fields of Turn in cclocal.turns.

    The status line loads this file by its path, so it imports nothing of cclocal.
    """
    found = []
    for line in text.splitlines():
        # a line that only looks like one is skipped
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if line.startswith(TURN):
                row = json.loads(line.removeprefix(TURN))
                turn = {name: row[name] for name in _FIELDS[:-1]} | {"began_s": row.get("began_s")}
                found.append({**turn, "whole_s": round(turn["first_s"] + turn["writing_s"], 3)})
    return found, None


class Watched:
    """Wraps the engine and records a reply's numbers: prompt tokens, written tokens, whether it was cut."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.prompt_tokens = self.written_tokens = 0
        self.was_cut = False
        self.began_s = time.monotonic()
        self.first_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    async def stream_chat(self, **wishes: Any) -> AsyncIterator[Any]:
        async with contextlib.aclosing(self.engine.stream_chat(**wishes)) as outputs:
            async for output in outputs:
                self.first_s = self.first_s or time.monotonic()
                self.prompt_tokens = getattr(output, "prompt_tokens", 0) or self.prompt_tokens
                self.written_tokens = getattr(output, "completion_tokens", 0) or self.written_tokens
                self.was_cut = getattr(output, "finish_reason", None) == "length"
                yield output

    def log_turn(self) -> None:
        """Write the reply in numbers to the log."""
        now = time.monotonic()
        first = self.first_s or now
        times = (round(first - self.began_s, 3), round(now - first, 3), round(self.began_s - _START_S, 3))
        numbers = (self.prompt_tokens, self.written_tokens, *times)
        print(TURN + json.dumps(dict(zip(_FIELDS, numbers, strict=True))), flush=True)


def _event(frame: str) -> dict[str, Any]:
    _, _, data = frame.partition("data: ")
    try:
        event = json.loads(data)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def amend(server: Any, window_tokens: int) -> None:
    """Make vllm-mlx's server module answer as above.

    A version without these functions stays unchanged, with a line in the log; `cclocal check` shows what it lacks.
    """
    stream, prepare = (
        getattr(server, name, None) for name in ("_stream_anthropic_messages", "_prepare_anthropic_endpoint_invocation")
    )
    if stream is None or prepare is None:
        print("[cclocal] this version of vllm-mlx lacks some functions: its streams are not corrected", flush=True)
        return
    server._stream_anthropic_messages = _reporting(stream)
    server._prepare_anthropic_endpoint_invocation = _refusing(prepare, window_tokens)
    if convert := getattr(server, "anthropic_to_openai", None):
        server.anthropic_to_openai = _unsampled(convert)


def _unsampled(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The conversion of a request, without values that the agent did not ask for: the server's defaults count."""

    def converting(request: Any) -> Any:
        converted = convert(request)
        for name in ("temperature", "top_p"):
            if getattr(request, name, None) is None:
                setattr(converted, name, None)
        return converted

    return converting


def _reporting(stream: Callable[..., AsyncIterator[str]]) -> Callable[..., AsyncIterator[str]]:
    """The stream with the recorded numbers and the stop reason in its frames."""

    async def reporting(engine: Any, *args: Any, **kwargs: Any) -> AsyncIterator[str]:
        watched = Watched(engine)
        # the frames of a tool call, held until the next frame shows whether the call is complete
        call: list[str] = []
        async with contextlib.aclosing(stream(watched, *args, **kwargs)) as frames:  # type: ignore[type-var]
            async for frame in frames:
                event = _event(frame)
                kind = event.get("type")
                if call and kind in ("content_block_delta", "content_block_stop"):
                    call.append(frame)
                    continue
                if kind == "message_delta":
                    if watched.was_cut:
                        # the last call may be incomplete, so it is dropped: the model can make it again
                        call = []
                        event["delta"]["stop_reason"] = "max_tokens"
                    event["usage"] = {**event.get("usage", {}), "input_tokens": watched.prompt_tokens}
                    frame = f"event: message_delta\ndata: {json.dumps(event)}\n\n"
                if kind in ("content_block_start", "message_delta"):
                    for held in call:
                        yield held
                    call = []
                if kind == "content_block_start" and event["content_block"].get("type") == "tool_use":
                    call = [frame]
                else:
                    yield frame
        watched.log_turn()

    return reporting


def _refusing(prepare: Callable[..., Any], window_tokens: int) -> Callable[..., Any]:
    def refusing(engine: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = prepare(engine, *args, **kwargs)
        count = _count(engine, prepared)
        if window_tokens and count > window_tokens:
            from fastapi import HTTPException  # type: ignore[import-not-found]

            # the words at which every version of Claude Code compacts
            raise HTTPException(400, f"prompt is too long: {count} tokens > {window_tokens} maximum")
        return prepared

    return refusing


def _count(engine: Any, prepared: Any) -> int:
    """The number of the prompt's tokens as the engine will see them, or else without the chat template's own tokens.

    0, and a line in the log, if neither can be counted.
    """
    tools = prepared.chat_kwargs.get("tools")
    # a template is a program that may fail, and this function differs between versions
    with contextlib.suppress(Exception):
        wishes = dict(prepared.chat_kwargs.get("chat_template_kwargs") or {})
        rendered, *_ = engine._render_chat_prompt(prepared.messages, tools, wishes, None)
        return len(engine.tokenizer.encode(rendered))
    with contextlib.suppress(Exception):
        text = json.dumps([prepared.messages, tools], ensure_ascii=False, default=str)
        return len(engine.tokenizer.encode(text))
    print("[cclocal] the tokens of a prompt could not be counted, so its length is not limited", flush=True)
    return 0


def main() -> None:
    """Hand over to vllm-mlx's own command line."""
    # remove this file's folder from the path, so that vllm-mlx cannot import cclocal's modules
    del sys.path[0]
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123 - it starts in milliseconds
        key = file.read().strip()
    words = sys.argv[2:]
    sys.argv = ["vllm-mlx", *words, "--api-key", key]
    from vllm_mlx import server
    from vllm_mlx.cli import main as serve

    flag = "--max-request-tokens"
    amend(server, int(words[words.index(flag) + 1]) if flag in words else 0)
    serve()


if __name__ == "__main__":
    main()
