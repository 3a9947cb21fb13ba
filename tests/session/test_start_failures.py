"""Starts that fail or take long: what is said, and that nothing is left."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from cclocal.errors import CclocalError, DiskFullError, FolderError
from cclocal.paths import Env, Folders
from cclocal.session.serve import os_errors_in_words
from tests.conftest import in_a_namespace
from tests.world import World, alive, wait_for


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x"), DiskFullError, "disk is full: /x"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), FolderError, "/x/y cannot be used: Permission"),
        (OSError(errno.EMFILE, "Too many open files", "/x"), CclocalError, "The start failed: Too many open files"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), CclocalError, "The start failed: Cannot allocate memory"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), CclocalError, "Connection reset"),
    ],
)
def test_an_error_of_the_system_is_told_as_what_it_is(
    tmp_path: Path, error: OSError, kind: type[CclocalError], words: str
) -> None:
    env = Env({}, Folders(tmp_path, tmp_path, tmp_path, tmp_path))
    with pytest.raises(CclocalError, match=words) as caught, os_errors_in_words(env):
        raise error
    assert type(caught.value) is kind


def on_a_full_disk(folder: Path) -> list[str]:
    """What runs a program in a world whose `folder` takes no more files."""
    script = 'mount -t tmpfs -o nr_inodes=1 none "$0" && exec "$@"'
    return in_a_namespace("--mount", "/bin/sh", "-c", script, str(folder))


def test_a_capture_ends_with_a_start_that_fails(world: World) -> None:
    """The agent that is started to see its first request is not left running."""
    world.fake_mlx()
    world.fake_claude(sends_after_s=300)
    world.sessions.mkdir(parents=True)
    done = subprocess.run(
        [*on_a_full_disk(world.sessions), *world.command, "--tiny", "--backend", "vllm-mlx"],
        env=world.env,
        cwd=world.project,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 32, done.stderr
    assert "No space left on device" in done.stderr
    assert world.leftovers() == []
    assert not list((world.home / ".cache/cclocal/rehearsals").glob("*"))


def test_a_full_disk_is_named_wherever_it_is_met(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    folder = world.home / ".cache"
    folder.mkdir()
    words = [*on_a_full_disk(folder), *world.command, "--tiny"]
    done = subprocess.run(words, env=world.env, cwd=world.project, capture_output=True, text=True, check=False)
    assert done.returncode == 21, done.stderr
    assert "The disk is full" in done.stderr
    assert str(folder) in done.stderr


def test_a_slow_capture_is_waited_for_once_and_remembered(world: World) -> None:
    world.fake_mlx()
    world.fake_claude(exits=0, sends_after_s=7)
    assert world.run("--tiny", "--backend", "vllm-mlx").returncode == 0
    (row,) = json.loads((world.home / ".cache/cclocal/rehearsals.json").read_text()).values()
    assert len(row["requests"]) == 2


#: pidfd_open has the same number on every architecture.
_PIDFD_OPEN = 434


def without_pidfd() -> None:
    """Forbid pidfd_open to this process and its children, as a strict seccomp filter does."""
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.ENOSYS
    # load the system call's number; is it pidfd_open? refuse : allow
    program = b"".join(
        struct.pack("HBBI", *row)
        for row in ((0x20, 0, 0, 0), (0x15, 0, 1, _PIDFD_OPEN), (0x06, 0, 0, refuse), (0x06, 0, 0, allow))
    )
    buffer = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)
    if libc.prctl(22, 2, ctypes.create_string_buffer(header), 0, 0) != 0:
        os._exit(99)


@pytest.mark.skipif(sys.platform != "linux", reason="pidfd and seccomp are Linux's")
@pytest.mark.parametrize("party", ["agent", "server"])
def test_a_kernel_without_pidfd_is_watched_all_the_same(world: World, party: str) -> None:
    world.fake_server()
    world.fake_claude()
    with (world.record / "err").open("w") as err:
        child = subprocess.Popen(
            [*world.command, "--tiny"],
            env=world.env,
            cwd=world.project,
            stdin=subprocess.DEVNULL,
            stderr=err,
            start_new_session=True,
            preexec_fn=without_pidfd,
        )
    agent = world.watched()
    who = world.server_pids()
    if party == "agent":
        os.kill(agent, signal.SIGKILL)
    else:
        world.kill_server(times=3)
        wait_for(lambda: "server_exit" in world.state(), "the keeper's note")
        child.kill()
    child.wait()
    wait_for(lambda: not alive(who["server"]), "the server's end")


def test_a_session_that_was_killed_answers_nothing_any_more(world: World) -> None:
    """Its log ends in the middle of a reply, and no keeper holds it."""
    text = (Path(__file__).parents[1] / "agents/logs/llama-server.log").read_text()
    logs = world.home / ".local/state/cclocal/logs"
    logs.mkdir(parents=True)
    (logs / "server-deadbeef.log").write_text(text[: text.index("cached n_tokens = 4101")])
    (logs.parent / "server.log").symlink_to("logs/server-deadbeef.log")
    shown = world.run("stats").stdout
    assert "Being answered now" not in shown
    assert json.loads(world.run("stats", "--json").stdout)["now"] is None


def test_a_model_in_a_sessions_record_is_in_use(world: World) -> None:
    """macOS shows no memory maps, and a server may not hold its file open: the record of the session counts."""
    world.fake_server()
    world.fake_claude()
    repo = world.home / ".cache/huggingface/hub/models--org--m"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text("abc")
    from cclocal import tiny

    (repo / "blobs").mkdir()
    (repo / "blobs/x").write_bytes(tiny.gguf())
    (repo / "snapshots/abc").mkdir(parents=True)
    (repo / "snapshots/abc/m-Q4_K_M.gguf").symlink_to("../../blobs/x")
    child = world.start("--model", "org/m:Q4_K_M")
    world.agent()
    refused = world.run("--rm", "org/m", "--yes")
    assert refused.returncode == 2
    assert "in use by your session" in refused.stderr
    assert (repo / "blobs/x").exists()
    child.kill()
    child.wait()
    world.wait_for_end()
    assert world.run("--rm", "org/m", "--yes").returncode == 0
