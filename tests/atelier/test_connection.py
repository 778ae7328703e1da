"""Targets, proxies, servers that are not there or come back, time-outs and closed clients; real sockets."""

import asyncio
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
import pytest

from atelier.channel import check_target, is_local
from atelier.client import AsyncClient, ClassifyError, Client
from loadtest.server_process import free_port
from tests.atelier.conftest import Ask, ask_with_client
from tests.atelier.scripted_server import ScriptedServer

IMAGE = np.full((28, 28), 8, np.uint8)


# --- Targets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "localhost:50051",
        "127.0.0.1:1",
        "[::1]:50051",
        "unix:/run/a",
        "unix:///run/a",
        "dns:///host:1",
        "ipv4:10.0.0.1:2",
    ],
)
def test_target_that_grpc_takes_is_taken(target: str) -> None:
    check_target(target)


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("", "empty.*HOST:PORT"),
        ("http://localhost:50051", "pass localhost:50051 alone"),
        ("https://host:1/", "pass host:1 alone"),
        ("grpc://host:1", "pass host:1 alone"),
        ("localhost", "pass localhost:50051, or another"),
        ("[::1]", r"pass \[::1\]:50051"),
        ("localhost:http", "no port from 1 to 65535"),
        ("localhost:70000", "no port from 1 to 65535"),
        (":50051", "no host"),
        ("::1:50051", r"\[::1\]:50051 for IPv6"),
    ],
)
def test_target_that_is_no_address_gets_a_hint(target: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        Client(target)
    with pytest.raises(ValueError, match=hint):
        AsyncClient(target)


# --- Proxies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["grpc_proxy", "https_proxy", "http_proxy"])
def test_local_server_is_never_reached_through_a_proxy(
    server: ScriptedServer, ask: Ask, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port()}")
    assert ask(server.target, "classify", IMAGE).labels.tolist() == [8]
    assert ask(server.target, "is_serving")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("localhost:1", True),
        ("api.localhost:1", True),
        ("127.8.8.8:1", True),
        ("[::1]:1", True),
        ("0.0.0.0:1", True),
        ("unix:/run/a", True),
        ("ipv6:[::1]:1", True),
        ("dns:///localhost:1", True),
        ("192.0.2.1:1", False),
        ("localhost.example.org:1", False),
        ("dns:///example.org:1", False),
    ],
)
def test_what_is_local(target: str, expected: bool) -> None:
    assert is_local(target) is expected


def test_message_about_a_remote_server_names_the_proxys_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ClassifyError, match=r"the proxy of \$http_proxy, unless \$no_proxy names 192.0.2.1"):
        ask_with_client("192.0.2.1:50051", "classify", IMAGE)


# --- Servers that are not there, or come back ------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["classify", "model", "is_serving"])
def test_server_that_nobody_started_is_given_up_within_a_second(ask: Ask, method: str) -> None:
    began_s = time.monotonic()
    with pytest.raises(ClassifyError, match="make serve starts one") as caught:
        ask(f"localhost:{free_port()}", method, *([IMAGE] if method == "classify" else []))
    assert (caught.value.status, caught.value.word) == ("UNAVAILABLE", "NO_SERVER")
    assert time.monotonic() - began_s < 2  # a second, and the machine may be busy


def test_name_that_cannot_be_resolved_is_called_that() -> None:
    with pytest.raises(ClassifyError, match=r"NO_SERVER: the name in no-such-host.invalid:1 cannot be resolved"):
        ask_with_client("no-such-host.invalid:1", "classify", IMAGE)


