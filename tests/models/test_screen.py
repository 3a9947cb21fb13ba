"""What could run code while a model is loaded is refused before it is loaded; so is another file than a pinned one."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest

from cclocal import tiny
from cclocal.errors import UnsafeModelError
from cclocal.models.catalog import Variant
from cclocal.models.screen import MOST_TEMPLATE_BYTES, refuse_unsafe
from cclocal.paths import Env
from tests.fakes.hub import COMMIT
from tests.models.test_fetch import MODEL, Hub
from tests.models.test_fetch import hub as hub
from tests.world import World


@pytest.fixture
def env(tmp_path: Path) -> Env:
    return Env.of({"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"})


def folder(tmp_path: Path, **files: str) -> Variant:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    for name, text in files.items():
        (model / name.replace("_dot_", ".")).write_text(text)
    return Variant("vllm-mlx", "any", path=str(model), form="mlx")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config_dot_json", json.dumps({"model_file": "x.py"})),
        ("tokenizer_config_dot_json", json.dumps({"auto_map": {"AutoTokenizer": ["x.T", None]}})),
        ("modeling_dot_py", "x"),
        ("pytorch_model_dot_bin", "x"),
        ("extra_dot_pkl", "x"),
    ],
)
def test_code_in_a_folder_is_refused_unless_this_very_state_is_trusted(
    tmp_path: Path, env: Env, name: str, text: str
) -> None:
    variant = folder(tmp_path, **{name: text})
    with pytest.raises(UnsafeModelError) as refused:
        refuse_unsafe(variant, variant.source, (), env)
    assert refused.value.exit_code == 40
    assert name.replace("_dot_", ".") in refused.value.cause[0]
    words = str(refused.value.hint).rpartition("--trust-model ")[2]
    refuse_unsafe(variant, variant.source, (words,), env)
    # what is changed afterwards is not trusted
    (Path(variant.source) / "more.py").write_text("y")
    with pytest.raises(UnsafeModelError):
        refuse_unsafe(variant, variant.source, (words,), env)


def test_plain_data_is_not_refused(tmp_path: Path, env: Env) -> None:
    variant = folder(tmp_path, tokenizer_dot_json="{}", README_dot_md="auto_map", model_dot_safetensors="x")
    refuse_unsafe(variant, variant.source, (), env)


def test_the_template_of_a_gguf_file_is_limited(tmp_path: Path, env: Env) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    for size, is_refused in ((1000, False), (MOST_TEMPLATE_BYTES + 1, True), (5 * MOST_TEMPLATE_BYTES, True)):
        file = tmp_path / "m.gguf"
        head = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1)
        file.write_bytes(head + text("tokenizer.chat_template") + struct.pack("<I", 8) + text("x" * size))
        variant = Variant("llama-server", "any", path=str(file))
        if is_refused:
            with pytest.raises(UnsafeModelError, match="run code"):
                refuse_unsafe(variant, variant.source, (), env)
        else:
            refuse_unsafe(variant, variant.source, (), env)


def test_the_models_of_this_project_pass(tmp_path: Path, env: Env) -> None:
    for is_mlx in (False, True):
        built = tiny.build(tmp_path / "models", is_mlx=is_mlx)
        variant = Variant("vllm-mlx" if is_mlx else "llama-server", "any", path=str(built))
        refuse_unsafe(variant, str(built), (), env)


def _pinned(world: World, **pins: str) -> None:
    lines = [f'revision = "{pins["revision"]}"'] if "revision" in pins else []
    lines += [f'sha256 = {{ "mine.gguf" = "{pins["sha256"]}" }}'] if "sha256" in pins else []
    (world.home / ".config/cclocal/config.toml").write_text(MODEL + "\n".join(lines))


def test_a_pinned_revision_is_fetched_and_another_one_refused(world: World, hub: Hub) -> None:
    where = hub()
    _pinned(world, revision="b" * 40)
    done = world.run("--mine", **where)
    assert done.returncode == 0, done.stderr
    asked = (world.record / "hub.log").read_text()
    assert f"/resolve/{'b' * 40}/mine.gguf" in asked
    assert (world.home / ".cache/huggingface/hub/models--org--m/refs/main").read_text() == "b" * 40
    _pinned(world, revision=COMMIT)
    done = world.run("--mine", **where)
    assert done.returncode == 40, done.stderr
    assert "the catalog pins" in done.stderr
    assert "cclocal rm org/m" in done.stderr
    _pinned(world, revision="main")
    assert world.run("--mine", **where).returncode == 2


def test_another_file_than_the_pinned_one_is_refused(world: World, hub: Hub) -> None:
    where = hub()
    data = (world.root / "hub/mine.gguf").read_bytes()
    _pinned(world, sha256=hashlib.sha256(data).hexdigest())
    done = world.run("--mine", **where)
    assert done.returncode == 0, done.stderr
    _pinned(world, sha256="0" * 64)
    done = world.run("--mine", **where)
    assert done.returncode == 40, done.stderr
    assert "another file" in done.stderr
