"""Reflection as tools use it: what is listed can be described, down to methods and fields, in both versions."""

import asyncio
import shutil
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from atelier.wire import OPEN_INFERENCE, SERVICE
from tests.serving.fake_backend import FakeBackend
from tests.serving.test_server import grpcio_serving, run

VERSIONS = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
SERVICES = {SERVICE, OPEN_INFERENCE, "grpc.health.v1.Health", *VERSIONS}
SYMBOLS = [
    SERVICE,
    f"{SERVICE}.Classify",
    f"{SERVICE}.GetModel",
    "atelier.v1.ClassifyRequest",
    "atelier.v1.ClassifyRequest.top_k",
    "atelier.v1.TimeSplit.batch_size",
    f"{OPEN_INFERENCE}.ModelInfer",
    "inference.ModelInferRequest.InferInputTensor",
    "grpc.health.v1.Health.Watch",
    "grpc.health.v1.HealthCheckResponse.ServingStatus",
    "grpc.health.v1.HealthCheckResponse.SERVING",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1.ServerReflection.ServerReflectionInfo",
    "grpc.reflection.v1.ServerReflectionRequest.message_request",
    "grpc.reflection.v1alpha.ServerReflection.ServerReflectionInfo",
]
UNKNOWN = [f"{SERVICE}.Guess", "atelier.v1.Nothing", "atelier", "Classify", "", ".", f"{SERVICE}.", f".{SERVICE}"]


async def answers(channel: Any, version: str, *requests: ServerReflectionRequest) -> list[ServerReflectionResponse]:
    """Of one stream, one for each request; both versions have the same messages on the wire."""
    ask = channel.stream_stream(
        f"/{version}/ServerReflectionInfo",
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=ServerReflectionResponse.FromString,
    )
    return [answer async for answer in ask(iter(requests))]


def file_of(answer: ServerReflectionResponse) -> FileDescriptor:
    """The first file of an answer, as a client with nothing but the answer understands it."""
    pool = descriptor_pool.DescriptorPool()
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(each)
        for each in answer.file_descriptor_response.file_descriptor_proto
    ]
    for file in reversed(files):  # a file's dependencies come after it
        pool.Add(file)
    return pool.FindFileByName(files[0].name)


@pytest.mark.fault("S46")
@pytest.mark.parametrize("version", VERSIONS)
def test_all_services_are_listed_and_can_be_described(version: str) -> None:
    async def test() -> None:
        async with grpcio_serving(FakeBackend()) as (_, calls, _):
            (listed,) = await answers(calls.channel, version, ServerReflectionRequest(list_services=""))
            names = [service.name for service in listed.list_services_response.service]
            requests = [ServerReflectionRequest(file_containing_symbol=name) for name in names]
            described = await answers(calls.channel, version, *requests)
        assert sorted(SERVICES) == names
        for name, answer in zip(names, described, strict=True):
            assert name in [service.full_name for service in file_of(answer).services_by_name.values()]

    run(test())


@pytest.mark.parametrize("version", VERSIONS)
def test_every_kind_of_symbol_is_found_in_its_file(version: str) -> None:
    async def test() -> None:
        async with grpcio_serving(FakeBackend()) as (_, calls, _):
            requests = [ServerReflectionRequest(host="a", file_containing_symbol=symbol) for symbol in SYMBOLS]
            found = await answers(calls.channel, version, *requests)
        for asked, answer in zip(requests, found, strict=True):
            symbol = asked.file_containing_symbol
            assert answer.WhichOneof("message_response") == "file_descriptor_response", symbol
            assert symbol.startswith(f"{file_of(answer).package}."), symbol
            assert answer.original_request == asked

    run(test())


@pytest.mark.parametrize("version", VERSIONS)
def test_symbol_that_there_is_not_is_not_found_and_the_stream_goes_on(version: str) -> None:
    async def test() -> None:
        async with grpcio_serving(FakeBackend()) as (_, calls, _):
            requests = [ServerReflectionRequest(file_containing_symbol=symbol) for symbol in UNKNOWN]
            *missing, found = await answers(
                calls.channel, version, *requests, ServerReflectionRequest(file_containing_symbol=SERVICE)
            )
        for asked, answer in zip(requests, missing, strict=True):
            assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
            assert answer.original_request == asked
        assert list(file_of(found).services_by_name) == ["Classifier"]

    run(test())


def test_file_is_found_by_the_name_that_its_descriptor_has() -> None:
    async def test() -> None:
        async with grpcio_serving(FakeBackend()) as (_, calls, _):
            for name in SERVICES:
                asked = ServerReflectionRequest(file_containing_symbol=name)
                (by_symbol,) = await answers(calls.channel, VERSIONS[0], asked)
                asked = ServerReflectionRequest(file_by_filename=file_of(by_symbol).name)
                (by_name,) = await answers(calls.channel, VERSIONS[0], asked)
                assert by_name.file_descriptor_response == by_symbol.file_descriptor_response

    run(test())


@pytest.mark.skipif(shutil.which("grpcurl") is None, reason="grpcurl is not on the PATH")
def test_grpcurl_lists_describes_and_calls() -> None:
    async def grpcurl(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            "grpcurl", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        printed = (await process.communicate())[0].decode()
        assert process.returncode == 0, printed
        return printed

    async def test() -> None:
        async with grpcio_serving(FakeBackend()) as (server, _, _):
            address = f"127.0.0.1:{server.port}"
            assert set((await grpcurl("-plaintext", address, "list")).split()) == SERVICES
            for symbol in SYMBOLS:
                assert "is a" in await grpcurl("-plaintext", address, "describe", symbol), symbol
            called = await grpcurl("-plaintext", "-d", "{}", address, f"{SERVICE}/GetModel")
            assert '"lenet5"' in called

    run(test())
