"""A model that is not on disk is fetched from a real local hub server, exactly its files, and then served."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pexpect
import pytest

from bench.published_shapes import HEADERS
from bench.sparse import write
from cclocal import tiny
from tests.conftest import ROOT, in_a_namespace
from tests.world import FAKES, World, wait_for

MODEL = """
[models.mine]
name = "Mine"
note = "from the local hub"
native_context_tokens = 32768
context_tokens = 32768
[[models.mine.variants]]
backend = "llama-server"
quant = "Q4"
repo = "org/m"
files = ["mine.gguf"]
"""
Hub = Callable[..., dict[str, str]]


@pytest.fixture
def hub(world: World) -> Iterator[Hub]:
    """Start a hub with switches; returns the environment that points at it."""
    folder = world.root / "hub"
    folder.mkdir()
    model = tiny.gguf()
    (folder / "mine.gguf").write_bytes(model + bytes(30_000_000 - len(model)))
    # a projector, in place for two files
    projector = tiny.projector()
    (folder / "other.gguf").write_bytes(projector + bytes(5_000_000 - len(projector)))
    (world.home / ".config/cclocal").mkdir(parents=True)
    (world.home / ".config/cclocal/config.toml").write_text(MODEL)
    world.fake_server()
    world.fake_claude(exits=0)
    servers: list[subprocess.Popen[str]] = []

    def start(*switches: str) -> dict[str, str]:
        server = subprocess.Popen(
            [sys.executable, str(FAKES / "hub.py"), str(folder), str(world.record / "hub.log"), *switches],
            stdout=subprocess.PIPE,
            text=True,
        )
        servers.append(server)
        assert server.stdout
        return {"HF_ENDPOINT": f"http://127.0.0.1:{server.stdout.readline().strip()}"}

    yield start
    for server in servers:
        server.kill()
        server.wait()
        assert server.stdout
        server.stdout.close()


def asked(world: World) -> list[str]:
    path = world.record / "hub.log"
    return path.read_text().splitlines() if path.exists() else []


def test_exactly_the_variants_files_are_fetched_then_served_offline(world: World, hub: Hub) -> None:
    at = hub()
    done = world.run("--mine", **at)
    assert done.returncode == 0, done.stderr
    assert "Downloading Mine" in done.stderr
    got = [line for line in asked(world) if line.startswith("GET") and "/resolve/" in line]
    # its header first, then all of it, and of nothing else
    assert len(got) == 2
    assert all("mine.gguf" in line for line in got)
    assert [line for line in asked(world) if line.startswith("SENT GET")] == ["SENT GET 16777216", "SENT GET 30000000"]
    assert "Mine needs " in done.stderr
    # nobody else is asked about us
    assert not [line for line in asked(world) if "agent-harnesses" in line]
    model = Path(world.agent()["env"]["HOME"], ".cache/huggingface/hub/models--org--m/snapshots")
    assert [p.name for p in model.rglob("*.gguf")] == ["mine.gguf"]
    before = len(asked(world))
    again = world.run("--mine", **at)
    assert again.returncode == 0
    assert len(asked(world)) == before, "a model on disk needs no network"
    assert "Downloading" not in again.stderr


def test_the_plan_is_made_anew_once_the_header_is_there(world: World, hub: Hub) -> None:
    at = hub()
    config = world.home / ".config/cclocal/config.toml"
    # the whole native context, which the header says is little with six layers
    config.write_text(config.read_text().replace("32768", "131072"))
    before = world.run("--mine", "--dry-run", **at)
    assert "unknown; a start reads the model's header" in before.stdout
    done = world.run("--mine", **at)
    assert done.returncode == 0, done.stderr
    after = world.run("--mine", "--dry-run", **at)
    assert "largest context" in after.stdout
    assert '"max_context_tokens": 131072' in world.run("plan", "mine", "--json", **at).stdout


def test_the_machine_is_looked_at_once_in_a_first_start(world: World, hub: Hub) -> None:
    """A Mac's stand-ins count how often they are asked: with a header from the hub, a download, and three plans."""
    at = hub()
    world.mac(32, "15.5")
    engine = world.bin / "llama-server"
    asked_of_engine = world.record / "asked"
    text = engine.read_text()
    engine.write_text(
        text.replace("\nmain(", f"\nopen({str(asked_of_engine)!r}, 'a').write(sys.argv[1] + '\\n')\nmain(", 1)
    )
    done = world.run("--mine", **at)
    assert done.returncode == 0, done.stderr
    assert (world.record / "sw_vers").read_text().splitlines() == ["asked"]
    questions = [word for word in asked_of_engine.read_text().splitlines() if word != "--model"]
    assert sorted(questions) == ["--help", "--list-devices", "--version"]