@pytest.mark.slow
def test_restart_as_long_as_the_deadline_allows_is_waited_for(ask: Ask) -> None:
    """The same port, closed for 4 s: calls of 5 s that were sent meanwhile are answered by the new server."""
    first = ScriptedServer()
    restarted: list[ScriptedServer] = []

    def restart() -> None:
        first.stop()
        time.sleep(4)
        restarted.append(ScriptedServer(port=first.port))

    async def restart_under_call() -> Any:
        async with AsyncClient(first.target) as client:
            await client.classify(IMAGE)
            restarting = asyncio.create_task(asyncio.to_thread(restart))
            await asyncio.sleep(0.2)
            answer = await client.classify(IMAGE, timeout_s=6)
            await restarting
            return answer

    def restart_under_blocking_call() -> Any:
        with Client(first.target) as client:
            client.classify(IMAGE)
            restarting = threading.Thread(target=restart)
            restarting.start()
            time.sleep(0.2)
            answer = client.classify(IMAGE, timeout_s=6)
            restarting.join()
            return answer

    answer = restart_under_blocking_call() if ask is ask_with_client else asyncio.run(restart_under_call())
    restarted[0].stop()
    assert answer.labels.tolist() == [8]


@pytest.mark.slow
def test_server_that_has_gone_is_called_that_at_the_deadline() -> None:
    server = ScriptedServer()
    with Client(server.target) as client:
        client.classify(IMAGE)
        server.stop()
        began_s = time.monotonic()
        with pytest.raises(ClassifyError, match="NO_SERVER"):
            client.classify(IMAGE, timeout_s=2)
        assert time.monotonic() - began_s > 1


def test_server_that_speaks_http_1_is_no_grpc_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with suppress(OSError):  # until the test closes the listener
                while True:
                    connection, _peer = listener.accept()
                    with connection:
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                        connection.recv(1000)

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(ClassifyError) as caught:
            ask_with_client(f"127.0.0.1:{listener.getsockname()[1]}", "is_serving")
    assert caught.value.word == "NO_SERVER"
    assert "does not speak gRPC" in caught.value.message


# --- Time-outs and closing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout_s", [None, float("inf"), 1e12])
def test_infinite_timeout_means_none(server: ScriptedServer, ask: Ask, timeout_s: float | None) -> None:
    assert ask(server.target, "classify", IMAGE, timeout_s=timeout_s).labels.tolist() == [8]
    assert server.seconds_left == [None] or max(server.seconds_left) > 1e6


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
def test_timeout_that_is_no_time_is_refused(server: ScriptedServer, ask: Ask, timeout_s: float) -> None:
    with pytest.raises(ValueError, match="above 0, or None for no limit"):
        ask(server.target, "classify", IMAGE, timeout_s=timeout_s)
    assert not server.requests


def test_closed_client_says_so(server: ScriptedServer) -> None:
    client = Client(server.target)
    client.close()
    for call in (lambda: client.classify(IMAGE), client.model, client.is_serving):
        with pytest.raises(ValueError, match="this client is closed: make a new one"):
            call()
    with pytest.raises(ValueError, match="this client is closed"):
        client.wait_until_ready(timeout_s=1)


def test_closed_async_client_says_so(server: ScriptedServer) -> None:
    async def use_after_close() -> None:
        client = AsyncClient(server.target)
        await client.close()
        with pytest.raises(ValueError, match="this client is closed: make a new one"):
            await client.classify(IMAGE)

    asyncio.run(use_after_close())


def test_call_that_is_under_way_when_the_client_closes_says_so(server: ScriptedServer) -> None:
    server.gate.clear()
    client = Client(server.target)
    timer = threading.Timer(0.3, client.close)
    timer.start()
    with pytest.raises(ClassifyError, match="CLOSED: the client was closed during this call"):
        client.classify(IMAGE, timeout_s=20)
    timer.join()


def test_async_call_that_is_under_way_when_the_client_closes_says_so(server: ScriptedServer) -> None:
    server.gate.clear()

    async def close_under_call() -> None:
        client = AsyncClient(server.target)
        call = asyncio.create_task(client.classify(IMAGE, timeout_s=20))
        await asyncio.sleep(0.3)
        await client.close()
        with pytest.raises((ClassifyError, asyncio.CancelledError)):
            await call

    asyncio.run(close_under_call())


def test_refusal_that_only_grpc_knows_keeps_its_status(server: ScriptedServer, ask: Ask) -> None:
    server.script = [(grpc.StatusCode.UNAUTHENTICATED, "who are you?")]
    with pytest.raises(ClassifyError) as caught:
        ask(server.target, "classify", IMAGE)
    assert (caught.value.status, caught.value.word) == ("UNAUTHENTICATED", "")
