"""The metrics of a real server, scraped over HTTP: what was sent is what was counted, whoever dies meanwhile."""

import asyncio
import os
import re
import signal
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from loadtest.server_process import ServerProcess, server_process
from protos import classifier_pb2 as pb
from serving.client import Client
from serving.config import ServerConfig
from serving.errors import ConfigurationError, ResourceUnavailableError
from serving.metrics import CODES, METHODS, NO_METRICS, NUM_SLOTS, Board, place_of_calls
from serving.metrics_process import NAME as PAGE
from serving.port import open_listeners
from tests.conftest import Job, command
from tests.serving.fake_backend import FakeBackend
from tests.serving.test_server import request, run
from tests.serving.test_server import serving as in_process
from tests.serving.test_supervisor import wait_for, workers_of

IMAGES = np.zeros((3, 28, 28), np.uint8)
SETTINGS = ("--port", "0", "--device", "cpu", "--lame-duck-s", "0.1", "--workers", "2")


class Page:
    """One scrape, as Prometheus' own parser understands it."""

    def __init__(self, text: str) -> None:
        self.families: dict[str, Metric] = {family.name: family for family in text_string_to_metric_families(text)}

    def value(self, name: str, **labels: str) -> float:
        """The sum over all samples of this name that have these labels."""
        samples = [sample for family in self.families.values() for sample in family.samples if sample.name == name]
        assert samples, f"{name} is not on the page"
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def calls(self) -> dict[tuple[str, str], float]:
        """All that are not 0, by method and status."""
        samples = self.families["atelier_requests"].samples
        return {(sample.labels["method"], sample.labels["code"]): sample.value for sample in samples if sample.value}


def address_of(server: ServerProcess) -> str:
    found = re.search(r"metrics at (http://\S+/metrics)", server.output)
    assert found, server.output
    return found[1]


def scrape(server: ServerProcess) -> Page:
    with urllib.request.urlopen(address_of(server), timeout=10) as reply:  # noqa: S310 # it is http
        assert reply.headers["Content-Type"].startswith("text/plain; version=")
        return Page(reply.read().decode())


@contextmanager
def serving(job: Job, *arguments: str) -> Iterator[ServerProcess]:
    with server_process("serving", "--repository", str(job.repository), *SETTINGS, *arguments) as server:
        yield server


@pytest.fixture(scope="module")
def server(job: Job) -> Iterator[ServerProcess]:
    with serving(job) as running:
        yield running


def test_two_workers_count_what_was_sent_by_method_and_status(server: ServerProcess) -> None:
    for _ in range(30):  # connections, which the kernel spreads
        with Client(server.target) as client:
            client.classify(IMAGES)
            client.model()
            client.is_serving()
    with grpc.insecure_channel(server.target) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/atelier.v1.Classifier/Classify")
        for message in (b"\xff\xff", pb.ClassifyRequest(images=bytes(784), top_k=11).SerializeToString()):
            with pytest.raises(grpc.RpcError):
                call(message)
        with pytest.raises(grpc.RpcError):
            call(pb.ClassifyRequest(images=bytes(784), model_version="9").SerializeToString())
        unknown: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/atelier.v1.Classifier/Guess")
        with pytest.raises(grpc.RpcError):
            unknown(b"")
    page = scrape(server)
    assert page.calls() == {
        ("Classify", "OK"): 30,
        ("Classify", "INVALID_ARGUMENT"): 2,
        ("Classify", "NOT_FOUND"): 1,
        ("GetModel", "OK"): 30,
        ("other", "OK"): 30,
        ("other", "UNIMPLEMENTED"): 1,
    }
    assert page.value("atelier_images_total") == page.value("atelier_batch_size_images_sum") == 90
    for name in ("request", "queue"):
        assert page.value(f"atelier_{name}_duration_seconds_count") == 30
    num_batches = page.value("atelier_batches_total", outcome="ok")
    assert num_batches == page.value("atelier_batch_size_images_count") == 30
    assert num_batches == page.value("atelier_inference_duration_seconds_count")
    assert page.value("atelier_batch_size_images_bucket", le="2.0") == 0
    assert page.value("atelier_batch_size_images_bucket", le="4.0") == 30
    sums_s = [page.value(f"atelier_{name}_duration_seconds_sum") for name in ("inference", "queue", "request")]
    assert min(sums_s) > 0
    assert sums_s[0] + sums_s[1] < sums_s[2] < 30


def test_page_says_what_serves_and_gives_every_metric_its_help_and_type(server: ServerProcess) -> None:
    page = scrape(server)
    (info,) = page.families["atelier_info"].samples
    assert info.labels.items() >= {"backend": "onnxruntime", "device": "cpu", "model": "lenet5"}.items()
    assert info.labels["model_version"] in ("1", "2")
    assert page.value("atelier_workers") == 2
    assert len(page.families["atelier_requests"].samples) == len(METHODS) * len(CODES)
    for family in page.families.values():
        assert family.name.startswith("atelier_")
        assert family.documentation.endswith(".")
        assert family.type in ("counter", "gauge", "histogram")


