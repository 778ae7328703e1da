"""The server on a real socket, with real grpc.aio clients, over a fake device."""

import asyncio
import dataclasses
import gc
import io
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from PIL import Image

from atelier.contract import Images, Logits
from atelier.errors import ProgramError
from atelier.wire import SERVICE
from atelier.wire import classifier_pb2 as pb
from loadtest.attack import bombs, http2
from serving.config import ServerConfig
from serving.frontends.grpcio.server import Server
from serving.metrics import NO_METRICS, NoMetrics
from serving.models import ServedModel
from serving.pictures.decoders import NUM_DECODERS
from tests.serving.fake_backend import CLASSES, MANIFEST, FakeBackend, image
from tests.serving.settings import config_with
from tests.serving.stopped_decoders import decoder_processes, decoders_stopped


class Calls:
    """The server's methods on one channel, as a client in any language sees them."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.classify = channel.unary_unary(
            f"/{SERVICE}/Classify",
            request_serializer=pb.ClassifyRequest.SerializeToString,
            response_deserializer=pb.ClassifyResponse.FromString,
        )
        self.classify_raw: Any = channel.unary_unary(f"/{SERVICE}/Classify")
        self.classify_stream: Any = channel.stream_unary(f"/{SERVICE}/Classify")
        self.get_model = channel.unary_unary(
            f"/{SERVICE}/GetModel",
            request_serializer=pb.GetModelRequest.SerializeToString,
            response_deserializer=pb.GetModelResponse.FromString,
        )

    async def health(self, service: str = "") -> int:
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        reply: health_pb2.HealthCheckResponse = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        return reply.status


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 30))


@asynccontextmanager
async def grpcio_serving(
    backend: FakeBackend, **settings: Any
) -> AsyncIterator[tuple[Server, Calls, "asyncio.Task[None]"]]:
    """A started server, a client of it, and the task that ends when the server has stopped."""
    metrics, manifest = settings.pop("metrics", NO_METRICS), settings.pop("manifest", MANIFEST)
    config = config_with(**settings)
    model = ServedModel(manifest=manifest, backend=backend, sha256="a" * 64)
    server = Server(config, model, ["127.0.0.1:0"], metrics=metrics)
    await server.start()
    stopped = asyncio.create_task(server.run_until_stopped())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield server, Calls(channel), stopped
        backend.gate.set()
        server.stop()
        await asyncio.wait([stopped])  # a test that expects it to fail looks at it itself


Serving = Callable[..., AbstractAsyncContextManager[tuple[Any, Calls, "asyncio.Task[None]"]]]


@pytest.fixture
def serving() -> Serving:
    """The front end behind which the cases run; in test_native.py it is the other one."""
    return grpcio_serving


def request(*labels: int, **fields: Any) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(images=b"".join(image(label).tobytes() for label in labels), **fields)


async def device_started(backend: FakeBackend) -> None:
    assert await asyncio.to_thread(backend.started.acquire, timeout=10)


async def queued(server: Server, num_images: int, *, num_ahead: int = 0) -> None:
    """Returns when so many images wait for a batch; `num_ahead` more if a front end hands none over ahead."""
    is_native = not isinstance(server, Server)
    while server.num_waiting != num_images + (num_ahead if is_native else 0):
        await asyncio.sleep(0.005)


def test_answers_come_in_request_order_with_names_and_probabilities(serving: Serving) -> None:
    async def test() -> None:
        async with serving(FakeBackend()) as (_, calls, _):
            reply = await calls.classify(request(9, 0, 5, top_k=2))
        assert [answer.predictions[0].name for answer in reply.classifications] == [
            "Ankle boot",
            "T-shirt/top",
            "Sandal",
        ]
        assert [len(answer.predictions) for answer in reply.classifications] == [2, 2, 2]
        best, second = reply.classifications[0].predictions
        assert (best.label, second.label) == (9, 0)  # the rest is equal: ties go to the lower label
        assert best.probability == pytest.approx(np.exp(9) / (np.exp(9) + 9))
        assert (reply.model_name, reply.model_version) == ("lenet5", "3")

    run(test())


def test_time_split_tells_waiting_from_running(serving: Serving) -> None:
    async def test() -> None:
        backend = FakeBackend()
        backend.gate.clear()
        async with serving(backend) as (server, calls, _):
            first = asyncio.ensure_future(calls.classify(request(1)))
            await device_started(backend)
            second = asyncio.ensure_future(calls.classify(request(2)))
            await queued(server, 1)
            await asyncio.sleep(0.2)
            backend.gate.set()
            times = [(await reply).time for reply in (first, second)]
        assert times[0].inference_us > max(190_000, times[0].queue_us)
        assert times[1].queue_us > max(190_000, times[1].inference_us)

    run(test())


def test_answers_tell_the_size_of_the_batch_that_they_ran_in(serving: Serving) -> None:
    async def test() -> None:
        backend = FakeBackend()
        backend.gate.clear()
        async with serving(backend) as (server, calls, _):
            first = asyncio.ensure_future(calls.classify(request(1)))
            await device_started(backend)
            rest = [asyncio.ensure_future(calls.classify(request(*labels))) for labels in ((2,), (3, 4))]
            await queued(server, 3)
            backend.gate.set()
            sizes = [(await reply).time.batch_size for reply in (first, *rest)]
        assert sizes == [1, 3, 3]

    run(test())


PNG = io.BytesIO()
Image.fromarray(image(7)[0, 0]).save(PNG, "PNG")

BAD_REQUESTS: list[tuple[bytes, str, str]] = [
    (b"\xff\xff", "INVALID_ARGUMENT", "MALFORMED"),
    (b"", "INVALID_ARGUMENT", "NO_IMAGES"),
    (pb.ClassifyRequest(images=b"x" * 783).SerializeToString(), "INVALID_ARGUMENT", "BAD_IMAGE_SIZE"),
    (pb.ClassifyRequest(images=b"x" * 785).SerializeToString(), "INVALID_ARGUMENT", "BAD_IMAGE_SIZE"),
    (request(*[1] * 9).SerializeToString(), "INVALID_ARGUMENT", "TOO_MANY_IMAGES"),
    (pb.ClassifyRequest(pictures=[PNG.getvalue()] * 9).SerializeToString(), "INVALID_ARGUMENT", "TOO_MANY_IMAGES"),
    (request(1, top_k=11).SerializeToString(), "INVALID_ARGUMENT", "BAD_TOP_K"),
    (request(1, top_k=2**32 - 1).SerializeToString(), "INVALID_ARGUMENT", "BAD_TOP_K"),
    (request(1, invert=True).SerializeToString(), "INVALID_ARGUMENT", "BAD_INVERT"),
    (request(1, prepare=True).SerializeToString(), "INVALID_ARGUMENT", "BAD_PREPARE"),
    (request(1, pictures=[PNG.getvalue()]).SerializeToString(), "INVALID_ARGUMENT", "AMBIGUOUS_IMAGES"),
    (
        pb.ClassifyRequest(pictures=[PNG.getvalue()], prepare=True, invert=True).SerializeToString(),
        "INVALID_ARGUMENT",
        "BAD_PREPARE",
    ),
    (
        pb.ClassifyRequest(images=PNG.getvalue().ljust(1568)).SerializeToString(),
        "INVALID_ARGUMENT",
        "PICTURE_IN_IMAGES",
    ),
    (pb.ClassifyRequest(pictures=[b"GIF89a"]).SerializeToString(), "INVALID_ARGUMENT", "BAD_PICTURE"),
    (request(1, model_name="resnet").SerializeToString(), "NOT_FOUND", "UNKNOWN_MODEL"),
    (request(1, model_name="../" * 5000).SerializeToString(), "NOT_FOUND", "UNKNOWN_MODEL"),
    (request(1, model_version="2").SerializeToString(), "NOT_FOUND", "UNKNOWN_VERSION"),
]


@pytest.mark.fault("S1", "S2", "S3", "S4", "S5", "S49")
@pytest.mark.parametrize(("message", "status", "word"), BAD_REQUESTS, ids=lambda value: str(value)[:24])
def test_bad_request_gets_its_status_and_word_and_never_runs(
    serving: Serving, message: bytes, status: str, word: str
) -> None:
    async def test() -> None:
        backend = FakeBackend()
        async with serving(backend, max_images_per_request=8) as (_, calls, _):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await calls.classify_raw(message)
            assert (await calls.classify(request(4))).classifications[0].predictions[0].label == 4
        assert (caught.value.code().name, (caught.value.details() or "").partition(":")[0]) == (status, word)
        assert len(caught.value.details() or "") < 300
        assert backend.executed == [4]

    run(test())


def test_served_model_and_version_may_be_named(serving: Serving) -> None:
    async def test() -> None:
        async with serving(FakeBackend()) as (_, calls, _):
            reply = await calls.classify(request(4, model_name="lenet5", model_version="3"))
        assert reply.classifications[0].predictions[0].label == 4

    run(test())


def png(label: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image(label)[0, 0]).save(data, "PNG")
    return data.getvalue()


def test_pictures_are_decoded_in_order(serving: Serving) -> None:
    async def test() -> None:
        async with serving(FakeBackend()) as (_, calls, _):
            reply = await calls.classify(pb.ClassifyRequest(pictures=[png(label) for label in (3, 1, 8)]))
        assert [answer.predictions[0].label for answer in reply.classifications] == [3, 1, 8]

    run(test())


def test_waiting_for_decoders_ends_at_the_deadline_and_is_bounded(serving: Serving) -> None:
    pictures = pb.ClassifyRequest(pictures=[PNG.getvalue()] * 40)

    async def ends_of_two(calls: Calls) -> "Counter[tuple[str, str]]":
        asked = [status_and_word(calls.classify(pictures, timeout=0.5)) for _ in range(2)]
        return Counter(await asyncio.gather(*asked))

    async def test() -> None:
        expected = {("RESOURCE_EXHAUSTED", "QUEUE_FULL"): 1, ("DEADLINE_EXCEEDED", "Deadline Exceeded"): 1}
        async with serving(FakeBackend(), max_images_per_request=40, max_queue_size=60) as (_, calls, _):
            assert await ends_of_two(calls) == expected
            while await ends_of_two(calls) != expected:  # soon there is room again, though nothing was decoded
                await asyncio.sleep(0.01)

    with decoders_stopped():
        run(test())


@pytest.mark.fault("S55")
def test_encoded_pictures_are_bounded_in_bytes_and_take_turns(serving: Serving) -> None:
    slow = bombs.blank_png(640).ljust(1000)  # forty of these are as many pixels as a request may have

    async def test() -> None:
        settings = {"max_images_per_request": 40, "max_message_bytes": 50_000, "max_encoded_bytes": 50_000}
        async with serving(FakeBackend(), **settings) as (_, calls, _):
            both = [asyncio.ensure_future(calls.classify(pb.ClassifyRequest(pictures=[slow] * 40))) for _ in range(2)]
            (refused,), (many,) = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            assert "40000 bytes of pictures wait, and 40000 more would exceed 50000" in str(refused.exception())
            small = pb.ClassifyRequest(pictures=[png(1).ljust(200)])
            one = asyncio.ensure_future(calls.classify(small))
            await calls.get_model(pb.GetModelRequest())  # behind it on their connection
            resume()
            await one
            await calls.classify(small)
            assert not many.done()  # neither waited for all of the others
            await many

    with decoders_stopped() as resume:
        run(test())


def test_processes_that_decode_pictures_give_way_and_are_few(serving: Serving) -> None:
    async def test() -> None:
        async with serving(FakeBackend()) as (_, calls, _):
            await asyncio.gather(*[calls.classify(pb.ClassifyRequest(pictures=[png(1)] * 4)) for _ in range(8)])
        pids = [each.pid for each in decoder_processes()]
        assert 1 <= len(pids) <= NUM_DECODERS
        usual = os.getpriority(os.PRIO_PROCESS, 0)
        assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in pids} == {min(19, usual + 10)}

    run(test())


BOMB = bombs.blank_webp(4096)


@pytest.mark.fault("S8")
def test_pictures_of_too_many_pixels_are_refused_before_any_is_decoded(serving: Serving) -> None:
    async def refusal_of(calls: "Calls", pictures: Sequence[bytes]) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await calls.classify(pb.ClassifyRequest(pictures=pictures))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        return caught.value.details() or ""

    async def test() -> None:
        async with serving(FakeBackend()) as (_, calls, _):
            alone = await refusal_of(calls, [png(1), BOMB])
            assert alone.startswith("BAD_PICTURE: pictures[1] is a WebP of 4096 x 4096 pixels: 16,777,216 in all, the ")
            assert alone.endswith("limit is 8,388,608 (scale it down; 28 x 28 is enough)")
            together = await refusal_of(calls, [bombs.blank_png(2048)] * 9)
            assert together.startswith("TOO_MANY_PIXELS: the first 5 of 9 pictures have 83,886,080 pixels, weighed by ")
            assert "the limit is 67,108,864 (send fewer pictures in a request" in together

    with decoders_stopped():
        run(test())


def test_pixels_that_wait_are_bounded(serving: Serving) -> None:
    async def test() -> None:
        async with serving(FakeBackend()) as (server, calls, _):
            # Native keeps three quarters for other connections.
            num_kept = 8 if isinstance(server, Server) else 2
            # As large as is allowed by its header; it breaks off, so that its turn is soon over.
            largest = pb.ClassifyRequest(pictures=[bombs.blank_png(bombs.ALLOWED_SIDE)[:1000]])
            asked = [asyncio.ensure_future(calls.classify(largest)) for _ in range(9)]
            while sum(each.done() for each in asked) < 9 - num_kept:
                await asyncio.sleep(0.005)
            refusal: Any = next(each.exception() for each in asked if each.done())
            assert refusal.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refusal.details().startswith("QUEUE_FULL: ")
            assert "pixels of pictures wait" in refusal.details()
            assert dict(refusal.trailing_metadata())["grpc-retry-pushback-ms"] == "100"
            resume()
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            assert sum("BAD_PICTURE" in str(each) for each in outcomes) == num_kept

    with decoders_stopped() as resume:
        run(test())


def test_drain_waits_for_pictures_that_are_being_decoded(serving: Serving) -> None:
    async def test() -> None:
        async with serving(FakeBackend()) as (server, calls, stopped):
            accepted = asyncio.ensure_future(calls.classify(pb.ClassifyRequest(pictures=[png(6)])))
            await calls.get_model(pb.GetModelRequest())  # behind it on their connection
            server.stop()
            await asyncio.sleep(0.4)  # longer than the lame duck of 0.05 s
            resume()
            assert (await accepted).classifications[0].predictions[0].label == 6
            await stopped

    with decoders_stopped() as resume:
        run(test())


@pytest.mark.fault("S9")
def test_message_over_the_limit_is_refused(serving: Serving) -> None:
    async def test() -> None:
        async with serving(FakeBackend(), max_images_per_request=8, max_message_bytes=8192) as (_, calls, _):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await calls.classify_raw(bytes(8193))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            await calls.classify(request(1))

    run(test())


@pytest.mark.fault("S23")
def test_full_queue_refuses_with_a_hint_when_to_retry(serving: Serving) -> None:
    async def test() -> None:
        backend = FakeBackend()
        backend.gate.clear()
        async with serving(backend, max_queue_size=2, max_images_per_request=2) as (_, calls, _):
            first = asyncio.ensure_future(calls.classify(request(1)))
            await device_started(backend)
            second = asyncio.ensure_future(calls.classify(request(2, 2)))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                while True:  # the second may not have arrived yet
                    third = asyncio.ensure_future(calls.classify(request(3)))
                    await asyncio.wait([third], timeout=0.2)
                    third.cancel() if not third.done() else await third
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (caught.value.details() or "").startswith("QUEUE_FULL")
            assert ("grpc-retry-pushback-ms", "100") in list(caught.value.trailing_metadata() or ())
            backend.gate.set()
            await first
            await second

    run(test())


@pytest.mark.fault("S21")
def test_request_whose_deadline_passes_in_the_queue_is_never_executed(serving: Serving) -> None:
    async def test() -> None:
        backend = FakeBackend()
        backend.gate.clear()
        async with serving(backend) as (_, calls, _):
            first = asyncio.ensure_future(calls.classify(request(1)))
            await device_started(backend)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await calls.classify(request(2), timeout=0.1)
            await asyncio.sleep(0.05)
            backend.gate.set()
            await first
            await calls.classify(request(3))
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert backend.executed == [1, 3]

    run(test())


@pytest.mark.fault("S22")
def test_request_without_a_deadline_gets_the_servers(serving: Serving) -> None:
    async def test() -> None:
        backend = FakeBackend()
        backend.gate.clear()
        async with serving(backend, default_deadline_s=0.1) as (server, calls, _):
            first = asyncio.ensure_future(calls.classify(request(1)))
            await device_started(backend)
            second = asyncio.ensure_future(calls.classify(request(2)))
            await queued(server, 1)
            await asyncio.sleep(0.2)
            backend.gate.set()
            await first
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await second
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert backend.executed == [1]

    run(test())


@pytest.mark.fault("S18")
def test_request_cancelled_by_its_client_is_not_executed(serving: Serving) -> None:
    async def test() -> None:
        backend = FakeBackend()
        backend.gate.clear()
        async with serving(backend) as (server, calls, _):
            first = asyncio.ensure_future(calls.classify(request(1)))
            await device_started(backend)
            second = calls.classify(request(2))
            await queued(server, 1)
            second.cancel()
            await queued(server, 0)
            backend.gate.set()
            await first
            await calls.classify(request(3))
        assert backend.executed == [1, 3]

    run(test())


def test_failing_backend_is_internal_and_its_words_stay_inside(serving: Serving) -> None:
    async def test() -> None:
        backend = FakeBackend()
        backend.poison[2] = ValueError("/secret/path")
        async with serving(backend) as (_, calls, _):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await calls.classify(request(2))
            await calls.classify(request(1))
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in repr(caught.value)

    run(test())


@pytest.mark.fault("S30")
def test_device_without_memory_for_a_batch_answers_it_in_parts_and_without_any_sheds_load(serving: Serving) -> None:
    class Small(FakeBackend):
        memory = 64

        def infer(self, images: Images) -> Logits:
            if len(images) > self.memory:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return super().infer(images)

    async def test() -> None:
        backend = Small()
        async with serving(backend) as (_, calls, stopped):
            backend.memory = 5
            reply = await calls.classify(request(*range(10), *range(10)))
            assert [each.predictions[0].label for each in reply.classifications] == [*range(10), *range(10)]
            assert max(map(len, backend.batches)) == 5
            backend.memory = 0
            for _ in range(4):  # more than failures that would end the server
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await calls.classify(request(1, 2))
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert (caught.value.details() or "").startswith("OUT_OF_MEMORY: ")
                assert ("grpc-retry-pushback-ms", "100") in list(caught.value.trailing_metadata() or ())
            backend.memory = 1
            assert (await calls.classify(request(7))).classifications[0].predictions[0].label == 7
            assert not stopped.done()

    run(test())


def test_bug_in_the_service_is_internal_and_its_words_stay_inside(serving: Serving) -> None:
    """As one: a model with more logits than names, which no manifest has."""

    async def test() -> None:
        nameless = dataclasses.replace(MANIFEST, classes=CLASSES[:9])
        async with serving(FakeBackend(), manifest=nameless) as (_, calls, _):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await calls.classify(request(9))
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert "index" not in repr(caught.value)

    run(test())


@pytest.mark.fault("S1")
@pytest.mark.parametrize(
    "method",
    [
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
        "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
def test_malformed_health_check_or_reflection_is_a_bad_request(serving: Serving, method: str) -> None:
    async def test() -> None:
        async with serving(FakeBackend()) as (_, calls, _):
            call: Any = calls.channel.stream_stream(f"/{method}")()
            await call.write(b"\xff\xff")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (caught.value.details() or "").startswith("MALFORMED: the 2 bytes are not a grpc.")

    run(test())


def test_health_of_an_unknown_service_is_not_found(serving: Serving) -> None:
    async def test() -> None:
        async with serving(FakeBackend()) as (_, calls, _):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await calls.health("nobody")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    run(test())


class Ends(NoMetrics):
    """Notes how calls ended."""

    def __init__(self) -> None:
        self.codes: list[str] = []

    def count_call(self, method: str, code: str) -> None:
        self.codes.append(code)


@pytest.mark.parametrize("service", ["", "nobody"])
def test_client_that_has_gone_when_it_is_answered_is_no_failure(
    serving: Serving, service: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop is held up until gRPC knows of the end, and Python does not: the answer cannot be sent."""
    ends, check = Ends(), health.aio.HealthServicer.Check
    has_begun, has_gone = threading.Event(), threading.Event()
    request = health_pb2.HealthCheckRequest(service=service).SerializeToString()

    def ask(port: int) -> None:
        path = http2.request_headers(b"/grpc.health.v1.Health/Check")
        with http2.Connection(("127.0.0.1", port)) as connection:
            data = http2.frame(http2.DATA, http2.END_STREAM, 1, http2.message(request))
            connection.send(http2.opening(1, path) + data)
            assert has_begun.wait(10)
        time.sleep(0.2)
        has_gone.set()

    async def slow_check(*arguments: Any) -> Any:
        has_begun.set()
        assert has_gone.wait(10)
        return await check(*arguments)

    monkeypatch.setattr(health.aio.HealthServicer, "Check", slow_check)  # grpcio's own

    async def test() -> None:
        async with serving(FakeBackend(), metrics=ends) as (server, _, _):
            await asyncio.to_thread(ask, server.port)
            while not ends.codes:
                await asyncio.sleep(0.01)
        assert ends.codes == ["CANCELLED"]
        assert not caplog.records

    run(test())


