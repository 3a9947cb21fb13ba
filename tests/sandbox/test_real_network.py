"""What a sandboxed agent reaches beside the model: what the user named, through a proxy, and nothing else."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cclocal.sandbox import nets
from cclocal.sandbox.proxy import Proxy
from tests.conftest import CLAUDES, ENGINES, SANDBOXED, elsewhere
from tests.fakes.elsewhere import ADDRESS
from tests.world import World

pytestmark = SANDBOXED
HOSTS = f"127.0.0.1 inside.example.org\n{ADDRESS} shop.example.org other.example.org\n"
#: What the agent runs: it asks each place through the proxy, and says what came back.
REACH = """
import http.client, os, sys
from urllib.parse import urlsplit
proxy = urlsplit(os.environ["HTTPS_PROXY"])
for place in sys.argv[1:]:
    host, port = place.split(":")
    connection = http.client.HTTPConnection(proxy.hostname, proxy.port, timeout=9)
    connection.set_tunnel(host, int(port))
    try:
        connection.request("GET", "/")
        print(place, connection.getresponse().read().decode())
    except OSError as error:
        print(place, error)
"""


@pytest.fixture
def sealed(world: World) -> World:
    world.real("llama-server", ENGINES[-1].binary)
    world.real("claude", CLAUDES[0].path)
    (world.project / "reach.py").write_text(REACH)
    return world


def test_it_reaches_what_was_named_and_the_rest_is_told(sealed: World) -> None:
    (sealed.project / "work.sh").write_text(
        "python3 reach.py shop.example.org:443 other.example.org:443 inside.example.org:443 > said\n"
        f"python3 -c 'import socket; socket.create_connection((\"{ADDRESS}\", 443), 3)' 2>> said\n"
    )
    opened = ("--allow-net", "shop.example.org:443", "--allow-net", "inside.example.org:443", "--receipt")
    words = ("--tiny", "--cold", *opened, "--", "-p", "Run the command: sh work.sh")
    done = sealed.run(*words, under=elsewhere(sealed, HOSTS))
    assert done.returncode == 0, done.stderr
    assert "network: the model, shop.example.org:443, inside.example.org:443 ·" in done.stderr
    said = (sealed.project / "said").read_text()
    assert "shop.example.org:443 from outside" in said
    assert "403 not allowed in this sandbox: cclocal --allow-net other.example.org:443" in said
    # the name was allowed, but leads to this machine
    assert "502 inside.example.org is at 127.0.0.1, which is not a public address" in said
    assert "unreachable" in said
    assert (sealed.record / "asked").read_text().splitlines() == ["shop.example.org:443 /"]
    assert "other.example.org:443: to allow it, --allow-net other.example.org:443" in done.stderr
    assert "1 connection beyond the model: shop.example.org:443 (1); refused: other.example.org:443" in done.stderr
    assert "Receipt: sandbox strict; 1 connection beyond the model" in sealed.run("stats").stdout
    assert not [line for line in sealed.leftovers() if "proxy.py" in line]


def test_a_named_port_of_this_machine_is_there_at_its_usual_address(sealed: World) -> None:
    class Own(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"from the user's own server")

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Own) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        (sealed.project / "work.sh").write_text(
            f"python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:{port}/\").read())' > said\n"
        )
        done = sealed.run(
            "--tiny", "--cold", "--allow-net", f"localhost:{port}", "--", "-p", "Run the command: sh work.sh"
        )
        assert done.returncode == 0, done.stderr
        assert "from the user's own server" in (sealed.project / "said").read_text()
        server.shutdown()


def test_a_rule_for_every_public_host_does_not_open_an_address_of_this_machine(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_address[1]
        every = Proxy([f"*:{port}"], str(tmp_path / "report"))
        for host in ("127.0.0.1", "localhost", "127.1"):
            with pytest.raises(OSError, match="not a public address"):
                every.dial(host, port)
        Proxy([f"127.0.0.1:{port}"], str(tmp_path / "report")).dial("127.0.0.1", port).close()


def test_what_names_no_host_is_refused(world: World) -> None:
    world.fake_server()
    world.fake_claude()
    for word in ("example.org", "example.org:0", "example.org:70000", "npmjs", "*:443", "a b:1"):
        done = world.run("--tiny", "--allow-net", word)
        assert done.returncode == 2, word
        assert "neither HOST:PORT nor one of pypi, npm" in done.stderr


def test_rules_are_exact() -> None:
    known = nets.rules(["Example.org:443", "pypi", "localhost:5432"])
    assert nets.allows(known, "EXAMPLE.ORG", 443)
    assert nets.allows(known, "files.pythonhosted.org", 443)
    for host, port in (("example.org", 80), ("sub.example.org", 443), ("example.org.evil.net", 443)):
        assert not nets.allows(known, host, port)
    assert nets.local_ports(known) == (5432,)
    assert nets.allows((nets.WEB,), "anything.net", 443)
    assert not nets.allows((nets.WEB,), "anything.net", 22)
    assert nets.flag_for("pypi.org", 443) == "--allow-net pypi"
