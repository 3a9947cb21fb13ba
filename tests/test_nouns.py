"""Small pieces: environments, placeholders, the tiny model's file, what machines look like."""

from __future__ import annotations

import hashlib
import json
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cclocal import config_file, tiny
from cclocal.agents import config_dir, taken_names
from cclocal.agents.claude.command import environment, window
from cclocal.agents.claude.spec import FORBIDDEN
from cclocal.agents.session import ConfigDir
from cclocal.backends.llama_server import xllamacpp_server
from cclocal.backends.ollama.spec import ollama_url
from cclocal.command import AGENT_NAMES, AGENT_PREFIXES, SHOWN, Command, Endpoint, refusal
from cclocal.discovery import hardware
from cclocal.discovery.look import load_catalog
from cclocal.errors import FolderError
from cclocal.http import is_loopback
from cclocal.models import catalog, hub
from cclocal.paths import packaged, write_private
from cclocal.server import process
from cclocal.ui.tables import quoted
from cclocal.units import how_it_ended
from tools.tiny_model import circuit

NAMES = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ_", min_size=1, max_size=12)


@given(st.dictionaries(NAMES, st.text(min_size=1)))
def test_nothing_but_what_is_allowed_reaches_a_program(base: dict[str, str]) -> None:
    command = Command(("x",), {"SET": "1"}, AGENT_NAMES, AGENT_PREFIXES)
    got = command.environ(base)
    for name, value in got.items():
        assert name == "SET" or ((name in AGENT_NAMES or name.startswith("LC_")) and base[name] == value)
    assert set(got) | set(command.removed(base)) == set(base) | {"SET"}
    assert not set(got) & set(command.removed(base))


def test_a_real_key_is_removed_not_shadowed() -> None:
    command = Command(("x",), {"ANTHROPIC_AUTH_TOKEN": SHOWN.key}, AGENT_NAMES)
    base = {"ANTHROPIC_API_KEY": "sk-ant-real", "ANTHROPIC_AUTH_TOKEN": "real", "PATH": "/bin"}
    assert command.environ(base) == {"PATH": "/bin", "ANTHROPIC_AUTH_TOKEN": SHOWN.key}
    assert command.removed(base) == ("ANTHROPIC_API_KEY",)


@pytest.mark.parametrize(
    "name",
    "ANTHROPIC_API_KEY CLAUDE_CODE_USE_VERTEX CLAUDECODE AWS_PROFILE GOOGLE_APPLICATION_CREDENTIALS HTTPS_PROXY "
    "http_proxy ALL_PROXY NODE_OPTIONS BUN_OPTIONS OTEL_SERVICE_NAME OPENAI_API_KEY LD_PRELOAD "
    "DYLD_INSERT_LIBRARIES API_TIMEOUT_MS DISABLE_TELEMETRY".split(),
)
def test_what_can_divert_a_session_is_refused(name: str) -> None:
    assert refusal(name, FORBIDDEN)


@pytest.mark.parametrize("name", ["GITHUB_TOKEN", "DATABASE_URL", "SSH_AUTH_SOCK", "my_var", "JAVA_HOME"])
def test_the_users_own_variables_may_pass_by_name(name: str) -> None:
    assert refusal(name, FORBIDDEN) is None


def test_text_in_angle_brackets_is_shown_without_quotes() -> None:
    assert quoted(f"http://127.0.0.1:{SHOWN.port}") == "http://127.0.0.1:<free port>"
    assert quoted("two words") == "'two words'"


@given(st.integers(16384, 1_000_000), st.integers(256, 64000))
def test_the_window_leaves_room_for_a_whole_reply(context: int, out: int) -> None:
    if context < window(context, out).least_tokens:
        return
    variables = environment(Endpoint("http://127.0.0.1:1", "key", "model"), context, out)
    compacts_at = int(variables["CLAUDE_CODE_MAX_CONTEXT_TOKENS"]) - min(out, 20000) - 13000
    assert compacts_at == window(context, out).compacts_at_tokens
    assert compacts_at > 0
    assert compacts_at + out < context


# -- the tiny model