def test_every_call_is_counted_once_under_the_status_that_it_ended_with() -> None:
    board = Board()

    def counted() -> set[tuple[str, str]]:
        return set(calls_in(board.totals()["calls"]))

    async def test() -> None:
        backend = FakeBackend(max_batch_size=1)
        backend.poison[7] = RuntimeError("a secret")
        settings = {"metrics": board.metrics(0), "max_queue_size": 2, "max_images_per_request": 2}
        async with in_process(backend, **settings) as (server, calls, _):
            await calls.classify(request(1))
            await status_of(calls.classify(request(7)), "INTERNAL")
            await status_of(calls.classify(request(1, 1, 1)), "INVALID_ARGUMENT")
            backend.gate.clear()
            late = calls.classify(request(2), timeout=0.9)
            while backend.executed[-1] != 2:
                await asyncio.sleep(0.01)  # until it is on the device
            gone = calls.classify(request(3))  # one batch is prepared ahead
            waiting = []
            for label in (4, 5):  # one after the other: there is room for two that have yet to be looked at
                waiting.append(calls.classify(request(label)))
                while server.num_waiting < len(waiting):
                    await asyncio.sleep(0.01)
            await status_of(calls.classify(request(6)), "RESOURCE_EXHAUSTED")
            assert server.num_waiting == 2  # what a worker tells the metrics once a second
            gone.cancel()
            await status_of(late, "DEADLINE_EXCEEDED")
            while not counted() >= {("Classify", "CANCELLED"), ("Classify", "DEADLINE_EXCEEDED")}:
                await asyncio.sleep(0.01)  # the clients know before the server
            backend.gate.set()
            for call in waiting:
                await call
            await calls.get_model(pb.GetModelRequest())

    run(test())
    totals = board.totals()
    assert calls_in(totals["calls"]) == {
        ("Classify", "OK"): 3,
        ("Classify", "INTERNAL"): 1,
        ("Classify", "INVALID_ARGUMENT"): 1,
        ("Classify", "RESOURCE_EXHAUSTED"): 1,
        ("Classify", "CANCELLED"): 1,
        ("Classify", "DEADLINE_EXCEEDED"): 1,
        ("GetModel", "OK"): 1,
    }
    assert totals["failed_batches"] == [1]
    assert totals["images"] == [3]
    assert sum(totals["request"][:-1]) == 3