def test_a_model_that_cannot_fit_is_told_before_its_gigabytes_come(world: World, hub: Hub) -> None:
    at = hub()
    # a header that promises more than any machine has memory for; its file is as small as the others
    huge = HEADERS["qwen3-next-80b-a3b"]()
    tensors = tuple(replace(t, dims=(*t.dims[:-1], t.dims[-1] * 100)) for t in huge.tensors)
    write(replace(huge, tensors=tensors), world.root / "huge.gguf")
    with (world.root / "huge.gguf").open("rb") as file:
        (world.root / "hub/mine.gguf").write_bytes(file.read(30_000_000))
    done = world.run("--mine", **at)
    assert done.returncode == 25, done.stderr
    assert "TOO BIG" in done.stderr
    assert "--no-mem-check" in done.stderr
    assert [line for line in asked(world) if line.startswith("SENT GET")] == ["SENT GET 16777216"]
    assert world.run("--mine", "--no-mem-check", **at).returncode == 0
    assert world.run("--mine", **at).returncode == 25
    assert world.run("--mine", CCLOCAL_NO_MEMCHECK="1", **at).returncode == 0
    with world.on_terminal("--mine", **at) as child:
        child.expect("Too big")
        child.expect(r"1\) .* instead \(--")
        child.expect(r"Choose \[1/c/q\] \(Enter = q\): ")
        child.sendline("")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 130


def test_the_bar_moves(world: World, hub: Hub) -> None:
    at = hub("--rate", "10000000")
    with world.on_terminal("--mine", **at) as child:
        # some of it, then all of it: a bar that knows the truth
        child.expect(r"Downloading Mine .*[1-2]\d\.\d/30\.0 MB")
        child.expect(r"30\.0/30\.0 MB")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0