def test_the_tiny_model_is_the_same_bytes_everywhere(tmp_path: Path) -> None:
    path = tiny.build(tmp_path)
    data = path.read_bytes()
    assert len(data) == 6_291_008
    assert hashlib.sha256(data).hexdigest() == hashlib.sha256(tiny.gguf()).hexdigest()
    assert tiny.build(tmp_path) == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_codes_of_tokens_are_far_apart() -> None:
    codes = [circuit.code(token) for token in range(200)]
    for i, one in enumerate(codes):
        for other in codes[:i]:
            assert sum(a != b for a, b in zip(one, other, strict=True)) >= 8


# -- the catalog


def test_the_shipped_catalog_is_right() -> None:
    shelf = load_catalog()
    assert shelf.default in shelf.models
    # every model of the guides this grew from, and those that people name beside them
    assert list(shelf.models)[:7] == ["tiny", "gemma-light", "gemma", "review", "coder", "qwen3", "coder7b"]
    assert {"gpt-oss", "qwen3-30b", "nemotron", "qwen3-next", "qwen3-vl", "qwen36", "gpt-oss-120b"} <= set(shelf.models)
    assert set(shelf.recommended) <= set(shelf.models)
    ports = [model.port for model in shelf.models.values()]
    assert len(set(ports)) == len(ports)
    for model in shelf.models.values():
        variant = model.variant("llama-server")
        assert variant, model.id
        assert variant.builtin or variant.repo
        # a size says where it comes from, or is left out
        assert bool(variant.size_bytes) == bool(variant.size_source)
        assert model.context_tokens <= model.native_context_tokens
    sizes = {variant.form: variant.size_bytes for variant in shelf.models["tiny"].variants}
    assert sizes["gguf"] == len(tiny.gguf())
    assert sizes["mlx"] == sum(map(len, tiny.mlx_files().values()))
    assert shelf.find("light").id == "gemma-light"
    assert not any(
        flag in config_file.reserved()
        for _, names in config_file.flags(packaged("models.toml")).values()
        for flag in names
    )
    assert {id_ for id_, _ in config_file.flags(packaged("models.toml")).items()} == set(shelf.models)


def test_a_file_of_the_users_gets_an_id_claude_code_takes_for_a_local_one() -> None:
    for name, id_ in (
        ("My Model (v2).gguf", "My-Model-v2"),
        ("claude-opus-distill.gguf", "local-model"),
        ("---.gguf", "model"),
        ("owner/Some-GGUF:Q8_0", "Some"),
        ("qwen3:8b", "qwen3-8b"),
        ("qwen3:latest", "qwen3"),
        ("hf.co/b/qwen3:Q4", "hf.co-b-qwen3-Q4"),
    ):
        tag = name if "qwen3" in name else None
        assert catalog.of_variant(name, catalog.Variant("ollama", "any", tag=tag), 32768, taken_names()).id == id_


# -- files and folders


@pytest.mark.parametrize(
    ("told", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:4000", "http://127.0.0.1:4000"),
        ("[::]:4000", "http://[::1]:4000"),
        ("::1", "http://[::1]:11434"),
        ("[::1]:4000", "http://[::1]:4000"),
        (":4000", "http://127.0.0.1:4000"),
        ("127.0.0.1:abc", "http://127.0.0.1:11434"),
        ("127.0.0.1:99999", "http://127.0.0.1:11434"),
        ('"box:4000"', "http://box:4000"),
        ("http://box", "http://box:80"),
        ("https://box/path", "https://box:443"),
    ],
)
def test_ollamas_own_rules_for_its_address(told: str, url: str) -> None:
    """Source: Ollama 0.17's envconfig/config_test.go, but that all addresses mean this machine."""
    assert ollama_url({"OLLAMA_HOST": told}) == url


def test_an_address_of_this_machine_is_told_from_others() -> None:
    for url in ("http://127.0.0.1:1", "http://127.0.0.2:1", "http://[::1]:1", "http://localhost:1"):
        assert is_loopback(url)
    for url in ("http://localhost.evil.com:1", "http://192.0.2.1:1", "http://box:1", "http://"):
        assert not is_loopback(url)


def test_a_private_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    write_private(path, "x")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("x", 0o600)
    with pytest.raises(FolderError, match="Cannot"):
        write_private(Path("/proc/nothing/here"), "x")


