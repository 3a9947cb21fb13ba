"""A Mac's sandbox: the text of its profile, and that cclocal hands it over. No Mac ran it (docs/unverified.md)."""

from __future__ import annotations

import json
from pathlib import Path

from cclocal.sandbox.seatbelt import profile
from tests.sandbox.test_walls import WALLS
from tests.world import World, wait_for


def test_the_profile_has_the_walls_in_an_order_in_which_the_last_rule_holds() -> None:
    text = profile(WALLS, [8123, 9000])
    lines = text.splitlines()
    assert lines[0] == "(version 1)"
    assert '(allow network-outbound (remote ip "localhost:8123"))' in lines
    order = [
        "(deny network*)",
        "(allow network-outbound",
        "(deny file-write*)",
        "(deny file-read* (subpath",
        "(allow file-read* (subpath",
        "(allow file-write* (subpath",
        "(deny file-write* (subpath",
    ]
    places = [next(n for n, line in enumerate(lines) if line.startswith(start)) for start in order]
    assert places == sorted(places)
    # a name that does not exist cannot be made either
    assert '(subpath "/home/ann/project/.claude")' in lines[-1]
    assert text.count("(") == text.count(")")


def test_names_with_quotes_stay_strings() -> None:
    from dataclasses import replace

    text = profile(replace(WALLS, writable=(Path('/a "b" (c)'),)), [1])
    assert r'(subpath "/a \"b\" (c)")' in text


def mac(world: World) -> None:
    """A stand-in for a Mac. Its sandbox-exec writes the profile to a file, and starts the agent without it."""
    world.mac(64, "15.6")
    program = world.root / "mac/sandbox-exec"
    program.write_text(
        f'#!/bin/sh\n[ "$3" = /usr/bin/true ] || printf "%s" "$2" >{world.record}/profile\nshift 2\nexec "$@"\n'
    )
    program.chmod(0o755)


def test_strict_on_a_mac_is_the_profile_around_the_agent(world: World) -> None:
    mac(world)
    world.fake_server()
    world.fake_claude(exits=0)
    done = world.run("--tiny", "--backend", "llama-server", "--sandbox", "strict", "--allow-net", "pypi")
    assert done.returncode == 0, done.stderr
    assert "sandbox: strict" in done.stderr
    got = world.agent()["env"]
    text = (world.record / "profile").read_text()
    port = got["ANTHROPIC_BASE_URL"].rpartition(":")[2]
    assert f'(remote ip "localhost:{port}")' in text
    # the proxy's port, and no other
    assert f'(remote ip "localhost:{got["HTTPS_PROXY"].rpartition(":")[2]}")' in text
    assert text.count("network-outbound") == 2
    assert json.dumps(got["TMPDIR"]) in text
    wait_for(lambda: not world.leftovers(), "the proxy's end")


def test_bash_is_a_macs_default(world: World) -> None:
    mac(world)
    world.fake_server()
    world.fake_claude(exits=0)
    done = world.run("--tiny", "--backend", "llama-server")
    assert done.returncode == 0, done.stderr
    assert "sandbox: bash. Claude Code's own" in done.stderr
    settings = Path(world.agent()["argv"][world.agent()["argv"].index("--settings") + 1])
    assert settings.name == "settings.json"
    assert not (world.record / "profile").exists()
