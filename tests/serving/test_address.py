"""Where a server listens: every spelling of an address, and what is said of those that cannot be."""

import os
import re
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from atelier.client import Client
from atelier.errors import ProgramError
from loadtest.server_process import server_process
from serving.listening import Listening, address_from
from tests.conftest import command
from tests.serving.fake_backend import image

SERVER = "tests.serving.breaking_server"


def served_labels(target: str) -> list[int]:
    with Client(target) as client:
        labels: list[int] = client.classify(image(7)).labels.tolist()
    return labels


@pytest.mark.parametrize(
    ("host", "printed", "reached_at"),
    [
        ("::1", "[::1]", ["[::1]"]),
        ("[::1]", "[::1]", ["[::1]"]),
        ("::", "[::]", ["[::1]", "127.0.0.1"]),
        ("[::]", "[::]", ["[::1]", "127.0.0.1"]),
        ("0.0.0.0", "0.0.0.0", ["127.0.0.1"]),
        ("127.0.0.1", "127.0.0.1", ["127.0.0.1"]),
        ("localhost", "localhost", ["127.0.0.1", "localhost"]),
    ],
)
def test_address_may_be_written_as_people_write_it(
    host: str, printed: str, reached_at: list[str], front_end: str
) -> None:
    with server_process(SERVER, "--port", "0", "--insecure", "--front-end", front_end, "--host", host) as server:
        assert f" on {printed}:{server.port}: front end {front_end}" in server.output
        for address in reached_at:
            assert served_labels(f"{address}:{server.port}") == [7]
        is_open = host not in ("::1", "[::1]", "127.0.0.1", "localhost")
        assert ("may be reached by others" in server.output) == is_open
        found = re.search(r"metrics at (http://(\S+):(\d+)/metrics)", server.output)
        assert found
        assert found[2] == printed
        for address in reached_at:
            with urllib.request.urlopen(f"http://{address}:{found[3]}/metrics", timeout=10) as page:
                assert b"atelier_workers 1" in page.read()
        assert server.stop() == 0


NO_SUCH_HOSTS = [
    ("192.0.2.1", "no address of this machine", "0.0.0.0"),
    ("203.0.113.9", "no address of this machine", "0.0.0.0"),
    ("2001:db8::1", "no address of this machine", "0.0.0.0"),
    ("[2001:db8::1]", "no address of this machine", "0.0.0.0"),
    ("::1:8000", "no address of this machine", "0.0.0.0"),  # IPv6 may be read so
    ("nobody.invalid", "does not resolve", "0.0.0.0"),
    ("999.1.1.1", "does not resolve", "0.0.0.0"),
    ("http://localhost", "does not resolve", "0.0.0.0"),
    ("[localhost", "does not resolve", "0.0.0.0"),
    ("a..b", "does not resolve", "0.0.0.0"),
    (f"{'x' * 64}.invalid", "does not resolve", "0.0.0.0"),
    ("a\0b", "does not resolve", "0.0.0.0"),
    ("", "does not resolve", "0.0.0.0"),
    (" ", "does not resolve", "0.0.0.0"),
    ("localhost:50051", "has a port in it", "--host localhost --port 50051"),
    ("127.0.0.1:50051", "has a port in it", "--host 127.0.0.1 --port 50051"),
    ("[::1]:50051", "has a port in it", "--host ::1 --port 50051"),
]


@pytest.mark.parametrize(("host", "what", "cure"), NO_SUCH_HOSTS)
def test_host_that_cannot_be_is_named_and_not_its_port(host: str, what: str, cure: str) -> None:
    for only_reserve in (True, False):
        with pytest.raises(ProgramError) as caught:
            Listening([host], 50051, only_reserve=only_reserve)
        assert caught.value.exit_code == os.EX_CONFIG
        assert str(caught.value).startswith(f"BAD_HOST: --host {host!r} "), caught.value
        assert what in str(caught.value)
        assert cure in str(caught.value)


