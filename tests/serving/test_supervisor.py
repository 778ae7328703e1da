"""The supervisor and its worker processes, over a real server: who dies is replaced, and nobody is left behind."""

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from atelier.client import Client
from atelier.errors import ResourceUnavailableError
from atelier.wire import classifier_pb2 as pb
from loadtest.server_process import ServerProcess, server_process
from serving.metrics_process import NAME as PAGE
from serving.port import reserve_port
from tests.conftest import Job

IMAGES = np.zeros((2, 28, 28), np.uint8)
SETTINGS = ("--port", "0", "--device", "cpu", "--lame-duck-s", "0.1", "--workers", "2")


def workers_of(server: ServerProcess) -> list[psutil.Process]:
    """All but the process that serves the metrics."""
    return [child for child in psutil.Process(server.process.pid).children() if child.name() != PAGE]


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it never happened"
        time.sleep(0.02)


@pytest.fixture
def server(job: Job) -> Iterator[ServerProcess]:
    with server_process("serving", "--repository", str(job.repository), *SETTINGS) as running:
        yield running


def test_both_workers_answer_and_all_answers_are_counted(server: ServerProcess) -> None:
    assert "2 processes" in server.output
    workers = workers_of(server)
    before_s = [sum(worker.cpu_times()[:2]) for worker in workers]
    for _ in range(40):  # connections, which the kernel spreads
        with Client(server.target) as client:
            for _ in range(5):
                client.classify(IMAGES)
    spent_s = [sum(worker.cpu_times()[:2]) - before for worker, before in zip(workers, before_s, strict=True)]
    assert min(spent_s) > 0
    assert server.stop() == 0
    assert "answered 200 requests, 400 images" in server.output


def test_killed_worker_is_replaced_and_clients_do_not_notice(server: ServerProcess) -> None:
    with Client(server.target) as client:
        client.classify(IMAGES)
        for _ in range(3):
            victim = workers_of(server)[0]
            victim.kill()
            victim.wait(30)
            client.classify(IMAGES, timeout_s=10)
    wait_for(lambda: server.output.count("starting another") == 3 and len(workers_of(server)) == 2)
    assert server.stop() == 0


def test_path_that_is_not_utf8_ends_one_worker_and_not_the_server(server: ServerProcess) -> None:
    before = {worker.pid for worker in workers_of(server)}
    with sent_path_that_is_not_utf8(server):
        wait_for(lambda: {worker.pid for worker in workers_of(server)} != before)
    with Client(server.target) as client:
        client.classify(IMAGES, timeout_s=10)
    wait_for(lambda: "ACCEPT_FAILED" in server.output)
    wait_for(lambda: len(workers_of(server)) == 2)  # the old one has gone, the new one come
    assert server.stop() == 0


@contextmanager
def sent_path_that_is_not_utf8(server: ServerProcess) -> Iterator[None]:
    """grpcio's accept loop dies of it. h2 frames by hand: no client library sends such a path."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)
    # HPACK (RFC 7541): :method POST, :scheme http, :authority x, :path /\xff, content-type, te
    headers = b"\x83\x86\x01\x01x\x04\x02/\xff\x0f\x10\x10application/grpc\x00\x02te\x08trailers"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(preface + frame(1, 4, 1, headers))
        yield


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    """An HTTP/2 frame (RFC 9113, section 4.1)."""
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def test_worker_that_stands_still_is_killed_and_replaced(job: Job) -> None:
    settings = (*SETTINGS, "--hang-timeout-s", "0.5")  # and five seconds of grace
    with server_process("serving", "--repository", str(job.repository), *settings) as server:
        before = workers_of(server)
        before[0].send_signal(signal.SIGSTOP)
        wait_for(lambda: "starting another" in server.output)
        wait_for(lambda: len(workers_of(server)) == 2)
        assert before[1] in workers_of(server)
        assert server.stop() == 0


@pytest.mark.parametrize(("first", "second"), [("[::1]", "localhost"), ("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "[::1]")])
def test_no_two_servers_share_a_port_by_different_names(first: str, second: str) -> None:
    refused = pytest.raises(ResourceUnavailableError, match="PORT_IN_USE")
    with reserve_port(first, 0) as reservation, listening_beside(reservation), refused:
        reserve_port(second, reservation.getsockname()[1])


@contextmanager
def listening_beside(reservation: socket.socket) -> Iterator[None]:
    """As a worker does: on the reserved address, sharing it; of a wildcard, on both families as gRPC does."""
    host, port = reservation.getsockname()[:2]
    is_wildcard = host == "0.0.0.0"
    with socket.socket(socket.AF_INET6 if is_wildcard else reservation.family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if is_wildcard:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::" if is_wildcard else host, port))
        listener.listen()
        yield


def test_grown_worker_is_drained_and_replaced(job: Job) -> None:
    bounds = ("--max-images-per-request", "16384", "--max-queue-size", "16384", "--max-memory-growth-mb", "2")
    with server_process("serving", "--repository", str(job.repository), *SETTINGS, *bounds) as server:
        with Client(server.target) as client:
            assert len(client.classify(np.zeros((16384, 28, 28), np.uint8), timeout_s=20).classifications) == 16384
        wait_for(lambda: "MEMORY_GROWN" in server.output and "another takes over" in server.output)
        wait_for(lambda: len(workers_of(server)) == 2)
        with Client(server.target) as client:
            client.classify(IMAGES, timeout_s=10)


def test_workers_do_not_outlive_a_killed_supervisor(server: ServerProcess) -> None:
    workers = workers_of(server)
    server.process.kill()
    gone, alive = psutil.wait_procs(workers, timeout=30)
    assert (len(gone), alive) == (2, [])


def test_second_signal_ends_everything_at_once(job: Job) -> None:
    settings = (*SETTINGS, "--lame-duck-s", "60")
    with server_process("serving", "--repository", str(job.repository), *settings) as server:
        workers = workers_of(server)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "draining" in server.output)
        assert server.stop(signal.SIGINT) == 128 + signal.SIGINT
        assert psutil.wait_procs(workers, timeout=30)[1] == []


def test_server_gives_up_when_no_new_worker_can_start(job: Job, tmp_path: Path) -> None:
    version_dir = shutil.copytree(job.version_dir, tmp_path / "lenet5" / "1")
    with server_process("serving", "--repository", str(tmp_path), *SETTINGS) as server:
        (version_dir / "model.onnx").unlink()
        workers_of(server)[0].kill()
        assert server.process.wait(60) == os.EX_UNAVAILABLE
        wait_for(lambda: "error: WORKERS_FAIL: 3 new workers" in server.output)


def test_call_in_a_drain_is_told_to_retry_elsewhere(job: Job) -> None:
    settings = (*SETTINGS, "--lame-duck-s", "5", "--workers", "1")
    with server_process("serving", "--repository", str(job.repository), *settings) as server:
        options = [("grpc.enable_retries", 0)]
        with grpc.insecure_channel(server.target, options=options) as channel:
            classify: Any = channel.unary_unary("/atelier.v1.Classifier/Classify")
            classify(bytes_of_one_image())
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: "draining" in server.output)
            with pytest.raises(grpc.RpcError) as caught:
                for _ in range(100):  # the word to drain may still be on its way to the worker
                    classify(bytes_of_one_image())
                    time.sleep(0.02)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert ("grpc-retry-pushback-ms", "700") in [tuple(pair) for pair in error.trailing_metadata()]


def bytes_of_one_image() -> bytes:
    return pb.ClassifyRequest(images=bytes(784)).SerializeToString()
