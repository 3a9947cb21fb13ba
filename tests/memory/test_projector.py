"""The memory and the tokens of a picture, against llama.cpp's own numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from bench.projectors import PROJECTORS, gemma4, published, qwen3vl
from bench.sparse import write
from cclocal import memory, tiny
from cclocal.checks.picture import image, png
from cclocal.memory.gguf import BadHeaderError, Header
from cclocal.memory.projector import SCREENSHOT_PX, projector_of, unread_projector
from tests.conftest import ENGINES, Engine
from tests.engine import engine as bare_engine
from tools.tiny_model.circuit import WIDTH

MIB = 2**20
#: Name → (tokens of the picture that llama.cpp reserves for, the buffer in MiB that it reports, to 0.01; its flash
#: attention is on). By `[mtmd] estimated worst-case memory usage` of source 0.3.36 for header-only files.
RESERVED = {
    "qwen3-vl-30b-a3b": (2116, 359.68),
    "qwen3.5-9b": (2116, 248.10),
    "qwen3.6-35b-a3b": (2116, 248.10),
    "qwen3.6-27b": (2116, 248.10),
    "gemma-4-e4b": (256, 101.27),
    "gemma-4-12b": (256, 13.53),
    "gemma-4-26b-a4b": (256, 150.63),
    "gemma-4-31b": (256, 150.63),
}
#: Pictures, width × height: screens, photos, very small and very long ones, the largest that Claude Code sends.
SIZES = (
    *((1280, 720), (1920, 1080), (2000, 2000), (2000, 1125), (1125, 2000), (2560, 1440), (3840, 2160)),
    *((640, 480), (100, 100), (32, 32), (47, 47), (1000, 30), (30, 1000), (801, 603), (1472, 1472), (2000, 500)),
)


@pytest.mark.parametrize("name", RESERVED)
def test_buffers_are_what_llama_cpp_reserves(name: str) -> None:
    tokens, mib = RESERVED[name]
    found = projector_of(PROJECTORS[name]())
    assert abs(found.compute_bytes(tokens) / MIB - mib) <= 0.011
    # the largest picture needs more, in proportion
    assert found.compute_bytes() == pytest.approx(found.compute_bytes(tokens) * found.most_tokens / tokens, rel=0.01)


def test_published_dimensions_are_written_anew_from_their_source() -> None:
    assert (Path(memory.__file__).with_name("published_projectors.json")).read_text("utf-8") == published()
    # the size of the one file whose size was published, unsloth's F16 of Gemma 4 26B: 1,193,058,432 bytes
    assert projector_of(PROJECTORS["gemma-4-26b-a4b"]()).weights_bytes == pytest.approx(1_193_058_432, rel=1e-4)


def test_tokens_are_those_that_the_facts_name() -> None:
    qwen, gemma = projector_of(PROJECTORS["qwen3.5-9b"]()), projector_of(PROJECTORS["gemma-4-26b-a4b"]())
    assert [qwen.tokens(*size) for size in ((1280, 720), SCREENSHOT_PX, (2000, 2000))] == [920, 2040, 3969]
    assert [gemma.tokens(*size) for size in ((1280, 720), SCREENSHOT_PX, (2000, 2000))] == [405, 920, 1089]
    assert gemma.capped(512).tokens(*SCREENSHOT_PX) == 480
    assert gemma.capped(None) is gemma
    assert gemma.at_once
    assert not qwen.at_once
    assert not projector_of(PROJECTORS["gemma-4-e4b"]()).at_once


def test_a_projector_of_another_kind_is_an_upper_bound_or_only_its_size() -> None:
    header = PROJECTORS["gemma-4-26b-a4b"]()
    other = projector_of(replace(header, metadata={**header.metadata, "clip.projector_type": "pixtral"}))
    assert not other.is_known
    assert other.most_tokens > 0
    assert unread_projector(5).compute_bytes() == 0
    with pytest.raises(BadHeaderError, match="no projector"):
        projector_of(Header({"general.architecture": "llama"}, ()))
    with pytest.raises(BadHeaderError, match="absurd"):
        projector_of(Header({"general.architecture": "clip", "clip.vision.embedding_length": 2**30}, ()))


@pytest.mark.starts
@pytest.mark.parametrize("engine", ENGINES, indirect=True)
@pytest.mark.parametrize("kind", ["qwen3vl_merger", "gemma4v"])
def test_tokens_are_those_that_the_server_counts(engine: Engine, kind: str, tmp_path: Path) -> None:
    """Header-only projectors of one layer; what is counted around a picture is the same for all."""
    made = qwen3vl(WIDTH, layers=1) if kind == "qwen3vl_merger" else gemma4(WIDTH, 1152, 4304, 1, 16)
    model, file = tmp_path / "eyes.gguf", tmp_path / "projector.gguf"
    model.write_bytes(tiny.gguf("tiny-eyes"))
    write(made, file)
    found = projector_of(made)
    for most in (None, 256):
        words = ("--mmproj", str(file), *(("--image-max-tokens", str(most)) if most else ()), "--ubatch-size", "1120")
        with bare_engine(engine.binary, model, tmp_path, *words) as client:
            counted = [_count(client, size) for size in SIZES]
        expected = [found.capped(most).tokens(*size) for size in SIZES]
        around = counted[0] - expected[0]
        assert [one - around for one in counted] == expected


def _count(client: httpx.Client, size: tuple[int, int]) -> int:
    body = {"model": "m", "messages": [{"role": "user", "content": [image(png((0, 0, 0), *size))]}]}
    done = client.post("/v1/messages/count_tokens", json=body)
    assert done.status_code == 200, done.text
    return int(done.json()["input_tokens"])
