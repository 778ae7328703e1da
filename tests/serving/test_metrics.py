"""The metrics of a real server, scraped over HTTP: what was sent is what was counted."""

import asyncio
import os
import signal
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families

from atelier.client import Client
from atelier.errors import ConfigurationError
from atelier.wire import classifier_pb2 as pb
from loadtest.server_process import ServerProcess, server_process
from serving.config import ServerConfig
from serving.metrics import CODES, METHODS, NO_METRICS, Metrics
from tests.conftest import command
from tests.serving.conftest import FRONT_ENDS
from tests.serving.fake_backend import FakeBackend
from tests.serving.running import Page, kill_serving_process, scrape, wait_for
from tests.serving.test_server import grpcio_serving as in_process
from tests.serving.test_server import request, run

IMAGES = np.zeros((3, 28, 28), np.uint8)


@contextmanager
def serving(small_repository: Path, front_end: str, *arguments: str) -> Iterator[ServerProcess]:
    settings = ("--port", "0", "--device", "cpu", "--front-end", front_end)
    with server_process("serving", "--repository", str(small_repository), *settings, *arguments) as server:
        yield server


@pytest.fixture(scope="module", params=FRONT_ENDS)
def server(small_repository: Path, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with serving(small_repository, request.param) as running:
        yield running


def test_what_was_sent_is_what_was_counted_by_method_and_status(server: ServerProcess) -> None:
    for _ in range(30):
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
    assert min(sums_s[0], sums_s[2]) > 0
    assert sums_s[1] >= 0  # a lone request may not wait at all
    assert sums_s[0] + sums_s[1] < sums_s[2] < 30


def test_page_says_what_serves_and_gives_every_metric_its_help_and_type(server: ServerProcess) -> None:
    page = scrape(server)
    (info,) = page.families["atelier_info"].samples
    assert info.labels.items() >= {"backend": "onnxruntime", "device": "cpu", "model": "lenet5"}.items()
    assert info.labels["model_version"] == "1"
    assert page.value("atelier_workers") == 1
    assert len(page.families["atelier_requests"].samples) == len(METHODS) * len(CODES)
    for family in page.families.values():
        assert family.name.startswith(("atelier_", "nv_inference_"))
        assert family.documentation.endswith(".")
        assert family.type in ("counter", "gauge", "histogram", "unknown")


def test_tritons_names_carry_the_same_numbers_in_its_units(server: ServerProcess) -> None:
    with Client(server.target) as client:
        for _ in range(5):
            client.classify(IMAGES)
    page = scrape(server)
    served = {"model": "lenet5", "version": "1"}
    for name, ours, labels in (
        ("request_success", "atelier_requests_total", {"method": "Classify", "code": "OK"}),
        ("count", "atelier_images_total", {}),
        ("exec_count", "atelier_batches_total", {"outcome": "ok"}),
    ):
        assert page.value(f"nv_inference_{name}", **served) == page.value(ours, **labels) >= 5
    for name in ("request", "queue"):
        sum_us = page.value(f"atelier_{name}_duration_seconds_sum") * 1e6
        assert page.value(f"nv_inference_{name}_duration_us", **served) == pytest.approx(sum_us, abs=1)
    # Each of these requests was a batch of its own.
    compute_us = page.value("atelier_inference_duration_seconds_sum") * 1e6
    assert page.value("nv_inference_compute_infer_duration_us", **served) == pytest.approx(compute_us, abs=1)
    assert page.value("nv_inference_pending_request_count", **served) == 0
    reasons = {sample.labels["reason"] for sample in page.families["nv_inference_request_failure"].samples}
    assert reasons == {"REJECTED", "CANCELED", "BACKEND", "OTHER"}


def test_tritons_failures_are_those_of_classify_by_reason(server: ServerProcess) -> None:
    def num_others() -> float:
        return scrape(server).value("nv_inference_request_failure", reason="OTHER")

    before = num_others()
    with grpc.insecure_channel(server.target) as channel:
        for path, message in (("Classify", b"\xff\xff"), ("GetModel", b"\xff\xff"), ("Guess", b"")):
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/atelier.v1.Classifier/{path}")
            with pytest.raises(grpc.RpcError):
                call(message)
    assert num_others() == before + 1
    assert scrape(server).value("nv_inference_request_failure") == num_others()


def test_openmetrics_is_for_those_who_ask_for_it_and_has_the_same_samples(server: ServerProcess) -> None:
    asked = urllib.request.Request(  # noqa: S310 # it is http
        server.metrics_url, headers={"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    )
    with urllib.request.urlopen(asked, timeout=10) as reply:  # noqa: S310
        assert reply.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
        text = reply.read().decode()
    families = list(openmetrics_families(text))  # type: ignore[no-untyped-call] # raises unless it is as the standard has it
    assert all(sample.exemplar is None for family in families for sample in family.samples)
    samples = {(sample.name, *sorted(sample.labels.items())) for family in families for sample in family.samples}
    others = (sample for family in scrape(server).families.values() for sample in family.samples)
    assert samples == {(sample.name, *sorted(sample.labels.items())) for sample in others}


@pytest.mark.slow
def test_every_call_is_counted_once_under_the_status_that_it_ended_with() -> None:
    metrics = Metrics({"backend": "fake"})

    def counted() -> dict[tuple[str, str], float]:
        return Page(generate_latest(metrics.registry).decode()).calls()

    async def test() -> None:
        backend = FakeBackend(max_batch_size=1)
        backend.poison[7] = RuntimeError("a secret")
        settings = {"metrics": metrics, "max_queue_size": 2, "max_images_per_request": 2}
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
            assert server.num_waiting == 2
            gone.cancel()
            await status_of(late, "DEADLINE_EXCEEDED")
            while not counted().keys() >= {("Classify", "CANCELLED"), ("Classify", "DEADLINE_EXCEEDED")}:
                await asyncio.sleep(0.01)  # the clients know before the server
            backend.gate.set()
            for call in waiting:
                await call
            await calls.get_model(pb.GetModelRequest())

    run(test())
    assert counted() == {
        ("Classify", "OK"): 3,
        ("Classify", "INTERNAL"): 1,
        ("Classify", "INVALID_ARGUMENT"): 1,
        ("Classify", "RESOURCE_EXHAUSTED"): 1,
        ("Classify", "CANCELLED"): 1,
        ("Classify", "DEADLINE_EXCEEDED"): 1,
        ("GetModel", "OK"): 1,
    }
    page = Page(generate_latest(metrics.registry).decode())
    assert page.value("atelier_batches_total", outcome="failed") == 1
    assert page.value("atelier_images_total") == 3
    assert page.value("atelier_request_duration_seconds_count") == 3
    failures = {s.labels["reason"]: s.value for s in page.families["nv_inference_request_failure"].samples}
    assert failures == {"REJECTED": 2, "CANCELED": 1, "BACKEND": 1, "OTHER": 1}
    assert page.value("nv_inference_request_success") == 3


async def status_of(call: Any, status: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code().name == status


@pytest.mark.fault("S56")
def test_scrapers_that_are_stuck_keep_nobody_waiting(server: ServerProcess) -> None:
    host, port = server.metrics_url.split("/")[2].split(":")
    stuck = [socket.create_connection((host, int(port))) for _ in range(10)]
    try:
        for connection in stuck:
            connection.sendall(b"GET /metrics HTTP/1.1\r\n")  # and no more
        assert scrape(server).value("atelier_workers") == 1
        with Client(server.target) as client:
            client.classify(IMAGES)
    finally:
        for connection in stuck:
            connection.close()


@pytest.mark.slow
def test_replaced_process_is_counted_and_counts_anew(small_repository: Path, front_end: str) -> None:
    """Prometheus knows counters that begin again: rate() and increase() count on across it."""
    with serving(small_repository, front_end) as server, Client(server.target) as client:
        client.classify(IMAGES)
        kill_serving_process(server)
        client.classify(IMAGES, timeout_s=20)
        page = scrape(server)
        assert page.value("atelier_worker_restarts_total") == 1
        assert page.value("atelier_images_total") == 3


@pytest.mark.slow
def test_stopped_server_leaves_no_process_and_no_port_behind(small_repository: Path, front_end: str) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with serving(small_repository, front_end) as server:
            children = psutil.Process(server.process.pid).children()
            assert len(children) == 1
            address = server.metrics_url
            server.stop(number)
            assert psutil.wait_procs(children, timeout=30)[1] == []
            wait_for(lambda address=address: not is_open(address))  # type: ignore[misc]


def is_open(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()  # noqa: S310
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_server_without_metrics_has_no_page(small_repository: Path, front_end: str) -> None:
    with serving(small_repository, front_end, "--metrics-port", "0") as server:
        assert "metrics at" not in server.output
        with Client(server.target) as client:
            client.classify(IMAGES)


def test_taken_port_is_named_with_the_cures(small_repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = command("serving", "--repository", small_repository, "--port", 0, "--metrics-port", port)
    assert (done.returncode, done.stderr.count("\n")) == (os.EX_UNAVAILABLE, 1), done.stderr
    assert done.stderr.startswith(f"error: PORT_IN_USE: cannot listen on 127.0.0.1:{port} (")
    assert "another --metrics-port; --metrics-port 0 does without" in done.stderr


def test_default_port_is_tritons_unless_the_system_chooses_the_servers() -> None:
    assert ServerConfig().metrics_port_to_open == 8002
    assert ServerConfig(port=0).metrics_port_to_open == 0
    assert ServerConfig(port=0, metrics_port=9100).metrics_port_to_open == 9100
    assert not ServerConfig(metrics_port=0).has_metrics


def test_tritons_compute_time_counts_once_for_each_request_of_a_batch() -> None:
    metrics = Metrics({})
    metrics.observe_batch(8, 0.25, 8, num_requests=4)
    page = Page(generate_latest(metrics.registry).decode())
    assert page.value("nv_inference_compute_infer_duration_us") == 1e6
    assert page.value("atelier_inference_duration_seconds_sum") == 0.25


def test_values_on_a_bound_belong_below_it_as_prometheus_has_it() -> None:
    metrics = Metrics({})
    for num_images in (1, 2, 3, 1024, 1025):
        metrics.observe_batch(num_images, 0.0, 0)
    page = Page(generate_latest(metrics.registry).decode())
    counts = [page.value("atelier_batch_size_images_bucket", le=le) for le in ("1.0", "2.0", "4.0", "512.0", "1024.0")]
    assert counts == [1, 2, 3, 3, 4]
    assert page.value("atelier_batch_size_images_sum") == 2055


def test_status_and_method_that_nobody_knows_are_counted_as_such() -> None:
    metrics = Metrics({})
    metrics.count_call("Watch", "NO_STATUS_AT_ALL")
    assert Page(generate_latest(metrics.registry).decode()).calls() == {("other", "UNKNOWN"): 1}


def test_without_metrics_nothing_is_counted() -> None:
    NO_METRICS.observe_batch(1, 0.1, 1)
    NO_METRICS.set_ready(lambda: 0)
    assert not hasattr(NO_METRICS, "registry")


def test_one_port_for_calls_and_metrics_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="BAD_SETTING: --port and the metrics' port are both 8002"):
        ServerConfig(port=8002)
    assert ServerConfig(port=8002, metrics_port=0).port == 8002