def test_server_says_so_in_one_line_and_ends() -> None:
    host = "192.0.2.1"
    done = command(SERVER, "--port", 0, "--insecure", "--host", host)
    assert (done.returncode, done.stderr.count("\n")) == (os.EX_CONFIG, 1), done.stderr
    assert done.stderr.startswith(f"error: BAD_HOST: --host {host!r} ")


@pytest.fixture(params=[("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)], ids=["IPv4", "IPv6"])
def occupied(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """An address on which somebody listens."""
    host, family = request.param
    with socket.create_server((host, 0), family=family) as listener:
        yield host, listener.getsockname()[1]


def test_occupied_port_is_in_use(occupied: tuple[str, int]) -> None:
    host, port = occupied
    done = command(SERVER, "--port", port, "--host", host)
    assert done.returncode == os.EX_UNAVAILABLE
    assert done.stderr.startswith(f"error: PORT_IN_USE: cannot listen on {address_from(host, port)} (stop what uses it")
    done = command(SERVER, "--port", 0, "--metrics-port", port, "--host", host)
    assert done.returncode == os.EX_UNAVAILABLE
    assert done.stderr.startswith(f"error: PORT_IN_USE: cannot listen on {address_from(host, port)} (")
    assert "another --metrics-port" in done.stderr


def test_several_addresses_are_served_at_once(front_end: str, tmp_path: Path) -> None:
    hosts = f"127.0.0.1,::1,unix:{tmp_path}/a.sock"
    with server_process(SERVER, "--port", "0", "--front-end", front_end, "--host", hosts) as server:
        found = re.search(r"on (127\.0\.0\.1:\d+), (\[::1\]:\d+), (unix:\S+a\.sock):", server.output)
        assert found, server.output
        for target in found.groups():
            assert served_labels(target) == [7]
        assert server.stop() == 0


@pytest.mark.fault("S40")
@pytest.mark.parametrize(("first", "second"), [("[::1]", "localhost"), ("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "[::1]")])
def test_no_two_servers_share_a_port_by_different_names(first: str, second: str, front_end: str) -> None:
    with server_process(SERVER, "--port", "0", "--insecure", "--front-end", front_end, "--host", first) as server:
        for only_reserve in (True, False):
            with pytest.raises(ProgramError, match="PORT_IN_USE"):
                Listening([second], server.port, only_reserve=only_reserve)


def test_one_port_is_on_every_address_of_the_host() -> None:
    with Listening(["localhost"], 0) as listening:
        assert [each.family for each in listening.sockets] == [socket.AF_INET, socket.AF_INET6]
        assert len({each.getsockname()[1] for each in listening.sockets}) == 1


def test_names_that_mean_the_same_address_are_opened_once() -> None:
    with Listening(["0.0.0.0", "::"], 0) as listening:
        assert len(listening.sockets) == 2
    with Listening(["localhost", "127.0.0.1"], 0) as listening:
        assert len(listening.sockets) == 2


@pytest.mark.slow
def test_programs_read_where_it_serves_from_a_file(front_end: str, small_repository: Path, tmp_path: Path) -> None:
    settings = ("--repository", str(small_repository), "--port", "0", "--device", "cpu", "--front-end", front_end)
    with server_process("serving", *settings) as server, Client(server.target) as client:
        ready = server.ready
        assert client.model().backend == ready["backend"] == "onnxruntime"
        assert (ready["front_end"], ready["device"], ready["pid"]) == (front_end, "cpu", server.process.pid)
        (page,) = ready["metrics"]
        assert page == server.metrics_url and server.metric("atelier_requests_total") >= 1
    missing = str(tmp_path / "missing" / "ready.json")
    done = command("serving", *settings, "--ready-file", missing)
    assert done.returncode == os.EX_CONFIG
    assert "BAD_SETTING: --ready-file is" in done.stderr and "in a folder that exists" in done.stderr
