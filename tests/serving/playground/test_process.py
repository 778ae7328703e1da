"""The page's process: there while somebody looks, and never in the way of those who only classify."""

import base64
import contextlib
import hashlib
import http.client
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from atelier.client import Client
from atelier.errors import ConfigurationError, ResourceUnavailableError
from loadtest.server_process import ServerProcess, server_process
from serving.config import ServerConfig
from serving.playground import process
from serving.server import main
from tests.serving.conftest import needs_native
from tests.serving.playground.http import ask, parsed, request
from tests.serving.running import kill_serving_process, running_children_of, wait_for
from tests.serving.test_access import make_certificate

IMAGES = np.zeros((2, 28, 28), np.uint8)
SETTINGS = ("--port", "0", "--device", "cpu", "--metrics-port", "0")


@contextmanager
def serving(repository: Path, front_end: str, *arguments: str) -> Iterator[ServerProcess]:
    options = (*SETTINGS, "--front-end", front_end, "--repository", str(repository), *arguments)
    with server_process("tests.serving.playground.quick_server", *options) as server:
        yield server


@pytest.fixture
def server(small_repository: Path, front_end: str) -> Iterator[ServerProcess]:
    with serving(small_repository, front_end) as running:
        yield running


def port_of(server: ServerProcess) -> int:
    [page] = server.ready["playground"]
    assert f"look inside at {page}\n" in server.output
    return int(page.rpartition(":")[2].strip("/"))


def children_of(server: ServerProcess) -> list[psutil.Process]:
    return running_children_of(psutil.Process(server.process.pid), recursive=True)


def page_process_of(server: ServerProcess) -> psutil.Process:
    """The one that listens for the page."""
    listening = {child: {each.laddr.port for each in child.net_connections()} for child in children_of(server)}
    [page] = [child for child, ports in listening.items() if port_of(server) in ports]
    return page


def warnings_of(server: ServerProcess) -> list[str]:
    """What it warns of, but that the tests may run as root."""
    return [line for line in server.output.splitlines() if "warning" in line and "runs as root" not in line]


def test_page_costs_no_process_until_it_is_opened_and_then_one(server: ServerProcess) -> None:
    port = port_of(server)
    with Client(server.target) as client:
        client.classify(IMAGES)
    assert len(children_of(server)) == 1
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: ask(port, "GET", "/api/network"), range(8)))
    assert {reply.status for reply in replies} == {200}
    page = page_process_of(server)
    assert len(children_of(server)) == 2 and page.num_threads() <= 16
    if sys.platform == "linux":  # as ps and top tell them apart
        assert sorted(child.name() for child in children_of(server)) == ["atelier-page", "atelier-serve"]
    assert page.nice() == min(19, psutil.Process(server.process.pid).nice() + 10)
    assert server.stop() == 0
    assert not warnings_of(server)


def test_killed_page_is_back_when_it_is_opened_again(server: ServerProcess) -> None:
    port = port_of(server)
    assert ask(port, "GET", "/").status == 200
    page = page_process_of(server)
    page.kill()
    assert ask(port, "GET", "/").status == 200
    assert page_process_of(server) != page
    assert "the page's process ended with exit code -9: whoever opens it starts another" in server.output
    assert len(children_of(server)) == 2  # the serving process is still the same one
    assert "starting another\n" not in server.output


@pytest.mark.slow
def test_page_ends_when_nobody_looks_and_comes_back(small_repository: Path) -> None:
    with serving(small_repository, "grpcio", "--playground-idle-s", "0.5") as server:
        assert ask(port_of(server), "GET", "/").status == 200
        wait_for(lambda: len(children_of(server)) == 1)
        assert ask(port_of(server), "GET", "/").status == 200
        assert not warnings_of(server)


def test_page_stays_while_the_serving_process_is_replaced(server: ServerProcess) -> None:
    port = port_of(server)
    assert ask(port, "GET", "/").status == 200
    page = page_process_of(server)
    [serving_process] = [child for child in children_of(server) if child != page]
    serving_process.kill()
    wait_for(lambda: len(children_of(server)) == 2 and serving_process not in children_of(server))
    with Client(server.target) as client:
        client.wait_until_ready(timeout_s=20)
    header, _ = ask(port, "POST", "/api/look", bytes(784)).frame
    assert header["answer"] and page_process_of(server) == page


@pytest.mark.slow
def test_nobody_outlives_a_killed_supervisor(server: ServerProcess) -> None:
    """Neither process holds the other's pipe: each would wait for the other to end."""
    assert ask(port_of(server), "GET", "/").status == 200
    kill_serving_process(server)  # its replacement is younger than the page, and may have inherited the page's pipe
    with Client(server.target) as client:
        client.wait_until_ready(timeout_s=20)
    left = children_of(server)
    assert len(left) == 2
    server.process.kill()
    assert psutil.wait_procs(left, timeout=30)[1] == []


