"""Several addresses: asked in turn, and those that are dead or do not serve are passed over; real sockets."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckResponse

from atelier.channel import check_target, grpc_target, is_local
from atelier.client import AsyncClient, ClassifyError, Client
from loadtest.server_process import ServerProcess, free_port, server_process
from tests.atelier.conftest import Ask
from tests.atelier.scripted_server import ScriptedServer

IMAGE = np.full((28, 28), 8, np.uint8)
NOT_SERVING = HealthCheckResponse.NOT_SERVING


@pytest.fixture
def pair() -> Iterator[tuple[ScriptedServer, ScriptedServer]]:
    first, second = ScriptedServer(), ScriptedServer()
    yield first, second
    first.stop()
    second.stop()


def target_of(*servers: ScriptedServer) -> str:
    return ",".join(f"localhost:{server.port}" for server in servers)


def until(condition: Callable[[], object]) -> None:
    until_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.01)


Pair = tuple[ScriptedServer, ScriptedServer]


def test_addresses_are_asked_in_turn(pair: Pair) -> None:
    with Client(target_of(*pair)) as client:
        until(lambda: client.classify(IMAGE) and all(server.requests for server in pair))  # both are connected
        before = [len(server.requests) for server in pair]
        for _ in range(20):
            client.classify(IMAGE)
    assert [len(server.requests) - count for server, count in zip(pair, before, strict=True)] == [10, 10]


def test_server_that_does_not_serve_is_passed_over_until_it_does(pair: Pair) -> None:
    first, second = pair
    first.health.set("", NOT_SERVING)
    with Client(target_of(*pair)) as client:
        for _ in range(10):
            client.classify(IMAGE)
        assert client.is_serving()
        assert (len(first.requests), len(second.requests)) == (0, 10)
        first.health.set("", HealthCheckResponse.SERVING)
        until(lambda: client.classify(IMAGE) and first.requests)


def test_server_that_is_not_there_is_passed_over(pair: Pair, ask: Ask) -> None:
    first, second = pair
    first.stop()
    assert ask(target_of(*pair), "classify", IMAGE).labels.tolist() == [8]
    assert len(second.requests) == 1


def test_none_that_serves_is_what_is_serving_says(pair: Pair, ask: Ask) -> None:
    for server in pair:
        server.health.set("", NOT_SERVING)
    assert ask(target_of(*pair), "is_serving") is False
    with pytest.raises(ClassifyError) as caught:
        ask(target_of(*pair), "classify", IMAGE, timeout_s=1)
    assert (caught.value.status, caught.value.word) == ("UNAVAILABLE", "NOT_SERVING")


def test_one_that_begins_to_serve_is_waited_for(pair: Pair, ask: Ask) -> None:
    for server in pair:
        server.health.set("", NOT_SERVING)
    timer = threading.Timer(0.5, pair[1].health.set, ("", HealthCheckResponse.SERVING))
    timer.start()
    ask(target_of(*pair), "wait_until_ready", timeout_s=20)
    assert ask(target_of(*pair), "is_serving")
    timer.join()


def test_name_with_several_addresses_is_asked_at_those_that_answer(pair: Pair, ask: Ask) -> None:
    """`localhost` is ::1 too on many machines, where nobody listens."""
    first, _ = pair
    assert ask(f"dns:///localhost:{first.port}", "classify", IMAGE).labels.tolist() == [8]
    first.health.set("", NOT_SERVING)
    assert ask(f"dns:///localhost:{first.port}", "is_serving") is False


def test_nobody_there_is_given_up_within_a_second(pair: Pair, ask: Ask) -> None:
    for server in pair:
        server.stop()
    began_s = time.monotonic()
    with pytest.raises(ClassifyError) as caught:
        ask(target_of(*pair), "classify", IMAGE)
    assert caught.value.word == "NO_SERVER"
    assert time.monotonic() - began_s < 3


def test_names_become_addresses_of_one_family() -> None:
    assert grpc_target("localhost:1,127.0.0.2:2") == "ipv4:127.0.0.1:1,127.0.0.2:2"
    assert grpc_target("[::1]:1,[::1]:2") == "ipv6:[::1]:1,[::1]:2"
    assert grpc_target("ipv4:127.0.0.1:1,127.0.0.1:2") == "ipv4:127.0.0.1:1,127.0.0.1:2"
    for target in ("no-such-host.invalid:1,localhost:2", "[::1]:1,127.0.0.1:2"):
        with pytest.raises(ValueError, match="cannot be resolved, or both IPv4 and IPv6"):
            Client(target)


@pytest.mark.parametrize("target", ["localhost:1,,localhost:2", "localhost:1,", "localhost:1,localhost"])
def test_each_address_is_checked(target: str) -> None:
    for client in (Client, AsyncClient):
        with pytest.raises(ValueError, match="the target"):
            client(target)
    check_target("localhost:1")


def test_what_is_local_and_what_may_have_tls() -> None:
    assert is_local("localhost:1,127.0.0.1:2") and not is_local("localhost:1,192.0.2.1:2")
    with pytest.raises(ValueError, match="would go in plain text"):
        Client("localhost:1,192.0.2.1:2", token="secret")  # noqa: S106
    with pytest.raises(ValueError, match="several hosts, and TLS needs the one name"):
        Client("127.0.0.1:1,127.0.0.2:2", tls=True)
    Client("127.0.0.1:1,127.0.0.1:2", tls=True).close()


# --- Real servers, ended with kill -9 --------------------------------------------------------------------------------


def served(repository: Path, port: int) -> AbstractContextManager[ServerProcess]:
    settings = ("--repository", str(repository), "--port", str(port), "--metrics-port", "0", "--device", "cpu")
    return server_process("serving", *settings, own_group=True)


@pytest.mark.slow
def test_kill_9_of_each_of_two_servers_under_load_loses_nothing(small_repository: Path) -> None:
    ports = [free_port(), free_port()]
    failures: list[Exception] = []
    answers = [0] * 4
    stop = threading.Event()
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8)

    def load(client: Client, index: int) -> None:
        wanted = client.classify(images, timeout_s=20).labels
        while not stop.is_set() and not failures:
            try:
                assert (client.classify(images, timeout_s=20).labels == wanted).all()
                answers[index] += 1
            except Exception as error:
                failures.append(error)

    def answered(number: int) -> None:
        before = sum(answers)
        until(lambda: failures or sum(answers) >= before + number)

    with (
        served(small_repository, ports[0]) as first,
        served(small_repository, ports[1]) as second,
        Client(",".join(f"127.0.0.1:{port}" for port in ports)) as client,
        ThreadPoolExecutor(4) as threads,
        ExitStack() as at_the_end,
    ):
        at_the_end.callback(stop.set)
        loads = [threads.submit(load, client, index) for index in range(4)]
        answered(200)
        os.killpg(first.process.pid, signal.SIGKILL)
        answered(200)
        with served(small_repository, ports[0]):
            os.killpg(second.process.pid, signal.SIGKILL)
            answered(200)
            stop.set()
            for ended in loads:
                ended.result(30)
    assert failures == []