@pytest.mark.parametrize(
    ("switches", "words"),
    [
        (["--status", "500"], "500"),
        (["--status", "429"], "429"),
        (["--status", "403", "--gated"], "accept its terms"),
        (["--status", "401"], "hf auth login"),
    ],
    ids=["500", "429", "gated", "401"],
)
def test_a_hub_that_refuses(world: World, hub: Hub, switches: list[str], words: str) -> None:
    done = world.run("--mine", **hub(*switches))
    assert done.returncode == 23
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_that_is_not_there(world: World, hub: Hub) -> None:
    hub()
    done = world.run("--mine", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 23
    assert "Could not reach" in done.stderr


def test_a_file_the_repository_does_not_have(world: World, hub: Hub) -> None:
    at = hub()
    config = world.home / ".config/cclocal/config.toml"
    config.write_text(config.read_text().replace("mine.gguf", "none.gguf"))
    done = world.run("--mine", **at)
    assert done.returncode == 23
    assert "org/m has no file none.gguf" in done.stderr


def test_offline_says_what_is_missing(world: World, hub: Hub) -> None:
    done = world.run("--mine", HF_HUB_OFFLINE="1", **hub())
    assert done.returncode == 22
    assert "org/m is not on this disk" in done.stderr


def blobs(world: World) -> Path:
    return world.home / ".cache/huggingface/hub/models--org--m/blobs"


def two_files(world: World) -> None:
    """The model of one's own, with a projector: two files."""
    config = world.home / ".config/cclocal/config.toml"
    config.write_text(
        config.read_text().replace('files = ["mine.gguf"]', 'files = ["mine.gguf"]\nmmproj = "other.gguf"')
    )


def test_silence_ends_a_download_and_slowness_does_not(world: World, hub: Hub) -> None:
    slow = hub("--rate", "10000000")
    # three seconds in all, a second of patience
    done = world.run("--mine", CCLOCAL_TEST_STALL_S="1.5", **slow)
    assert done.returncode == 0, done.stderr


@pytest.mark.wide
def test_a_download_that_stalls_twice_is_given_up(world: World, hub: Hub) -> None:
    done = world.run("--mine", CCLOCAL_TEST_STALL_S="3", **hub("--stall", "mine.gguf"))
    assert done.returncode == 20
    assert "no byte arrived for 3 s" in done.stderr
    assert "Traceback" not in done.stderr
    # tried once more, in another way
    whole = [line for line in asked(world) if line.startswith("SENT GET") and int(line.split()[2]) > 16777216]
    assert len(whole) == 2
    # what is left of it is removed, and said to be, when it goes on
    assert list(blobs(world).glob("*.incomplete"))
    again = world.run("--mine", **hub())
    assert again.returncode == 0, again.stderr
    assert "Going on with the download at" in again.stderr
    assert not list(blobs(world).glob("*.incomplete"))


def test_interrupted_the_finished_files_stay(world: World, hub: Hub) -> None:
    two_files(world)
    child = world.start("--mine", "--no-mem-check", **hub("--stall", "other.gguf"))
    wait_for(lambda: "mine.gguf" in found(world), "the first file")
    wait_for(lambda: any("other.gguf" in line for line in asked(world)), "the second file")
    child.send_signal(signal.SIGINT)
    assert child.wait(20) == 130
    assert "mine.gguf" in found(world)
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = world.run("fetch", "mine", **offline)
    assert done.returncode == 22
    assert "other.gguf of org/m is not on this disk" in done.stderr
    assert "mine.gguf of" not in done.stderr
    # it is a projector, without which the model works
    done = world.run("--mine", "--", "-p", "x", **offline)
    assert done.returncode == 0, done.stderr
    assert "Without its projector Mine sees no pictures in this session." in done.stderr
    assert "--mmproj" not in json.loads((world.record / "pids.json").read_text())["argv"]


def test_a_projector_of_another_name_is_found_and_a_missing_one_left_out(world: World, hub: Hub) -> None:
    two_files(world)
    at, folder, pids = hub(), world.root / "hub", world.record / "pids.json"
    (folder / "other.gguf").rename(folder / "mmproj-model-F16.gguf")
    done = world.run("--mine", "--", "-p", "x", **at)
    assert done.returncode == 0, done.stderr
    argv = json.loads(pids.read_text())["argv"]
    assert argv[argv.index("--mmproj") + 1].endswith("/mmproj-model-F16.gguf")
    # without a network, by the hub's earlier answer
    done = world.run("--mine", "--", "-p", "x", HF_HUB_OFFLINE="1", **at)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(world.home / ".cache")
    (folder / "mmproj-model-F16.gguf").unlink()
    done = world.run("--mine", "--", "-p", "x", **at)
    assert done.returncode == 0, done.stderr
    assert "org/m has no projector (mmproj) now, so Mine sees no pictures." in done.stderr
    assert "--mmproj" not in json.loads(pids.read_text())["argv"]


def test_a_projector_counts_before_it_is_here(world: World, hub: Hub) -> None:
    two_files(world)
    done = world.run("--mine", "--", "-p", "x", **hub())
    assert done.returncode == 0, done.stderr
    argv = json.loads((world.record / "pids.json").read_text())["argv"]
    assert argv[argv.index("--mmproj") + 1].endswith("other.gguf")
    told = json.loads(world.run("--mine", "--dry-run", "--json").stdout)["memory"]
    # its tensors, and the buffers of a picture of one token
    assert told["vision_bytes"] > 100_000
    assert told["most_picture_tokens"] == 1
    # the line before the download counted it too
    assert f"needs {round(told['need_bytes'] / 2**20)} MiB" in done.stderr


def found(world: World) -> set[str]:
    return {path.name for path in (world.home / ".cache/huggingface/hub").glob("models--org--m/snapshots/*/*")}


def test_a_killed_launcher_takes_its_download_along(world: World, hub: Hub) -> None:
    child = world.start("--mine", **hub("--rate", "5000000"))
    wait_for(lambda: any("SENT GET 30000000" in line for line in asked(world)), "the download")
    child.kill()
    child.wait()
    wait_for(lambda: not world.leftovers(), "its end")


def part_of(world: World) -> Path | None:
    return next(blobs(world).glob("*.cclocal.incomplete"), None)


def cut_off(world: World, hub: Hub, how: str, *switches: str) -> int:
    """A download that ended in the middle; returns how many bytes are there."""
    child = world.start("--mine", "--no-mem-check", **hub("--rate", "20000000", *switches))
    wait_for(lambda: (part := part_of(world)) and part.stat().st_size > 17_000_000, "half of it")
    if how == "killed":
        child.kill()
        child.wait()
    else:
        subprocess.run(["pkill", "-KILL", "-f", f"hub.py {world.root}/hub"], check=True)
        assert child.wait(60) == 23
        assert "Could not reach the model hub" in (world.record / "err").read_text()
    wait_for(lambda: not world.leftovers(), "its end")
    part = part_of(world)
    assert part
    return part.stat().st_size


@pytest.mark.parametrize("how", ["killed", "network gone"])
def test_a_download_that_was_cut_off_goes_on(world: World, hub: Hub, how: str) -> None:
    there_bytes = cut_off(world, hub, how)
    done = world.run("--mine", "--no-mem-check", **hub())
    assert done.returncode == 0, done.stderr
    assert f"Going on with the download at {there_bytes / 1e6:.1f} MB" in done.stderr
    # only what was missing came
    assert f"SENT GET {30_000_000 - there_bytes}" in asked(world)
    assert sum(line == "SENT GET 30000000" for line in asked(world)) == 1
    assert not part_of(world)
    whole = next((world.home / ".cache/huggingface/hub").glob("models--org--m/snapshots/*/mine.gguf"))
    assert whole.read_bytes() == (world.root / "hub/mine.gguf").read_bytes()


def test_a_file_that_was_changed_meanwhile_starts_anew(world: World, hub: Hub) -> None:
    cut_off(world, hub, "killed")
    file = world.root / "hub/mine.gguf"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    done = world.run("--mine", "--no-mem-check", **hub())
    assert done.returncode == 0, done.stderr
    assert "that an unfinished download had left" in done.stderr
    whole = next((world.home / ".cache/huggingface/hub").glob("models--org--m/snapshots/*/mine.gguf"))
    assert whole.read_bytes() == file.read_bytes()


def test_a_server_without_ranges_sends_all_of_it_again(world: World, hub: Hub) -> None:
    cut_off(world, hub, "killed")
    done = world.run("--mine", "--no-mem-check", **hub("--no-ranges"))
    assert done.returncode == 0, done.stderr
    whole = next((world.home / ".cache/huggingface/hub").glob("models--org--m/snapshots/*/mine.gguf"))
    assert whole.read_bytes() == (world.root / "hub/mine.gguf").read_bytes()


def test_a_damaged_part_is_removed_and_the_next_start_is_right(world: World, hub: Hub) -> None:
    cut_off(world, hub, "killed")
    part = part_of(world)
    assert part
    with part.open("r+b") as file:
        file.write(b"damaged")
    at = hub()
    done = world.run("--mine", "--no-mem-check", **at)
    assert done.returncode == 23
    assert "is damaged, and was removed" in done.stderr
    assert world.run("--mine", "--no-mem-check", **at).returncode == 0


def test_two_starts_download_once(world: World, hub: Hub) -> None:
    at = hub("--rate", "5000000")
    first = world.start("--mine", **at)
    wait_for(lambda: any("SENT GET 30000000" in line for line in asked(world)), "the download")
    second = world.run("--mine", **at)
    assert second.returncode == 0, second.stderr
    assert "Another cclocal is downloading it" in second.stderr
    assert first.wait(30) == 0
    assert asked(world).count("SENT GET 30000000") == 1


def test_what_another_program_is_downloading_is_left_alone(world: World, hub: Hub) -> None:
    blobs(world).mkdir(parents=True)
    dead, held = (blobs(world) / f"{letter * 64}.incomplete" for letter in "ab")
    dead.write_bytes(bytes(1_000_000))
    with held.open("wb") as other:
        other.write(bytes(1000))
        done = world.run("--mine", **hub())
    assert done.returncode == 0, done.stderr
    assert "Removed 1.0 MB" in done.stderr
    assert held.exists()
    assert not dead.exists()


def test_a_connection_that_is_closed_early_loses_nothing(world: World, hub: Hub) -> None:
    done = world.run("--mine", "--no-mem-check", **hub("--closes"))
    assert done.returncode == 23
    assert "closed the connection after 20.0 MB of 30.0 MB" in done.stderr
    done = world.run("--mine", "--no-mem-check", **hub())
    assert done.returncode == 0, done.stderr
    assert "SENT GET 10000000" in asked(world)


def test_a_damaged_file_is_found_when_the_server_cannot_load_it(world: World, hub: Hub) -> None:
    """Of the right size, so that nothing else shows it. Only this file is fetched again."""
    at = hub()
    assert world.run("--mine", "--no-mem-check", **at).returncode == 0
    blob = blobs(world) / hashlib.sha256((world.root / "hub/mine.gguf").read_bytes()).hexdigest()
    with blob.open("r+b") as file:
        file.seek(29_000_000)
        file.write(b"damaged")
    (world.record / "pids.json").unlink()
    world.fake_server(die_at_start=1)
    done = world.run("--mine", "--no-mem-check", **at)
    assert done.returncode == 32
    assert "mine.gguf was damaged on this disk" in done.stderr
    assert "the fake died as it was told" in done.stderr
    world.fake_server(die_at_start=1)
    fetched = world.run("--mine", "--no-mem-check", **at)
    # whole again, so the server's own words are the reason
    assert "The server stopped while starting (exit 1)" in fetched.stderr
    assert asked(world).count("SENT GET 30000000") == 2
    (world.record / "pids.json").unlink()


@pytest.mark.parametrize(
    ("switches", "words"),
    [
        (["--lists", "aNULb.gguf"], "lists a file that cannot be right: 'a\\x00b.gguf'"),
        (["--lists", "a\\b.gguf"], "lists a file that cannot be right: 'a\\\\b.gguf'"),
        (["--lists=--version.gguf"], "lists a file that cannot be right: '--version.gguf'"),
        (["--lists", "../../x.gguf"], "lists a file that cannot be right: '../../x.gguf'"),
        (["--lists", "x.gguf", "--size", "-5"], "'x.gguf', -5 bytes"),
        (["--deep"], "recursion"),
    ],
)
def test_a_listing_that_cannot_be_right_is_told(world: World, hub: Hub, switches: list[str], words: str) -> None:
    done = world.run("--model", "org/m:Q4", "--no-mem-check", **hub(*switches))
    assert done.returncode == 23, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_download_process_that_is_killed_is_told_with_how_it_ended(world: World, hub: Hub) -> None:
    child = world.start("--mine", "--no-mem-check", **hub("--rate", "5000000"))
    wait_for(lambda: any("SENT GET 30000000" in line for line in asked(world)), "the download")
    subprocess.run(["pkill", "-SEGV", "-P", str(child.pid), "-f", "download_worker"], check=True)
    assert child.wait(30) == 23
    assert "The download process ended (SIGSEGV) without reporting an error." in (world.record / "err").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_a_disk_that_is_too_small_is_told_before_the_download(world: World, hub: Hub) -> None:
    folder = world.home / ".cache/huggingface"
    folder.mkdir(parents=True)
    words = in_a_namespace("--mount", "/bin/sh", "-c", 'mount -t tmpfs -o size=1g none "$0" && exec "$@"', str(folder))
    done = world.run("--mine", "--no-mem-check", under=words, **hub())
    assert done.returncode == 21, done.stderr
    assert "The download needs 30.0 MB and 2.0 GB to spare" in done.stderr
    assert "SENT GET 30000000" not in asked(world)


@pytest.mark.wide
@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_a_disk_that_fills_up_during_the_download_loses_nothing(world: World, hub: Hub) -> None:
    part = (
        blobs(world) / f"{hashlib.sha256((world.root / 'hub/mine.gguf').read_bytes()).hexdigest()}.cclocal.incomplete"
    )
    part.parent.mkdir(parents=True)
    part.touch()
    at = hub()
    full = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", str(part), "-e", "inject=write:error=ENOSPC:when=200+"]
    done = world.run("--mine", "--no-mem-check", under=full, **at)
    assert done.returncode == 21, done.stderr
    assert "The disk is full" in done.stderr
    there_bytes = part.stat().st_size
    assert there_bytes > 0
    done = world.run("--mine", "--no-mem-check", **at)
    assert done.returncode == 0, done.stderr
    assert f"SENT GET {30_000_000 - there_bytes}" in asked(world)


def test_the_hub_is_asked_whether_it_has_what_the_catalog_names(world: World, hub: Hub) -> None:
    at = hub()
    row = '[[models.{}.variants]]\nbackend = "llama-server"\nquant = "Q4"\nrepo = "owner/name"\nfiles = ["{}"]\n'
    head = '[models.{}]\nname = "x"\nnote = "x"\nnative_context_tokens = 32768\nport = {}\n'
    size, source = "size_bytes = {}\n", 'size_source = "the listing"\n'
    rows = (("right", "mine.gguf", 30_000_000), ("moved", "gone.gguf", 1), ("other", "mine.gguf", 29_999_999))
    catalog = world.root / "models.toml"
    catalog.write_text(
        'default = "right"\n'
        + "".join(
            head.format(name, 9000 + i) + row.format(name, file) + size.format(wanted) + source
            for i, (name, file, wanted) in enumerate(rows)
        )
    )
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/check_catalog.py"), str(catalog)],
        env={**world.env, **at},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "moved, Q4: owner/name has no gone.gguf",
        "other, Q4: 30,000,000 bytes, not 29,999,999",
    ], done.stderr
    assert done.returncode == 1
