"""The native front end, held to what test_server.py holds grpcio's to; and what only it promises."""

import asyncio
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_reflection.v1alpha import reflection_pb2
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

pytest.importorskip("atelier_native", reason="the native front end is not built here (native/)")

from atelier.contract import Images, Logits
from atelier.wire import OPEN_INFERENCE, SERVICE
from atelier.wire import classifier_pb2 as pb
from loadtest.attack import bombs, http2
from loadtest.server_process import server_process
from serving.batching.request import Answer
from serving.config import ServerConfig
from serving.frontends.grpcio.responses import ResponseWriter
from serving.frontends.native.server import NativeServer
from serving.listening import Listening
from serving.metrics import Metrics
from serving.models import ServedModel
from serving.process import labels_of
from tests.serving import test_server as cases
from tests.serving.fake_backend import CLASSES, MANIFEST, FakeBackend
from tests.serving.native_server import ListeningServer, end_of, native_serving, started
from tests.serving.stopped_decoders import decoders_stopped
from tests.serving.test_server import (  # noqa: F401 - collected here too, over the other front end
    test_answers_come_in_request_order_with_names_and_probabilities,
    test_answers_tell_the_size_of_the_batch_that_they_ran_in,
    test_bad_request_gets_its_status_and_word_and_never_runs,
    test_broken_device_ends_the_server_with_an_error_and_loses_only_what_failed,
    test_call_without_a_message_is_a_bad_request,
    test_device_that_hangs_in_a_drain_makes_the_drain_a_failure,
    test_device_without_memory_for_a_batch_answers_it_in_parts_and_without_any_sheds_load,
    test_drain_answers_what_was_accepted_and_tells_others_to_retry,
    test_drain_that_takes_too_long_ends_with_an_error,
    test_failing_backend_is_internal_and_its_words_stay_inside,
    test_full_queue_refuses_with_a_hint_when_to_retry,
    test_get_model_describes_what_is_served,
    test_health_of_an_unknown_service_is_not_found,
    test_hung_device_ends_the_server_with_an_error,
    test_malformed_health_check_or_reflection_is_a_bad_request,
    test_message_over_the_limit_is_refused,
    test_pictures_are_decoded_in_order,
    test_pictures_of_too_many_pixels_are_refused_before_any_is_decoded,
    test_pixels_that_wait_are_bounded,
    test_processes_that_decode_pictures_give_way_and_are_few,
    test_refused_request_leaves_nothing_of_its_message_behind,
    test_request_cancelled_by_its_client_is_not_executed,
    test_request_whose_deadline_passes_in_the_queue_is_never_executed,
    test_request_without_a_deadline_gets_the_servers,
    test_served_model_and_version_may_be_named,
    test_time_split_tells_waiting_from_running,
    test_unknown_method_is_unimplemented,
    test_watcher_of_health_hears_of_the_drain,
)


@pytest.fixture
def serving() -> cases.Serving:
    """The front end behind which the cases run."""
    return native_serving


CLASSIFY = f"/{SERVICE}/Classify"


@contextmanager
def server_of(backend: FakeBackend, **settings: Any) -> Iterator[ListeningServer]:
    server = started(backend, **settings)
    try:
        yield server
    finally:
        backend.gate.set()
        server.stop()
        end_of(server)


def label_from(target: str, label: int, **options: Any) -> int:
    """What the server there says that an image is."""
    with grpc.insecure_channel(target) as channel:
        call: Any = channel.unary_unary(CLASSIFY, response_deserializer=pb.ClassifyResponse.FromString)
        reply = call(cases.request(label).SerializeToString(), timeout=5, **options)
    found: int = reply.classifications[0].predictions[0].label
    return found


def test_it_does_without_grpcio_and_asyncio() -> None:
    """They would be a fifth of its memory, and of the time until its first answer."""
    code = "import sys, serving.server, serving.frontends.native.server; print({'grpc', 'asyncio'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"set()\n"


