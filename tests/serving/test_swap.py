"""A newer version takes the place of the one served: over fake devices, whose batches a test can hold back."""

import asyncio
import dataclasses
from typing import Any

import grpc
import pytest

from atelier.wire import classifier_pb2 as pb
from atelier.wire import open_inference_pb2 as oip
from serving.models import ServedModel
from tests.serving.conftest import needs_native
from tests.serving.fake_backend import MANIFEST, FakeBackend, image
from tests.serving.test_server import Calls, device_started, grpcio_serving, queued, request, run


def native_serving(backend: FakeBackend, **settings: Any) -> Any:
    from tests.serving.native_server import native_serving  # which needs the extension

    return native_serving(backend, **settings)


SERVERS = [pytest.param(grpcio_serving, id="grpcio"), pytest.param(native_serving, marks=needs_native, id="native")]


def version(number: int, backend: FakeBackend) -> ServedModel:
    manifest = dataclasses.replace(MANIFEST, version=number)
    return ServedModel(manifest=manifest, backend=backend, sha256=f"{number:064}")


async def swap(server: Any, number: int) -> FakeBackend:
    """Serves a newer version; its device."""
    backend = FakeBackend()
    await asyncio.to_thread(server.swap, version(number, backend))
    assert backend.is_warm
    return backend


async def is_closed(backend: FakeBackend) -> bool:
    """Whether the device is freed within a second."""
    for _ in range(100):
        if backend.is_closed:
            return True
        await asyncio.sleep(0.01)
    return False


async def version_of(calls: Calls, asked: str = "") -> str:
    reply = await calls.classify(request(1, model_version=asked))
    described = await calls.get_model(pb.GetModelRequest(model_version=asked))
    assert described.model_version == reply.model_version
    return str(reply.model_version)


@pytest.mark.fault("S33")
@pytest.mark.parametrize("serving", SERVERS)
def test_requests_in_flight_finish_on_the_old_version(serving: Any) -> None:
    async def test() -> None:
        old = FakeBackend()
        async with serving(old) as (server, calls, _):
            old.gate.clear()
            running = asyncio.ensure_future(calls.classify(request(1)))
            await device_started(old)
            waiting = asyncio.ensure_future(calls.classify(request(2)))
            await queued(server, 1)
            await swap(server, 4)
            assert await version_of(calls) == "4"  # while the old device still runs
            assert not running.done()
            old.gate.set()
            replies = [await running, await waiting]
        assert [reply.model_version for reply in replies] == ["3", "3"]
        assert [reply.classifications[0].predictions[0].label for reply in replies] == [1, 2]

    run(test())


@pytest.mark.fault("S33")
@pytest.mark.parametrize("serving", SERVERS)
def test_last_two_versions_can_be_asked_for_and_older_ones_are_freed(serving: Any) -> None:
    async def test() -> None:
        first = FakeBackend()
        async with serving(first) as (server, calls, _):
            second = await swap(server, 4)
            assert [await version_of(calls, asked) for asked in ("", "4", "3")] == ["4", "4", "3"]
            assert not first.is_closed
            await swap(server, 5)
            assert await is_closed(first)
            assert not second.is_closed
            assert [await version_of(calls, asked) for asked in ("", "5", "4")] == ["5", "5", "4"]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await version_of(calls, "3")
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            assert caught.value.details() == (
                "UNKNOWN_VERSION: version '3' of lenet5 is not served here (ask for '5' or '4', or leave it empty)"
            )
            assert server.num_images == server.num_requests == 6  # of all versions

    run(test())


@pytest.mark.parametrize("serving", SERVERS)
def test_open_inference_protocol_knows_both_versions(serving: Any) -> None:
    async def test() -> None:
        async with serving(FakeBackend()) as (server, calls, _):
            await swap(server, 4)
            await swap(server, 5)
            infer: Any = method(calls, "ModelInfer", oip.ModelInferResponse)
            for asked, expected in (("", "5"), ("5", "5"), ("4", "4")):
                wanted = oip.ModelInferRequest(model_name="lenet5", model_version=asked)
                wanted.inputs.add(name="images", datatype="UINT8", shape=[1, 1, 28, 28])
                wanted.raw_input_contents.append(image(7).tobytes())
                reply = await infer(wanted.SerializeToString())
                assert reply.model_version == expected
            wanted.model_version = "3"
            with pytest.raises(grpc.aio.AioRpcError, match="UNKNOWN_VERSION"):
                await infer(wanted.SerializeToString())
            metadata: Any = method(calls, "ModelMetadata", oip.ModelMetadataResponse)
            about = await metadata(oip.ModelMetadataRequest(name="lenet5").SerializeToString())
            assert sorted(about.versions) == ["4", "5"]

    run(test())


def method(calls: Calls, name: str, reply: Any) -> Any:
    return calls.channel.unary_unary(f"/inference.GRPCInferenceService/{name}", None, reply.FromString)


@pytest.mark.parametrize("serving", SERVERS)
def test_version_is_not_freed_while_a_call_holds_it(serving: Any) -> None:
    async def test() -> None:
        old = FakeBackend()
        async with serving(old) as (server, calls, _):
            old.gate.clear()
            held = asyncio.ensure_future(calls.classify(request(7)))
            await device_started(old)
            await swap(server, 4)
            await swap(server, 5)
            await asyncio.sleep(0.1)
            assert not old.is_closed
            old.gate.set()
            assert (await held).model_version == "3"
            assert await is_closed(old)

    run(test())


@pytest.mark.parametrize("serving", SERVERS)
def test_drain_waits_for_the_calls_of_all_versions(serving: Any) -> None:
    async def test() -> None:
        first = FakeBackend()
        async with serving(first) as (server, calls, stopped):
            first.gate.clear()
            held = [asyncio.ensure_future(calls.classify(request(7)))]
            await device_started(first)
            for number in (4, 5):
                backend = await swap(server, number)
                backend.started = type(backend.started)(0)
                backend.gate.clear()
                held.append(asyncio.ensure_future(calls.classify(request(number))))
                await device_started(backend)
                asyncio.get_running_loop().call_later(0.5, backend.gate.set)
            server.stop()
            await asyncio.sleep(0.2)
            assert not stopped.done()
            first.gate.set()
            assert [(await each).model_version for each in held] == ["3", "4", "5"]
            await stopped

    run(test())


@pytest.mark.fault("S34")
@pytest.mark.parametrize("serving", SERVERS)
def test_version_that_cannot_be_warmed_up_changes_nothing(serving: Any) -> None:
    class Broken(FakeBackend):
        def warm_up(self) -> None:
            raise RuntimeError("CUDA error 2: out of memory")

    async def test() -> None:
        async with serving(FakeBackend()) as (server, calls, _):
            with pytest.raises(RuntimeError, match="out of memory"):
                await asyncio.to_thread(server.swap, version(4, Broken()))
            assert await version_of(calls) == "3"

    run(test())


@pytest.mark.slow
@pytest.mark.parametrize("serving", SERVERS)
def test_hung_device_of_the_version_before_is_given_up_too(serving: Any) -> None:
    async def test() -> None:
        old = FakeBackend()
        async with serving(old, hang_timeout_s=0.5) as (server, calls, stopped):
            old.gate.clear()
            held = asyncio.ensure_future(calls.classify(request(7)))
            await device_started(old)
            await swap(server, 4)
            with pytest.raises(grpc.aio.AioRpcError, match="BACKEND_HUNG"):
                await held
            await asyncio.wait([stopped], timeout=10)
            assert "BACKEND_HUNG" in str(stopped.exception())

    run(test())