def test_the_private_home_is_laid_out_anew_and_keeps_only_known_plain_values(tmp_path: Path) -> None:
    mine = tmp_path / "CLAUDE.md"
    mine.write_text("hello")
    folder = tmp_path / "claude"
    seed = {".claude.json": {"a": True, "projects": {"/p": {"trust": True}}}}
    home = ConfigDir(folder, seed, {"CLAUDE.md": mine}, known=frozenset({"userID", "theme"}))
    config_dir.prepare(home)
    (folder / ".claude.json").write_text('{"a": false, "userID": "x", "theme": {"x": 1}, "projects": {"/p": {"n": 1}}}')
    config_dir.prepare(home)
    wanted = {"a": True, "userID": "x", "projects": {"/p": {"trust": True}}}
    assert json.loads((folder / ".claude.json").read_text()) == wanted
    assert (folder / "CLAUDE.md").read_text() == "hello"
    config_dir.prepare(ConfigDir(folder, {}, {"CLAUDE.md": None}))
    assert not (folder / "CLAUDE.md").is_symlink()
    assert mine.read_text() == "hello"
    (folder / ".claude.json").write_text("{broken")
    config_dir.prepare(home)
    assert json.loads((folder / ".claude.json").read_text()) == seed[".claude.json"]


def test_the_hubs_cache_is_found_as_the_hub_finds_it(tmp_path: Path) -> None:
    assert hub.cache({"HOME": "/h"}) == Path("/h/.cache/huggingface/hub")
    assert hub.cache({"HOME": "/h", "XDG_CACHE_HOME": "/x"}) == Path("/x/huggingface/hub")
    assert hub.cache({"HOME": "/h", "HF_HOME": "/f"}) == Path("/f/hub")
    assert hub.cache({"HOME": "/h", "HF_HOME": "/f", "HF_HUB_CACHE": "/c"}) == Path("/c")
    environ = {"HF_HUB_CACHE": str(tmp_path)}
    assert hub.cached("o/m", ("a", "b"), environ) == {}
    repo = tmp_path / "models--o--m"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "snapshots" / "abc" / "a").write_text("x")
    # an interrupted link points at a blob that is not there
    (repo / "snapshots" / "abc" / "b").symlink_to("../../blobs/none")
    assert set(hub.cached("o/m", ("a", "b"), environ)) == {"a"}


# -- machines, from recorded files


def test_graphics_cards_from_what_their_drivers_show(tmp_path: Path) -> None:
    nvidia = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0/information"
    nvidia.parent.mkdir(parents=True)
    nvidia.write_text("Model: \t\t NVIDIA GeForce RTX 4090\nIRQ:   \t\t 150\n")
    amd = tmp_path / "sys/class/drm/card1/device"
    amd.mkdir(parents=True)
    (amd / "vendor").write_text("0x1002\n")
    (amd / "mem_info_vram_total").write_text("536870912\n")
    intel = tmp_path / "sys/class/drm/card0/device"
    intel.mkdir(parents=True)
    (intel / "vendor").write_text("0x8086\n")
    found = list(hardware._linux_gpus(tmp_path))
    assert [(gpu.vendor, gpu.name) for gpu in found] == [
        ("nvidia", "NVIDIA GeForce RTX 4090"),
        ("amd", "an AMD GPU"),
    ]


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    assert hardware.available_bytes(1000, tmp_path) == 1000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("300\n")
    assert hardware.available_bytes(1000, tmp_path) == 1000
    (tmp_path / "memory.max").write_text("700\n")
    assert hardware.available_bytes(1000, tmp_path) == 400


def test_this_machine_has_a_name_and_memory() -> None:
    here = hardware.machine()
    assert here.os in ("linux", "macos")
    assert here.ram_bytes > 2**30


def test_the_wheels_flags_are_llama_servers() -> None:
    assert {"--jinja", "--api-key-file", "--alias", "--ctx-size", "--cache-ram", "--mmproj"} <= xllamacpp_server.flags()
    assert "--override-kv" not in xllamacpp_server.flags()


# -- the keeper


def test_how_a_process_ended_in_words() -> None:
    assert how_it_ended(3) == "exit 3"
    assert how_it_ended(-11) == "SIGSEGV"
    assert how_it_ended(-99) == "signal 99"


def test_the_identity_of_a_process() -> None:
    import os

    with subprocess.Popen(["sleep", "60"]) as child:
        # a process that started later has another one
        assert process.start_of(child.pid) != process.start_of(os.getpid())
        assert process.start_of(child.pid) == process.start_of(child.pid) is not None
        child.kill()
        child.wait()
        assert process.start_of(child.pid) is None
    assert process.boot_id()