def test_page_that_stands_still_holds_nobody_up(server: ServerProcess) -> None:
    port = port_of(server)
    assert ask(port, "GET", "/").status == 200
    page_process_of(server).send_signal(signal.SIGSTOP)
    with Client(server.target) as client:
        for _ in range(20):
            client.classify(IMAGES)
    left = children_of(server)
    assert server.stop() == 0
    assert psutil.wait_procs(left, timeout=10)[1] == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_server_whose_pages_port_is_taken_warns_and_serves_on(small_repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving(small_repository, "grpcio", "--playground-port", str(port)) as server:
            assert server.ready["playground"] == []
            assert f"warning: no page looks inside the network: PORT_IN_USE: cannot listen on 127.0.0.1:{port}" in (
                server.output
            )
            with Client(server.target) as client:
                client.classify(IMAGES)


def test_server_without_the_pages_libraries_says_how_to_get_it_and_serves_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert process.listen(ServerConfig()) is None
    printed = capsys.readouterr().out
    assert "no page looks inside the network: uvicorn is not installed (pip install '.[playground]' in" in printed
    assert printed.count("\n") == 1
    with pytest.raises(ResourceUnavailableError, match=r"^NO_LIBRARY: asked for the page that looks inside: uvicorn"):
        process.listen(ServerConfig(playground_port=8003))


def test_page_can_be_turned_off(small_repository: Path) -> None:
    with serving(small_repository, "grpcio", "--playground-port", "0") as server:
        assert server.ready["playground"] == [] and "look inside" not in server.output


def test_page_that_others_can_reach_must_be_wanted(small_repository: Path) -> None:
    arguments = ["--repository", str(small_repository), "--playground-host", "0.0.0.0", "--front-end", "grpcio"]
    lacking = r"^INSECURE: the page on --playground-host 0\.0\.0\.0 may be reached by others, without TLS and tokens"
    with pytest.raises(ConfigurationError, match=lacking):
        main(arguments)
    with serving(small_repository, "grpcio", "--playground-host", "0.0.0.0", "--insecure") as server:
        assert "warning: the page on --playground-host 0.0.0.0 may be reached by others" in server.output


@needs_native
def test_servers_own_port_leads_a_browser_to_the_page(small_repository: Path) -> None:
    with serving(small_repository, "native") as server:
        assert redirection_of(server, "localhost") == (302, server.ready["playground"][0])
        assert redirection_of(server, "gpu-box") == (404, None)  # the page is for this machine only
    with serving(small_repository, "native", "--playground-port", "0") as server:
        assert redirection_of(server, "localhost") == (404, None)


def redirection_of(server: ServerProcess, host: str) -> tuple[int, str | None]:
    connection = http.client.HTTPConnection(server.target, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/", headers={"Host": host})
        reply = connection.getresponse()
        return reply.status, reply.getheader("Location")


@pytest.mark.slow
def test_page_that_others_can_reach_speaks_tls_and_wants_a_token(
    small_repository: Path, tmp_path: Path, front_end: str
) -> None:
    certificate, key = make_certificate(tmp_path, "server")
    tokens = tmp_path / "tokens"
    tokens.write_text(hashlib.sha256(b"secret").hexdigest() + "\n")
    tokens.chmod(0o600)
    access = ("--tls-certificate", str(certificate), "--tls-key", str(key), "--tokens", str(tokens))
    trusting = ssl.create_default_context(cafile=str(certificate))
    with serving(small_repository, front_end, "--playground-host", "0.0.0.0", *access) as server:
        [page] = server.ready["playground"]
        assert page.startswith("https://0.0.0.0:") and "warning: the page" not in server.output
        assert sent_to(server, request("GET", "/")) == b""  # in plain text

        def status(path: str, authorization: str) -> int:
            data = request("GET", path, host="localhost", authorization=authorization)
            return parsed(sent_to(server, data, trusting)).status

        refused = ("", "Basic", "Basic ?", "Basic /w==", basic("me", "wrong"), "Bearer secret")
        for path in ("/", "/api/network", "/app.js"):
            assert [status(path, each) for each in refused] == [401] * len(refused)
            assert status(path, basic("anybody", "secret")) == 200
        if front_end == "native":  # without a token: a browser has none to give on its way
            connection = http.client.HTTPSConnection(server.target, context=trusting, timeout=30)
            with contextlib.closing(connection):
                connection.request("GET", "/", headers={"Host": "localhost"})
                assert connection.getresponse().getheader("Location") == page.replace("0.0.0.0", "localhost")
        reply = parsed(sent_to(server, request("GET", "/"), trusting))
        assert reply.headers["www-authenticate"].startswith("Basic ") and reply.json["reason"] == "BAD_TOKEN"


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def sent_to(server: ServerProcess, data: bytes, tls: ssl.SSLContext | None = None) -> bytes:
    """What comes back on a connection of its own."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", port_of(server)), timeout=30))
        if tls:
            connection = stack.enter_context(tls.wrap_socket(connection, server_hostname="localhost"))
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


@pytest.mark.parametrize(
    "values", [{"playground_port": 65536}, {"playground_host": "unix:/x"}, {"playground_host": " "}]
)
def test_settings_that_cannot_be_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=r"^BAD_SETTING: --playground"):
        ServerConfig(**values)  # type: ignore[arg-type]