def test_it_serves_on_all_sockets_that_it_is_given(tmp_path: Path) -> None:
    with server_of(FakeBackend(), hosts=("127.0.0.1", "::1", f"unix:{tmp_path / 'socket'}")) as server:
        assert [label_from(target, 3) for target in server.addresses] == [3, 3, 3]


def test_sockets_stay_open_for_the_next_process() -> None:
    with Listening(["127.0.0.1"], 0) as listening:
        for label in (4, 5):  # one server after the other
            served = ServedModel(manifest=MANIFEST, backend=FakeBackend(), sha256="")
            server = NativeServer(ServerConfig(port=0), served, sockets=listening.sockets)
            server.start()
            assert label_from(listening.addresses[0], label) == label
            server.stop()
            while not server.wait(0.2):
                pass


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests_are_read(compression: grpc.Compression) -> None:
    with server_of(FakeBackend()) as server:
        assert label_from(server.addresses[0], 8, compression=compression) == 8


@pytest.mark.fault("S10")
def test_what_a_compressed_message_becomes_is_bounded() -> None:
    with (
        server_of(FakeBackend(), max_images_per_request=8, max_message_bytes=8192) as server,
        grpc.insecure_channel(server.addresses[0]) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        call: Any = channel.unary_unary(CLASSIFY)
        call(bytes(1 << 20), compression=grpc.Compression.Gzip, timeout=5)
    failure: Any = caught.value
    assert failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure.details().startswith("MESSAGE_TOO_LARGE: the message has more than 8192 bytes when decompressed")


@pytest.mark.fault("S46")
@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_knows_services_files_and_a_methods_symbol(version: str) -> None:
    questions = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=f"{SERVICE}.Classify"),
        reflection_pb2.ServerReflectionRequest(file_by_filename="atelier/wire/classifier.proto"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="nobody.Knows"),
    ]
    with server_of(FakeBackend()) as server, grpc.insecure_channel(server.addresses[0]) as channel:
        path = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        call: Any = channel.stream_stream(
            path,
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        services, by_symbol, by_name, unknown = call(iter(questions), timeout=5)
    assert {service.name for service in services.list_services_response.service} == {
        SERVICE,
        OPEN_INFERENCE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    files = by_symbol.file_descriptor_response.file_descriptor_proto
    assert files == by_name.file_descriptor_response.file_descriptor_proto
    assert b"ClassifyRequest" in files[0]
    assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


@pytest.mark.fault("S12")
def test_streams_that_never_send_a_message_are_ended_and_disturb_nobody() -> None:
    async def test() -> None:
        async with native_serving(FakeBackend(), message_timeout_s=0.3) as (_, calls, _):
            silent = [calls.classify_stream() for _ in range(20)]
            for call in silent:
                await call.wait_for_connection()
            assert (await calls.classify(cases.request(6))).classifications[0].predictions[0].label == 6
            for call in silent:
                assert await how_it_ended(call) == "SLOW_MESSAGE"

    cases.run(test())


@pytest.mark.parametrize("method", ["grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch"])
def test_health_checks_that_never_send_a_message_are_ended_too(method: str) -> None:
    async def test() -> None:
        async with native_serving(FakeBackend(), message_timeout_s=0.2) as (_, calls, _):
            silent: Any = calls.channel.stream_stream(f"/{method}")()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await silent.read()
        assert (caught.value.details() or "").startswith("SLOW_MESSAGE")

    cases.run(test())


async def how_it_ended(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return (caught.value.details() or "").partition(":")[0]


@pytest.mark.slow
@pytest.mark.fault("S12")
def test_of_too_many_calls_without_a_message_the_oldest_end_and_requests_go_on() -> None:
    async def test() -> None:
        async with native_serving(FakeBackend(), max_concurrent_requests=60, message_timeout_s=3.0) as (_, calls, _):
            silent = [calls.classify_stream() for _ in range(50)]  # 30 may wait
            ends = [asyncio.create_task(how_it_ended(call)) for call in silent]
            await asyncio.sleep(0.5)
            for label in range(5):
                assert (await calls.classify(cases.request(label))).classifications[0].predictions[0].label == label
            counted = Counter([await end for end in ends])
        assert set(counted) == {"TOO_MANY_WAITING", "SLOW_MESSAGE"}
        assert 20 <= counted["TOO_MANY_WAITING"] <= 25  # the requests may have waited for a moment too

    cases.run(test())


def test_large_request_is_split_and_its_answers_come_in_order() -> None:
    backend = FakeBackend(max_batch_size=4)
    labels = [number % 10 for number in range(10)]
    with server_of(backend) as server, grpc.insecure_channel(server.addresses[0]) as channel:
        call: Any = channel.unary_unary(CLASSIFY, response_deserializer=pb.ClassifyResponse.FromString)
        reply = call(cases.request(*labels).SerializeToString(), timeout=5)
    assert [answer.predictions[0].label for answer in reply.classifications] == labels
    assert reply.time.batch_size == 4
    assert [len(batch) for batch in backend.batches] == [4, 4, 2]


class SlowOnnxRuntime(FakeBackend):
    """Takes 2 ms an image; by its name, the thread that reads small requests may run them itself."""

    name = "onnxruntime"

    def infer(self, images: Images) -> Logits:
        time.sleep(0.002 * len(images))
        return super().infer(images)


@pytest.mark.slow
def test_large_request_after_an_idle_time_is_answered_whole() -> None:
    """What was measured is believed less and less while nothing comes: many images then seem to be quick."""
    backend = SlowOnnxRuntime(max_batch_size=4)
    with server_of(backend) as server, grpc.insecure_channel(server.addresses[0]) as channel:
        call: Any = channel.unary_unary(CLASSIFY, response_deserializer=pb.ClassifyResponse.FromString)
        call(cases.request(*range(4)).SerializeToString(), timeout=5)
        time.sleep(7)
        reply = call(cases.request(*range(10)).SerializeToString(), timeout=5)
    assert [answer.predictions[0].label for answer in reply.classifications] == list(range(10))


@pytest.mark.fault("S28")
@pytest.mark.parametrize(
    "logits",
    [
        np.full((1, 10), np.nan, np.float32),
        np.zeros((1, 9), np.float32),
        np.zeros((2, 10), np.float32),
        np.zeros((1, 10), np.float64),
    ],
    ids=["nan", "shape", "rows", "float64"],
)
def test_nonsense_from_the_backend_is_internal_for_exactly_that_batch(
    logits: Any, caplog: pytest.LogCaptureFixture
) -> None:
    backend = FakeBackend()
    with server_of(backend) as server:
        backend.answer = logits
        with pytest.raises(grpc.RpcError) as caught:
            label_from(server.addresses[0], 1)
        backend.answer = None
        assert label_from(server.addresses[0], 2) == 2
    failure: Any = caught.value
    assert failure.code() is grpc.StatusCode.INTERNAL
    assert failure.details().startswith("BAD_OUTPUT: the backend answered with ")
    assert "BAD_OUTPUT: the backend answered with " in caplog.text


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
END_STREAM, END_HEADERS = 1, 4
NO_WINDOW = struct.pack(">HI", 4, 0)


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def header_block(path: bytes) -> bytes:
    """The headers of a call, as literals that no table remembers."""
    pairs = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"x")]
    pairs += [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
    return b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in pairs)


@contextmanager
def raw_connection(server: ListeningServer, settings: bytes = b"") -> Iterator[socket.socket]:
    host, _, port = server.addresses[0].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as client:
        client.sendall(PREFACE + frame(SETTINGS, payload=settings))
        yield client


def seconds_to_close(client: socket.socket) -> float:
    began_s = time.monotonic()
    with suppress(ConnectionResetError):
        while client.recv(65536):
            pass
    return time.monotonic() - began_s


@pytest.mark.fault("S13")
def test_client_that_opens_no_window_loses_its_connection() -> None:
    message = cases.request(1).SerializeToString()
    with server_of(FakeBackend(), write_timeout_s=0.5) as server:
        with raw_connection(server, NO_WINDOW) as client:
            client.sendall(frame(HEADERS, END_HEADERS, 1, header_block(CLASSIFY.encode())))
            client.sendall(frame(DATA, END_STREAM, 1, struct.pack(">BI", 0, len(message)) + message))
            assert 0.4 < seconds_to_close(client) < 4.0
        assert label_from(server.addresses[0], 2) == 2


@pytest.mark.fault("S13")
@pytest.mark.parametrize("protocol", ["gRPC", "HTTP"])
def test_client_that_has_room_for_one_byte_of_each_answer_loses_its_connection(protocol: str) -> None:
    images = pb.ClassifyRequest(images=bytes(16 * 784), top_k=10).SerializeToString()
    view = b"\x82\x86" + http2.literal(b":authority", b"x") + http2.literal(b":path", b"/openapi.json")
    with server_of(FakeBackend(), write_timeout_s=0.5) as server:
        host, port = server.addresses[0].rsplit(":", 1)
        with http2.Connection((host, int(port)), http2.setting(http2.INITIAL_WINDOW, 1)) as client:
            for _ in range(3):
                stream = client.next_stream()
                if protocol == "HTTP":
                    client.send(http2.opening(stream, view, http2.END_HEADERS | http2.END_STREAM))
                else:
                    message = http2.frame(http2.DATA, http2.END_STREAM, stream, http2.message(images))
                    client.send(http2.opening(stream) + message)
            began_s = time.monotonic()
            while client.read(0.05) and time.monotonic() < began_s + 5:
                pass
            assert client.received[http2.DATA] == 3
            assert not client.is_open
            assert 0.3 < time.monotonic() - began_s < 4.0
        assert label_from(server.addresses[0], 2) == 2


@pytest.mark.slow
@pytest.mark.fault("S16")
def test_connections_that_have_pushed_and_are_silent_slow_nobody_down() -> None:
    pings = http2.frame(http2.PING, 0, 0, bytes(8))
    with server_of(FakeBackend()) as server, ExitStack() as stack:
        host, port = server.addresses[0].rsplit(":", 1)
        clients = [stack.enter_context(http2.Connection((host, int(port)))) for _ in range(101)]
        for client in clients[:100]:
            client.send(pings * 300)
            client.read(0.01)
        time.sleep(1)
        one = clients[100]
        one.send(pings * 300)
        one.read(0.5)
        began_s = time.monotonic()
        for _ in range(10):
            stream = one.next_stream()
            message = http2.frame(http2.DATA, http2.END_STREAM, stream, http2.ONE_IMAGE)
            one.send(pings * 20 + http2.opening(stream) + message)
            assert one.wait_for(stream, time.monotonic() + 5)
        assert time.monotonic() - began_s < 0.3  # with a hundred that push it would be 10 x 20 x 2 ms


def test_call_that_crosses_the_end_of_a_drain_costs_no_other_call_its_answer() -> None:
    """gRPC's C library answers the ping of a drain first, and then sends what it had begun, with a WINDOW_UPDATE."""
    backend = FakeBackend()
    with server_of(backend) as server:
        host, port = server.addresses[0].rsplit(":", 1)
        with http2.Connection((host, int(port))) as client:
            backend.gate.clear()
            asked, crossing = client.next_stream(), client.next_stream()
            client.send(http2.opening(asked) + http2.frame(http2.DATA, http2.END_STREAM, asked, http2.ONE_IMAGE))
            assert backend.started.acquire(timeout=5)
            server.stop()
            until_s = time.monotonic() + 5
            while client.received[http2.GOAWAY] < 2 and time.monotonic() < until_s:  # one before the ping, one behind
                client.read(0.05)
            window = http2.frame(http2.WINDOW_UPDATE, 0, crossing, struct.pack(">I", 1 << 16))
            message = http2.frame(http2.DATA, http2.END_STREAM, crossing, http2.ONE_IMAGE)
            client.send(http2.opening(crossing) + window + message)
            client.read(0.3)
            backend.gate.set()
            assert client.wait_for(asked, time.monotonic() + 5)
            assert (client.received[http2.GOAWAY], len(client.answered) > 5) == (2, True)


@pytest.mark.slow
def test_client_that_reads_slowly_and_all_the_time_keeps_its_connection() -> None:
    message = cases.request(1, top_k=10).SerializeToString()
    with server_of(FakeBackend(), write_timeout_s=0.4) as server, raw_connection(server, NO_WINDOW) as client:
        streams = range(1, 41, 2)
        for stream in streams:
            client.sendall(frame(HEADERS, END_HEADERS, stream, header_block(CLASSIFY.encode())))
            client.sendall(frame(DATA, END_STREAM, stream, struct.pack(">BI", 0, len(message)) + message))
        answers = b""
        for stream in streams:
            time.sleep(0.1)
            client.sendall(frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", 4096)))
            answers += client.recv(65536)
        while answers.count(b"Shirt") < len(streams):
            piece = client.recv(65536)
            assert piece, f"cut after {answers.count(b'Shirt')} answers"
            answers += piece


def heavy_requests() -> dict[str, tuple[bytes, bytes]]:
    """Small messages that take long: more headers, and the message."""
    gzipped = b"\0\x0dgrpc-encoding\x04gzip"
    picture = pb.ClassifyRequest(pictures=[bombs.blank_png(bombs.ALLOWED_SIDE)]).SerializeToString()
    return {
        "picture": (b"", struct.pack(">BI", 0, len(picture)) + picture),
        "gzip": (gzipped, struct.pack(">BI", 1, len(ZEROS)) + ZEROS),
    }


ZEROS = bombs.zeros_gzipped(16)


@pytest.mark.fault("S18")
@pytest.mark.parametrize("kind", ["picture", "gzip"])
def test_slow_work_for_a_client_that_has_gone_is_never_done(kind: str) -> None:
    extra, message = heavy_requests()[kind]
    headers = header_block(CLASSIFY.encode()) + extra
    with server_of(FakeBackend()) as server, grpc.insecure_channel(server.addresses[0]) as channel:
        call: Any = channel.unary_unary(CLASSIFY, response_deserializer=pb.ClassifyResponse.FromString)
        picture = pb.ClassifyRequest(pictures=[bombs.blank_png(28)]).SerializeToString()
        with raw_connection(server) as client:
            with suppress(ConnectionError):  # the server may end it, for so many resets
                for stream in range(1, 300, 2):
                    client.sendall(frame(HEADERS, END_HEADERS, stream, headers))
                    for place in range(0, len(message), 16384):
                        client.sendall(frame(DATA, 0, stream, message[place : place + 16384]))
                    client.sendall(frame(DATA, END_STREAM, stream))
                    client.sendall(frame(RST_STREAM, 0, stream, struct.pack(">I", 8)))
            time.sleep(0.2)
            began_s = time.monotonic()
            call(picture, timeout=20)
            assert time.monotonic() - began_s < 2  # all of it would take many seconds


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_millions_of_empty_pictures_are_refused_before_they_are_read(compression: grpc.Compression) -> None:
    with server_of(FakeBackend()) as server, grpc.insecure_channel(server.addresses[0]) as channel:
        call: Any = channel.unary_unary(CLASSIFY)
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\x12\0" * 8_000_000, timeout=5, compression=compression)
    failure: Any = caught.value
    assert failure.details() == "TOO_MANY_IMAGES: more than 1024 images in one request (send at most 1024)"


def test_one_connection_cannot_hold_all_the_room_for_messages() -> None:
    sizes = {"max_images_per_request": 64, "max_message_bytes": 51_200, "max_encoded_bytes": 4 * 51_200}
    begun = struct.pack(">BI", 0, 51_200) + bytes(51_000)
    with server_of(FakeBackend(), **sizes) as server, raw_connection(server) as client:
        for stream in range(1, 11, 2):
            client.sendall(frame(HEADERS, END_HEADERS, stream, header_block(CLASSIFY.encode())))
            for place in range(0, len(begun), 16384):
                client.sendall(frame(DATA, 0, stream, begun[place : place + 16384]))
        time.sleep(0.2)
        with grpc.insecure_channel(server.addresses[0]) as channel:
            call: Any = channel.unary_unary(CLASSIFY, response_deserializer=pb.ClassifyResponse.FromString)
            reply = call(cases.request(*[3] * 64).SerializeToString(), timeout=5)
        assert len(reply.classifications) == 64


def test_one_connection_cannot_hold_all_the_pixels_that_may_wait() -> None:
    largest = pb.ClassifyRequest(pictures=[bombs.blank_png(bombs.ALLOWED_SIDE)])

    async def test() -> None:
        async with native_serving(FakeBackend()) as (server, calls, _):
            greedy = [asyncio.ensure_future(calls.classify(largest)) for _ in range(3)]
            refused, _ = await asyncio.wait(greedy, return_when=asyncio.FIRST_COMPLETED)
            found: Any = refused.pop().exception()
            assert found.details() == (
                "QUEUE_FULL: 134217728 pixels of pictures wait to be decoded, 134217728 of this connection; "
                "67108864 more are too many of 536870912 (try again later)"
            )
            options = (("grpc.use_local_subchannel_pool", 1),)
            async with grpc.aio.insecure_channel(server.addresses[0], options=options) as another:
                modest = asyncio.ensure_future(cases.Calls(another).classify(largest))
                await asyncio.sleep(0.1)
                resume()
                assert (await modest).classifications[0].predictions[0].label == 0
            await asyncio.gather(*greedy, return_exceptions=True)

    with decoders_stopped() as resume:
        cases.run(test())


def test_one_connection_cannot_hold_all_the_places_of_watchers() -> None:
    async def test() -> None:
        async with native_serving(FakeBackend()) as (server, calls, _):
            watch = "/grpc.health.v1.Health/Watch"
            of_one: Any = calls.channel.unary_stream(watch)
            watchers = [of_one(b"") for _ in range(65)]
            told = await asyncio.gather(*[each.read() for each in watchers], return_exceptions=True)
            refused = [each for each in told if isinstance(each, grpc.aio.AioRpcError)]
            assert [(each.details() or "").partition(":")[0] for each in refused] == ["TOO_MANY_STREAMS"]
            options = (("grpc.use_local_subchannel_pool", 1),)
            async with grpc.aio.insecure_channel(server.addresses[0], options=options) as another:
                of_another: Any = another.unary_stream(watch)
                assert await of_another(b"").read() == b"\x08\x01"

    cases.run(test())


def test_conversation_may_have_pauses() -> None:
    async def test() -> None:
        async with native_serving(FakeBackend(), message_timeout_s=0.2) as (_, calls, _):
            path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
            talk: Any = calls.channel.stream_stream(path)()
            question = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
            for _ in range(2):
                await talk.write(question)
                assert SERVICE.encode() in await talk.read()
                await asyncio.sleep(0.4)

    cases.run(test())


@pytest.mark.fault("S14")
def test_flood_of_pings_loses_its_connection() -> None:
    with server_of(FakeBackend()) as server:
        with raw_connection(server) as client, suppress(ConnectionError):
            for _ in range(100):
                client.sendall(frame(PING, payload=bytes(8)) * 100)
                client.recv(65536)
            assert seconds_to_close(client) < 3.0
        assert label_from(server.addresses[0], 2) == 2


def test_message_cut_into_single_bytes_is_read() -> None:
    message = cases.request(6).SerializeToString()
    with server_of(FakeBackend()) as server, raw_connection(server) as client:
        client.sendall(frame(HEADERS, END_HEADERS, 1, header_block(CLASSIFY.encode())))
        whole = struct.pack(">BI", 0, len(message)) + message
        for place in range(len(whole)):
            client.sendall(frame(DATA, END_STREAM if place + 1 == len(whole) else 0, 1, whole[place : place + 1]))
        answer = b""
        while b"Shirt" not in answer:
            answer += client.recv(65536)


def test_path_that_is_not_utf_8_ends_at_most_its_own_connection() -> None:
    with server_of(FakeBackend()) as server, grpc.insecure_channel(server.addresses[0]) as channel:
        call: Any = channel.unary_unary(CLASSIFY, response_deserializer=pb.ClassifyResponse.FromString)
        for _ in range(50):
            with raw_connection(server) as client:
                client.sendall(frame(HEADERS, END_HEADERS | END_STREAM, 1, header_block(b"/\xff")))
                client.recv(65536)
            assert call(cases.request(2).SerializeToString(), timeout=5).classifications[0].predictions[0].label == 2


@pytest.mark.fault("S15")
def test_http_1_gets_an_answer_that_says_what_is_spoken_here() -> None:
    with server_of(FakeBackend()) as server:
        host, _, port = server.addresses[0].rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert answer.endswith(b"there is nothing at '/' (see /openapi.json)\"}")


@pytest.mark.parametrize("num_images", [1, 5, 64])
@pytest.mark.parametrize("top_k", [1, 3, 10])
def test_answers_are_those_of_the_other_front_end_to_the_last_bit(num_images: int, top_k: int) -> None:
    """Of ten thousand rows of logits each: large, small, equal and negative ones."""
    random = np.random.default_rng(num_images * top_k)
    logits = (
        random.normal(size=(10_000 // num_images * num_images, 10)) * random.choice([0.1, 3, 60], (1, 10))
    ).astype(np.float32)
    logits[::7] = np.round(logits[::7])  # ties
    backend = FakeBackend()
    writer = ResponseWriter("lenet5", "3", CLASSES)
    with server_of(backend) as server, grpc.insecure_channel(server.addresses[0]) as channel:
        call: Any = channel.unary_unary(CLASSIFY, response_deserializer=pb.ClassifyResponse.FromString)
        message = cases.request(*[1] * num_images, top_k=top_k).SerializeToString()
        for rows in np.split(logits, len(logits) // num_images)[: 2000 // num_images + 5]:
            backend.answer = rows
            reply = call(message, timeout=5)
            answer = Answer(rows, reply.time.queue_us, reply.time.inference_us, reply.time.batch_size)
            assert reply == pb.ClassifyResponse.FromString(writer.write(answer, top_k))


def test_metrics_have_the_names_labels_and_buckets_that_they_always_had() -> None:
    metrics = Metrics(labels_of(ServedModel(manifest=MANIFEST, backend=FakeBackend(), sha256="")))
    metrics.set_ready(lambda: 0)
    settings = ("--port", "0", "--front-end", "native")
    with server_process("tests.serving.breaking_server", *settings) as server:
        assert label_from(server.target, 3) == 3
        with urllib.request.urlopen(server.metrics_url, timeout=5) as page:  # noqa: S310 # it is http
            text = page.read().decode()
    expected = {sample_key(line) for line in generate_latest(metrics.registry).decode().splitlines()}
    assert {sample_key(line) for line in text.splitlines()} == expected
    families = {family.name: family for family in text_string_to_metric_families(text)}
    values = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for name in ("atelier_requests", "atelier_images", "atelier_request_duration_seconds")
        for sample in families[name].samples
    }
    assert values["atelier_requests_total", ("OK", "Classify")] == 1
    assert values["atelier_images_total", ()] == 1
    assert values["atelier_request_duration_seconds_count", ()] == 1


def sample_key(line: str) -> str:
    """A line of the page without its value; comments as they are."""
    return line if line.startswith("#") else line.rpartition(" ")[0]
