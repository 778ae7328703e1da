"""What a real server tells of its calls: lines of its log, and spans at a real OTLP endpoint."""

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from atelier.client import Client
from atelier.wire import classifier_pb2 as pb
from loadtest.server_process import ServerProcess, server_process
from serving.config import ServerConfig
from serving.request_log import CallRecord, RequestLog, TraceParent
from tests.serving.running import sent_path, wait_for

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CLASSIFY = "/atelier.v1.Classifier/Classify"


class Collector(TraceServiceServicer):
    """Keeps the spans that are exported to it, and what their resources say."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resource: dict[str, str] = {}

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name and signature
        for resource_spans in request.resource_spans:
            self.resource.update({each.key: each.value.string_value for each in resource_spans.resource.attributes})
            for scope_spans in resource_spans.scope_spans:
                self.spans.extend(scope_spans.spans)
        return otlp.ExportTraceServiceResponse()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collecting, server = Collector(), grpc.server(ThreadPoolExecutor(1))
    add_TraceServiceServicer_to_server(collecting, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    yield collecting
    server.stop(None)


@contextmanager
def serving(small_repository: Path, front_end: str, *flags: str) -> Iterator[ServerProcess]:
    settings = ("--repository", str(small_repository), "--port", "0", "--device", "cpu", "--front-end", front_end)
    with server_process("serving", *settings, *flags) as server:
        yield server


def call(server: ServerProcess, message: bytes, traceparent: str = "") -> None:
    with grpc.insecure_channel(server.target) as channel:
        classify: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(CLASSIFY)
        classify(message, metadata=(("traceparent", traceparent),) if traceparent else (), timeout=10)


def images(count: int) -> bytes:
    return pb.ClassifyRequest(images=bytes(784 * count)).SerializeToString()


def objects(server: ServerProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.output.splitlines()]


@pytest.mark.slow
def test_with_json_each_line_of_the_log_is_an_object_and_each_call_is_one_of_them(
    small_repository: Path, front_end: str
) -> None:
    with serving(small_repository, front_end, "--log-format", "json", "--log-requests") as server:
        call(server, images(3), f"00-{TRACE}-{PARENT}-01")
        with pytest.raises(grpc.RpcError):
            call(server, b"\xff")
        wait_for(lambda: server.output.count("atelier.requests") == 2)
        lines = objects(server)
        served, refused = [line for line in lines if line.get("logger") == "atelier.requests"]
    names = ("method", "status", "num_images", "batch_size", "trace_id", "level")
    assert [served[name] for name in names] == ["atelier.v1.Classifier/Classify", "OK", 3, 3, TRACE, "info"]
    assert served["model_version"] == "1"
    assert 0 < served["inference_ms"] < served["took_ms"] < 10_000
    assert (refused["status"], "num_images" in refused, "trace_id" in refused) == ("INVALID_ARGUMENT", False, False)
    assert any("serving atelier.v1.Classifier" in line["message"] for line in lines)
    assert all(line["time"].endswith("Z") and line["level"] for line in lines)


@pytest.mark.slow
def test_in_text_a_call_is_a_line_and_without_the_flag_none(small_repository: Path, front_end: str) -> None:
    with serving(small_repository, front_end, "--log-requests") as server:
        call(server, images(1))
        wait_for(lambda: "atelier.v1.Classifier/Classify OK in " in server.output)
        assert "1 images" in server.output
    with serving(small_repository, front_end) as silent:
        call(silent, images(1))
    assert "Classify OK" not in silent.output


@pytest.mark.slow
def test_a_span_belongs_to_the_clients_trace_and_its_sampled_bit_is_obeyed(
    small_repository: Path, front_end: str, collector: Collector
) -> None:
    with serving(small_repository, front_end, "--traces") as server:
        call(server, images(2), f"00-{TRACE}-{PARENT}-01")
        call(server, images(1), f"00-{TRACE}-{PARENT}-00")
        call(server, images(1), "nonsense")
        with pytest.raises(grpc.RpcError):
            call(server, b"\xff", f"00-{TRACE}-{PARENT}-01")
        wait_for(lambda: len(collector.spans) >= 3)
    sampled, orphan, refused = collector.spans  # all: the server's end sends the last
    assert (sampled.trace_id.hex(), sampled.parent_span_id.hex()) == (TRACE, PARENT)
    assert (sampled.name, sampled.kind) == ("atelier.v1.Classifier/Classify", Span.SPAN_KIND_SERVER)
    attributes = {each.key: each.value.int_value for each in sampled.attributes}
    assert (attributes["atelier.num_images"], attributes["rpc.grpc.status_code"]) == (2, 0)
    took_us = (sampled.end_time_unix_nano - sampled.start_time_unix_nano) / 1e3
    assert 0 < attributes["atelier.inference_us"] <= took_us < 10e6
    assert orphan.trace_id.hex() != TRACE
    assert not orphan.parent_span_id
    assert refused.status.code == Status.STATUS_CODE_UNSET  # the client's fault
    assert collector.resource["service.name"] == "atelier"
    assert collector.resource["atelier.model_version"] == "1"


@pytest.mark.slow
@pytest.mark.fault("S56")
def test_a_collector_that_does_not_answer_costs_spans_and_no_calls(
    small_repository: Path, front_end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with serving(small_repository, front_end, "--traces") as server, Client(server.target) as client:
        labels = [client.classify(np.zeros((1, 28, 28), np.uint8)).labels[0] for _ in range(20)]
    assert len(set(labels)) == 1


@pytest.mark.slow
@pytest.mark.fault("S50")
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_name_that_a_stranger_chose_makes_no_second_line_and_moves_no_terminal(
    small_repository: Path, front_end: str, log_format: str
) -> None:
    paths = (b"/\x1b[31m/Classify", b"/a\nb/Classify", b"/a\x00b/Classify", b"/a%0Ab/Classify", "/ä\u2028/x".encode())
    with serving(small_repository, front_end, "--log-requests", "--log-format", log_format) as server:
        for path in paths:
            with sent_path(server, path) as connection, contextlib.suppress(OSError):
                connection.settimeout(0.3)
                while connection.recv(4096):
                    pass
        call(server, images(1))
        wait_for(lambda: "Classify OK" in server.output)
        lines = server.output.splitlines()
        assert all(line.isprintable() for line in lines)
        assert not any(line.startswith("b/Classify") for line in lines)
        assert server.stop() == 0


@pytest.mark.fault("S50")
def test_whatever_a_record_holds_it_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    log = RequestLog(ServerConfig(log_requests=True), {})
    for method in ("a\nerror: FAKE: b", "\x1b[2J", "\u2028", "\r", "a b"):
        log.write([CallRecord(method, 0, "1", 1, 0, 1, 1, 1, 1, "")])
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert len(caplog.records) == 5


@pytest.mark.slow
def test_many_calls_are_as_many_lines(small_repository: Path, front_end: str) -> None:
    """No more of them than the pipe holds: a busy machine may read late, and what does not fit is dropped."""
    with serving(small_repository, front_end, "--log-requests", "--log-format", "json") as server:
        with Client(server.target) as client:
            for _ in range(100):
                client.classify(np.zeros((1, 28, 28), np.uint8))
        wait_for(lambda: server.output.count("atelier.requests") == 100)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"00-{TRACE}-{PARENT}-01", TraceParent(TRACE, PARENT, True)),
        (f"00-{TRACE}-{PARENT}-00", TraceParent(TRACE, PARENT, False)),
        (f"01-{TRACE}-{PARENT}-03-more", TraceParent(TRACE, PARENT, True)),
        (f"ff-{TRACE}-{PARENT}-01", None),
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{PARENT}-01", None),
        ("", None),
    ],
)
def test_a_traceparent_is_read_as_its_specification_says(header: str, expected: TraceParent | None) -> None:
    assert TraceParent.parse(header) == expected
