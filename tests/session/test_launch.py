"""Between the command and the agent: ports, crashes, servers that are not ours, logs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import stat
import time

import pexpect
import pytest

from tests.world import HAS_SANDBOX, World, alive, wait_for


def test_the_agent_replaces_the_launcher_and_its_status_is_the_commands(world: World) -> None:
    world.fake_server()
    for code in (0, 1, 42):
        world.fake_claude(exits=code)
        assert world.run("--tiny").returncode == code
    for number in (signal.SIGSEGV, signal.SIGTERM):
        world.fake_claude(exits=128 + number)
        # a shell shows these as 139 and 143, as which bubblewrap passes them on
        assert world.run("--tiny").returncode == (128 + number if HAS_SANDBOX else -number)
        assert world.run("--tiny", "--sandbox", "off").returncode == -number


def test_in_the_home_without_a_sandbox_it_is_asked_first(world: World) -> None:
    world.fake_server()
    world.fake_claude(exits=0)
    world.project = world.home
    done = world.run("--tiny", "--sandbox", "off")
    assert done.returncode == 2
    assert f"The agent would work in {world.home}, and may change every file in it." in done.stderr
    assert world.run("--tiny", "--sandbox", "off", "--yes").returncode == 0
    with world.on_terminal("--tiny", "--sandbox", "off") as child:
        child.expect("Start it here")
        child.sendline("n")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 130


def test_everything_after_the_dashes_goes_to_the_agent(world: World) -> None:
    world.fake_server()
    world.fake_claude(exits=0)
    world.run("--tiny", "--", "-p", "fix it", "--", "--model")
    argv = world.agent()["argv"]
    assert argv[-4:] == ["-p", "fix it", "--", "--model"]
    # a flag with one value closes our list, so that no variadic flag swallows the prompt
    assert argv[-6:-4] == ["--permission-mode", "acceptEdits"]


def test_a_server_that_dies_at_once_is_shown_as_a_crash_with_its_last_lines(world: World) -> None:
    world.fake_server(die_at_start=134, die_log="ggml_metal: error: Insufficient Memory")
    world.fake_claude()
    started = time.monotonic()
    done = world.run("--tiny")
    assert done.returncode == 32
    assert "The server stopped while starting (exit 134, out of memory)." in done.stderr
    assert "ggml_metal: error: Insufficient Memory" in done.stderr
    assert "Traceback" not in done.stderr
    assert str(world.home / ".local/state/cclocal/logs/server-") in done.stderr
    # within a second of its death; the rest is our own start
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("switches", "code", "words"),
    [
        ({"lets_anybody_in": True}, 33, "does not check keys"),
        ({"model": "something-else"}, 33, "has something-else, not tiny"),
        ({"foreign": True}, 33, "not a model server"),
        ({"bind": "0.0.0.0"}, 34, "reachable from other machines"),
    ],
    ids=str,
)
def test_a_server_that_is_not_what_it_should_be(
    world: World, switches: dict[str, object], code: int, words: str
) -> None:
    world.fake_server(**switches)
    world.fake_claude()
    done = world.run("--tiny")
    assert done.returncode == code
    assert words in done.stderr


def test_a_taken_port_is_refused_and_its_holder_named_and_left_alone(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = world.run("--tiny", "--port", str(port))
        assert done.returncode == 34
        assert f"Port {port} is in use by " in done.stderr
        assert f"(process {os.getpid()})" in done.stderr
        with socket.create_connection(("127.0.0.1", port)):
            pass


def test_a_server_whose_usual_port_is_taken_takes_another_one(world: World) -> None:
    world.fake_server()
    usual = json.loads(world.run("--tiny", "--server", "--dry-run", "--json").stdout)["port"]
    # where another program has the port already, the test is the same
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            held.enter_context(socket.create_server(("127.0.0.1", usual)))
        with world.on_terminal("--tiny", "--server") as child:
            child.expect(rf"Port {usual} is in use by ")
            child.expect(r"This server takes port\s+(\d+)")
            assert isinstance(child.match, re.Match)
            child.expect(f"cclocal attach {child.match[1]}")
            child.sendintr()
            child.expect(pexpect.EOF)


def test_a_server_port_that_is_taken_at_the_last_moment_is_replaced(world: World) -> None:
    """Another program binds it between the choice and the server's start; it gets neither a key nor a prompt."""
    world.fake_server(load_s=3)
    world.fake_claude()
    child = world.start("--tiny")
    port = world.server_pids()["port"]
    with socket.create_server(("127.0.0.1", port)) as other:
        other.settimeout(0.1)
        world.agent()
        assert world.server_pids()["port"] != port
        heard = b""
        with contextlib.suppress(TimeoutError):
            while True:
                connection, _ = other.accept()
                with connection:
                    connection.settimeout(1)
                    heard += connection.recv(1000)
    assert heard == b""
    child.kill()
    child.wait()