@pytest.mark.slow
def test_watcher_of_health_hears_of_the_drain(serving: Serving) -> None:
    async def test() -> None:
        async with serving(FakeBackend()) as (server, calls, _):
            stub: Any = health_pb2_grpc.HealthStub(calls.channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            server.stop()
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING

    run(test())


def test_refused_request_leaves_nothing_of_its_message_behind(serving: Serving) -> None:
    """With the garbage collector off: what is left is what a flood of bad requests would pile up."""

    async def test() -> None:
        async with serving(FakeBackend(), max_message_bytes=4 << 20) as (_, calls, _):
            messages = [bytes(3 << 20), pb.ClassifyRequest(images=bytes(3_000_001)).SerializeToString()]
            for message in messages * 2:
                with pytest.raises(grpc.aio.AioRpcError):
                    await calls.classify_raw(message)
            before = psutil.Process().memory_info().rss
            for message in messages * 20:
                with pytest.raises(grpc.aio.AioRpcError):
                    await calls.classify_raw(message)
            assert psutil.Process().memory_info().rss - before < 30 << 20  # of 120 MiB that were sent

    gc.collect()
    gc.disable()
    try:
        run(test())
    finally:
        gc.enable()


def test_call_without_a_message_is_a_bad_request(serving: Serving) -> None:
    async def test() -> None:
        async with serving(FakeBackend()) as (_, calls, _):
            call = calls.classify_stream()
            await call.done_writing()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
        assert (caught.value.code(), (caught.value.details() or "")[:10]) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "NO_MESSAGE",
        )

    run(test())