async def status_of(call: Any, status: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code().name == status


def calls_in(numbers: list[float]) -> dict[tuple[str, str], float]:
    """All that are not 0, by method and status."""
    pairs = [(method, code) for method in METHODS for code in CODES]
    return {pair: count for pair, count in zip(pairs, numbers, strict=True) if count}


def test_killed_worker_loses_no_count_and_no_total_goes_backwards(job: Job) -> None:
    with serving(job) as server, Client(server.target) as client:
        for number in range(1, 4):
            client.classify(IMAGES, timeout_s=20)
            for victim in workers_of(server):  # whichever of them answered
                victim.kill()
                victim.wait(30)
            page = scrape(server)
            assert page.value("atelier_images_total") == 3 * number
            assert page.value("atelier_requests_total", method="Classify", code="OK") == number
            wait_for(partial(has_recovered, server, num_restarts=2 * number))
        assert server.stop() == 0


def has_recovered(server: ServerProcess, num_restarts: int) -> bool:
    page = scrape(server)
    return (page.value("atelier_worker_restarts_total"), page.value("atelier_workers")) == (num_restarts, 2)


def test_page_that_dies_comes_back_with_all_counts(server: ServerProcess) -> None:
    images = scrape(server).value("atelier_images_total")
    (page,) = [child for child in psutil.Process(server.process.pid).children() if child.name() == PAGE]
    page.kill()
    page.wait(30)
    # The supervisor still listens, so this waits for the next process.
    assert scrape(server).value("atelier_images_total") == images
    assert scrape(server).value("atelier_worker_restarts_total") == 0


def test_scrapers_that_are_stuck_keep_nobody_waiting(server: ServerProcess) -> None:
    host, port = address_of(server).split("/")[2].split(":")
    stuck = [socket.create_connection((host, int(port))) for _ in range(10)]
    try:
        for connection in stuck:
            connection.sendall(b"GET /metrics HTTP/1.1\r\n")  # and no more
        assert scrape(server).value("atelier_workers") == 2
        victim = workers_of(server)[0]
        victim.kill()
        wait_for(lambda: scrape(server).value("atelier_worker_restarts_total") == 1)
        with Client(server.target) as client:
            client.classify(IMAGES, timeout_s=10)
    finally:
        for connection in stuck:
            connection.close()


def test_stopped_server_leaves_no_process_and_no_port_behind(job: Job) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with serving(job) as server:
            children = psutil.Process(server.process.pid).children()
            assert len(children) == 3
            address = address_of(server)
            server.stop(number)
            assert psutil.wait_procs(children, timeout=30)[1] == []
            with pytest.raises(OSError):
                urllib.request.urlopen(address, timeout=5)  # noqa: S310


def test_server_without_metrics_has_no_page(job: Job) -> None:
    with serving(job, "--metrics-port", "0") as server:
        assert "metrics at" not in server.output
        assert len(psutil.Process(server.process.pid).children()) == 2
        with Client(server.target) as client:
            client.classify(IMAGES)


def test_taken_port_is_named_with_the_cures(job: Job) -> None:
    (listener,) = open_listeners("127.0.0.1", 0)
    with listener:
        port = listener.getsockname()[1]
        done = command("serving", "--repository", job.repository, "--port", 0, "--metrics-port", port)
    assert (done.returncode, done.stderr.count("\n")) == (os.EX_UNAVAILABLE, 1), done.stderr
    assert done.stderr.startswith(f"error: PORT_IN_USE: cannot listen on 127.0.0.1:{port} (")
    assert "another --metrics-port; --metrics-port 0 does without" in done.stderr


def test_metrics_are_bound_to_every_address_of_the_host() -> None:
    listeners = open_listeners("localhost", 0)
    try:
        assert [listener.family for listener in listeners] == [socket.AF_INET, socket.AF_INET6]
        assert len({listener.getsockname()[1] for listener in listeners}) == 1
        with pytest.raises(ResourceUnavailableError, match="PORT_IN_USE"):
            open_listeners("[::1]", listeners[0].getsockname()[1])
    finally:
        for listener in listeners:
            listener.close()


def test_default_port_is_tritons_unless_the_system_chooses_the_servers() -> None:
    assert ServerConfig().metrics_port_to_open == 8002
    assert ServerConfig(port=0).metrics_port_to_open == 0
    assert ServerConfig(port=0, metrics_port=9100).metrics_port_to_open == 9100
    assert not ServerConfig(metrics_port=0).has_metrics


# --- The numbers themselves ------------------------------------------------------------------------------------------


def test_totals_add_up_over_slots_and_outlive_their_workers() -> None:
    board = Board()
    for slot in (0, 1):
        metrics = board.metrics(slot)
        metrics.describe({"backend": "fake"})
        metrics.set_queue_images(5)
        metrics.observe_batch(num_images=64, seconds=0.003, num_answered=60)
        metrics.count_call(place_of_calls("Classify"), "OK")
        metrics.count_call(place_of_calls("Watch"), "NO_STATUS_AT_ALL")
    board.release(0)
    totals = board.totals()
    assert totals["images"] == [120]
    assert totals["queue_images"] == [5]
    assert board.descriptions() == [{"backend": "fake"}]
    assert totals["inference"][-1] == pytest.approx(0.006)
    assert sum(totals["inference"][:-1]) == sum(totals["batch_size"][:-1]) == 2
    assert calls_in(totals["calls"]) == {("Classify", "OK"): 2, ("other", "UNKNOWN"): 2}
    board.metrics(0).observe_batch(1, 0.001, 1)  # the one that replaces it
    assert board.totals()["images"] == [121]


def test_any_description_fits_its_slot() -> None:
    board = Board()
    for character in ("\x00", "\U0001f45f", '"'):
        board.metrics(0).describe(dict.fromkeys(("a", "b", "c", "d", "e", "f"), 500 * character))
        assert board.descriptions()[0]["f"] == 80 * character


def test_slots_are_given_out_again_and_shared_when_there_are_not_enough() -> None:
    board = Board()
    assert board.free_slot([]) == 0
    assert board.free_slot([0, 2]) == 1
    assert board.free_slot(list(range(NUM_SLOTS - 1))) == 0  # the supervisor's own is never a worker's


def test_values_on_a_bound_belong_below_it_as_prometheus_has_it() -> None:
    board = Board()
    for num_images in (1, 2, 3, 1024, 1025):
        board.metrics(0).observe_batch(num_images, 0.0, 0)
    assert board.totals()["batch_size"] == [1, 1, 1, *[0] * 7, 1, 1, 2055]


def test_without_metrics_nothing_is_counted() -> None:
    NO_METRICS.observe_batch(1, 0.1, 1)
    NO_METRICS.describe({"backend": "fake"})
    assert not hasattr(NO_METRICS, "_numbers")


def test_one_port_for_calls_and_metrics_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="BAD_SETTING: --port and the metrics' port are both 8002"):
        ServerConfig(port=8002)
    assert ServerConfig(port=8002, metrics_port=0).port == 8002