def test_a_chosen_port_is_the_servers(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = world.start("--tiny", "--port", str(port))
    assert world.agent()["env"]["ANTHROPIC_BASE_URL"] == f"http://127.0.0.1:{port}"
    launcher.kill()
    launcher.wait()


def test_the_agent_gets_default_signals_and_no_descriptor_of_ours(world: World) -> None:
    world.fake_server()
    agent = world.bin / "claude"
    agent.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && { echo "2.1.331 (Claude Code)"; exit; }\n'
        # the shell itself reads: while it forks, every signal is blocked for a moment
        "while read -r name value; do case $name in SigBlk:|SigIgn:) echo $name $value;; esac\n"
        "done </proc/self/status\n"
        "ls /proc/$$/fd\n"
    )
    agent.chmod(0o755)
    out = world.run("--tiny").stdout.split()
    assert out[0::2][:2] == ["SigBlk:", "SigIgn:"]
    # the 31 standard ones; what lies above belongs to the C library
    assert [int(mask, 16) & 0x7FFFFFFF for mask in out[1:4:2]] == [0, 0]
    # its three, and the script itself that the shell reads
    assert set(out[4:]) <= {"0", "1", "2", "10", "255"}


def test_a_session_folder_that_cannot_be_made_is_said_in_words(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    world.sessions.parent.mkdir(parents=True)
    world.sessions.write_text("in the way")
    done = world.run("--tiny")
    assert done.returncode == 24
    assert "Cannot make the folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_agent_is_said_before_anything_else_happens(world: World) -> None:
    world.fake_server()
    done = world.run("--tiny")
    assert done.returncode == 35
    assert "claude was not found on PATH" in done.stderr
    assert "npm install -g @anthropic-ai/claude-code" in done.stderr
    assert not (world.record / "pids.json").exists()
    assert not list(world.home.rglob("*.gguf"))


def test_an_agent_too_old_to_be_trusted_is_refused(world: World) -> None:
    world.fake_server()
    claude = world.bin / "claude"
    claude.write_text("#!/bin/sh\necho '2.1.196 (Claude Code)'\n")
    claude.chmod(0o755)
    done = world.run("--tiny")
    assert done.returncode == 35
    assert "older than 2.1.197" in done.stderr


def test_an_agent_that_does_not_run_is_said_too(world: World) -> None:
    world.fake_server()
    claude = world.bin / "claude"
    claude.write_text("#!/bin/sh\necho hello\n")
    claude.chmod(0o755)
    assert world.run("--tiny").returncode == 35
    claude.write_text("#!/no/such/interpreter\n")
    assert world.run("--tiny").returncode == 35


def test_an_engine_that_lacks_a_needed_flag_is_too_old(world: World) -> None:
    world.fake_server(help_lacks=["--jinja"])
    world.fake_claude()
    done = world.run("--tiny", CCLOCAL_LLAMA_SERVER="llama-server")
    assert done.returncode == 31
    assert "--jinja" in done.stderr


def test_an_engine_that_is_not_there(world: World) -> None:
    world.fake_claude()
    done = world.run("--tiny", "--llama-server", "/no/such/llama-server")
    assert done.returncode == 30


def test_a_server_that_dies_during_the_session_is_told_after_it(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    launcher = world.start("--tiny")
    world.agent()
    world.kill_server(signal.SIGSEGV, times=3)
    wait_for(lambda: "server_exit" in world.state(), "the keeper's note")
    launcher.terminate()
    launcher.wait()
    world.assert_clean()
    err = (world.record / "err").read_text()
    assert "The model server stopped during the session (SIGSEGV)." in err
    assert "listening" in err
    assert "cclocal tiny --continue" in err
    assert "Log:" in err


def test_a_server_whose_keeper_is_killed_ends_the_command(world: World) -> None:
    world.fake_server()
    server = world.start("--server", "--tiny", "--port", str(_free()))
    wait_for(lambda: (world.record / "out").read_text(), "the command")
    os.kill(world.state()["keeper"], signal.SIGKILL)
    assert server.wait(20) == 32
    assert "keeper was killed" in (world.record / "err").read_text()
    wait_for(lambda: not alive(world.server_pids()["server"]), "the server's end")
    world.fake_claude(exits=0)
    (world.record / "pids.json").unlink()
    assert world.run("--tiny").returncode == 0


def test_a_damaged_state_file_is_no_obstacle(world: World) -> None:
    world.fake_server()
    world.fake_claude(exits=0)
    for name, text in (("a", ""), ("b", "[1]"), ("c", '{"boot": "x", "server": "y", "keeper": null}')):
        folder = world.sessions / name
        folder.mkdir(parents=True)
        (folder / "session.json").write_text(text)
        os.utime(folder, (1, 1))
    done = world.run("--tiny")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_closed_standard_streams_are_no_obstacle(world: World) -> None:
    import subprocess

    world.fake_server()
    world.fake_claude(exits=5)
    line = " ".join([*world.command, "--tiny"])
    for closed in (">&-", "2>&-", "<&-", "<&- >&- 2>&-"):
        done = subprocess.run(f"{line} {closed}", shell=True, env=world.env, cwd=world.project, check=False)
        assert done.returncode == 5, closed


def test_something_in_the_way_is_said_in_words(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    (world.home / ".local/share/cclocal").mkdir(parents=True)
    # a file where a folder belongs
    (world.home / ".local/share/cclocal/claude").write_text("")
    done = world.run("--tiny")
    assert done.returncode == 24
    assert "cclocal/claude" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_log_that_grows_for_weeks_is_cut_and_one_that_is_gone_ends_nothing(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    launcher = world.start("--tiny")
    world.agent()
    log = world.log.resolve()
    with log.open("a") as out:
        out.write("x" * 17 * 2**20 + "\nthe end\n")
    wait_for(lambda: 0 < log.stat().st_size < 5 * 2**20, "the keeper's scissors")
    wait_for(lambda: log.read_text().endswith("the end\n"), "the end of the log, kept")
    log.write_text("y" * 17 * 2**20)
    log.unlink()
    time.sleep(6)
    assert alive(launcher.pid)
    assert alive(world.server_pids()["server"])
    launcher.kill()
    launcher.wait()


def test_logs_are_private_five_and_the_newest_has_a_name_that_stays(world: World) -> None:
    world.fake_server()
    world.fake_claude(exits=0)
    for _ in range(7):
        assert world.run("--tiny").returncode == 0
    logs = sorted(world.log.parent.glob("logs/*.log"), key=lambda p: p.stat().st_mtime)
    assert len(logs) == 5
    assert world.log.resolve() == logs[-1]
    assert all(stat.S_IMODE(log.stat().st_mode) == 0o600 for log in logs)
    assert "listening" in world.run("logs").stdout
    # an earlier one by its session, and only its end
    oldest = logs[0].stem.removeprefix("server-")
    assert world.run("logs", oldest, "-n", "1").stdout == logs[0].read_text().splitlines(keepends=True)[-1]
    assert "There is no log of a session “never”" in world.run("logs", "never").stderr


def test_the_log_goes_on_in_follow(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    launcher = world.start("--tiny")
    world.agent()
    import subprocess

    follow = subprocess.Popen(
        [*world.command, "logs", "-f"], env=world.env, stdout=subprocess.PIPE, text=True, cwd=world.project
    )
    assert follow.stdout
    assert follow.stdout.readline().endswith(" Model tiny\n")
    assert follow.stdout.readline() == "loading the model\n"
    assert follow.stdout.readline() == "listening\n"
    with world.log.open("a") as log:
        log.write("and on\n")
    assert follow.stdout.readline() == "and on\n"
    follow.send_signal(signal.SIGINT)
    assert follow.wait() == 130
    follow.stdout.close()
    launcher.kill()
    launcher.wait()


def test_no_secret_in_argv_and_every_file_private(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    launcher = world.start("--tiny")
    key = world.agent()["env"]["ANTHROPIC_AUTH_TOKEN"]
    assert key.startswith("cclocal-")
    import psutil

    for process in psutil.process_iter():
        try:
            assert key not in " ".join(process.cmdline())
        except psutil.Error:
            continue
    for path in world.sessions.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    launcher.kill()
    launcher.wait()


def test_the_server_holds_until_ctrl_c_and_prints_a_command_that_works(world: World) -> None:
    world.fake_server()
    world.fake_claude(exits=7)
    server = world.start("--server", "--model", "tiny", "--port", str(_free()))
    line = wait_for(lambda: (world.record / "out").read_text(), "the command").strip()
    assert line.startswith("cclocal attach ")
    elsewhere = world.root / "elsewhere"
    elsewhere.mkdir()
    world.project = elsewhere
    done = world.run(*line.split()[1:], "--", "-p", "say hi", AWS_SECRET_ACCESS_KEY="x", LC_TIME="C.UTF-8")
    assert done.returncode == 7, done.stderr
    agent = world.agent()
    assert agent["argv"][-2:] == ["-p", "say hi"]
    assert agent["cwd"] == str(elsewhere)
    assert agent["env"]["ANTHROPIC_AUTH_TOKEN"].startswith("cclocal-")
    assert agent["env"]["LC_TIME"] == "C.UTF-8"
    assert "AWS_SECRET_ACCESS_KEY" not in agent["env"]
    # no dialog there either: the folder is trusted in the private home
    seeded = json.loads((world.home / ".local/share/cclocal/claude/.claude.json").read_text())
    assert seeded["projects"][str(elsewhere)]["hasTrustDialogAccepted"] is True
    wrong = world.run("attach", "1")
    assert wrong.returncode == 33
    assert f"cclocal attach {line.split()[-1]}" in wrong.stderr
    again = world.run("--server", "--tiny", "--port", line.split()[-1])
    assert again.returncode == 34
    assert "your own session of tiny" in again.stderr
    server.send_signal(signal.SIGINT)
    assert server.wait() == 0


def test_the_server_that_ends_by_itself_ends_the_command(world: World) -> None:
    world.fake_server()
    server = world.start("--server", "--tiny", "--port", str(_free()))
    wait_for(lambda: (world.record / "out").read_text(), "the command")
    world.kill_server(signal.SIGKILL, times=3)
    assert server.wait(20) == 32
    err = (world.record / "err").read_text()
    assert err.count("The model server stopped (SIGKILL) and is started again.") == 2
    assert "The server stopped (SIGKILL)." in err


def test_two_sessions_at_once_do_not_disturb_each_other(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    first = world.start("--tiny")
    one = world.agent()
    (world.record / "agent.json").unlink()
    second = world.start("--tiny")
    two = world.agent()
    assert one["env"]["ANTHROPIC_BASE_URL"] != two["env"]["ANTHROPIC_BASE_URL"]
    first.kill()
    first.wait()
    time.sleep(0.3)
    assert alive(world.server_pids()["server"])
    assert len(list(world.sessions.glob("*"))) == 1
    second.kill()
    second.wait()


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