def test_unknown_method_is_unimplemented(serving: Serving) -> None:
    async def test() -> None:
        async with serving(FakeBackend()) as (_, calls, _):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                train: Any = calls.channel.unary_unary(f"/{SERVICE}/Train")
                await train(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run(test())


def test_get_model_describes_what_is_served(serving: Serving) -> None:
    async def test() -> None:
        async with serving(FakeBackend(), max_images_per_request=100) as (_, calls, _):
            model = await calls.get_model(pb.GetModelRequest())
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await calls.get_model(pb.GetModelRequest(model_name="resnet"))
        assert (model.model_name, model.model_version, model.backend, model.device) == ("lenet5", "3", "fake", "cpu")
        assert (model.input.name, model.input.dtype, list(model.input.shape)) == ("images", "uint8", [-1, 1, 28, 28])
        assert tuple(model.classes) == CLASSES
        assert (model.max_batch_size, model.max_images_per_request) == (64, 100)
        assert (model.model_sha256, model.checkpoint_sha256) == ("a" * 64, "c" * 64)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    run(test())


def test_health_is_serving_only_once_the_backend_is_warm() -> None:
    class SlowToWarm(FakeBackend):
        def warm_up(self) -> None:
            assert self.gate.wait(10)

    async def test() -> None:
        backend = SlowToWarm()
        backend.gate.clear()
        server = Server(
            ServerConfig(port=0), ServedModel(manifest=MANIFEST, backend=backend, sha256=""), ["127.0.0.1:0"]
        )
        starting = asyncio.create_task(server.start())
        while not server.port:
            await asyncio.sleep(0.01)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            calls = Calls(channel)
            assert await calls.health() == await calls.health(SERVICE) == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await calls.classify(request(1))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert (caught.value.details() or "").startswith("NOT_WARM")
            backend.gate.set()
            await starting
            assert await calls.health() == await calls.health(SERVICE) == health_pb2.HealthCheckResponse.SERVING
            server.stop()
            await server.run_until_stopped()

    run(test())


@pytest.mark.slow
@pytest.mark.fault("S36")
def test_drain_answers_what_was_accepted_and_tells_others_to_retry(serving: Serving) -> None:
    async def test() -> None:
        backend = FakeBackend(max_batch_size=1)
        backend.gate.clear()
        async with serving(backend, lame_duck_s=2.0) as (server, calls, stopped):
            accepted = [asyncio.ensure_future(calls.classify(request(label))) for label in (1, 2, 3)]
            await device_started(backend)
            await queued(server, 1, num_ahead=1)
            await calls.get_model(pb.GetModelRequest())  # behind all three on their connection
            server.stop()
            while await calls.health() != health_pb2.HealthCheckResponse.NOT_SERVING:
                await asyncio.sleep(0)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await calls.classify(request(9))
            backend.gate.set()
            replies = [await reply for reply in accepted]
            await stopped
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert str(caught.value.details()).startswith("DRAINING: ")
        assert ("grpc-retry-pushback-ms", "700") in list(caught.value.trailing_metadata() or ())
        assert [reply.classifications[0].predictions[0].label for reply in replies] == [1, 2, 3]
        assert 9 not in backend.executed
        assert backend.is_closed

    run(test())


@pytest.mark.slow
@pytest.mark.fault("S38")
def test_drain_that_takes_too_long_ends_with_an_error(serving: Serving) -> None:
    async def test() -> None:
        backend = FakeBackend()
        backend.gate.clear()
        async with serving(backend, drain_timeout_s=0.1) as (server, calls, stopped):
            stuck = asyncio.ensure_future(calls.classify(request(1)))
            await device_started(backend)
            server.stop()
            with pytest.raises(ProgramError, match="DRAIN_TIMEOUT: 1 request"):
                await stopped
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stuck
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    run(test())


@pytest.mark.slow
@pytest.mark.fault("S27")
def test_hung_device_ends_the_server_with_an_error(serving: Serving) -> None:
    async def test() -> None:
        backend = FakeBackend()
        backend.gate.clear()
        async with serving(backend, hang_timeout_s=0.2) as (_, calls, stopped):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await calls.classify(request(1))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            with pytest.raises(ProgramError, match="BACKEND_HUNG"):
                await stopped

    run(test())


@pytest.mark.slow
@pytest.mark.fault("S38")
def test_device_that_hangs_in_a_drain_makes_the_drain_a_failure(serving: Serving) -> None:
    """What was accepted is told to go elsewhere, and nobody may take that for a clean end."""

    async def test() -> None:
        backend = FakeBackend()
        backend.gate.clear()
        async with serving(backend, hang_timeout_s=0.2) as (server, calls, stopped):
            stuck = asyncio.ensure_future(calls.classify(request(1)))
            await device_started(backend)
            server.stop()
            with pytest.raises(ProgramError, match="BACKEND_HUNG"):
                await stopped
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stuck
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    run(test())


@pytest.mark.slow
@pytest.mark.fault("S26")
def test_broken_device_ends_the_server_with_an_error_and_loses_only_what_failed(serving: Serving) -> None:
    async def test() -> None:
        backend = FakeBackend(max_batch_size=1)
        backend.poison[2] = RuntimeError("CUDA error: an illegal memory access was encountered")
        backend.gate.clear()
        async with serving(backend, lame_duck_s=1.0) as (server, calls, stopped):
            requests = [asyncio.ensure_future(calls.classify(request(2))) for _ in range(5)]
            await device_started(backend)
            await queued(server, 3, num_ahead=1)
            backend.gate.set()
            ends = Counter([await status_and_word(call) for call in requests])
            assert ends == {("INTERNAL", "BACKEND_FAILED"): 3, ("UNAVAILABLE", "BACKEND_BROKEN"): 2}
            assert await calls.health() == health_pb2.HealthCheckResponse.NOT_SERVING
            assert (await status_and_word(calls.classify(request(1))))[0] == "UNAVAILABLE"
            with pytest.raises(ProgramError, match="BACKEND_BROKEN: 3 batches in a row failed"):
                await stopped
        assert backend.executed == [2, 2, 2]

    run(test())


async def status_and_word(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, (caught.value.details() or "").partition(":")[0]
