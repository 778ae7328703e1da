"""Answers what tools ask a server about itself: health (grpc.health.v1), reflection (grpc.reflection.v1 and v1alpha).

grpcio's own servicers answer. They are not registered as theirs but spoken to with parsed messages, so that malformed
bytes are answered as on every other method.
"""

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from atelier.wire import HEALTH, OPEN_INFERENCE, SERVICE, classifier_pb2, open_inference_pb2
from serving.errors import InvalidRequestError
from serving.frontends.grpcio.calls import Context, Conversation
from serving.frontends.grpcio.classifier import parse

# What probes ask, which have no token.
PROBES = frozenset(f"/{HEALTH}/{method}" for method in ("Check", "Watch"))
# Both versions have the same messages on the wire: the same conversation answers.
REFLECTIONS = ("grpc.reflection.v1.ServerReflection", reflection.SERVICE_NAME)


def conversations(health_servicer: health.aio.HealthServicer) -> dict[str, Conversation]:
    """Maps paths to the methods."""
    servicer: Any = health_servicer  # its types ask for contexts of its own messages
    pool = _described()
    reflector: Any = reflection.aio.ReflectionServicer((SERVICE, OPEN_INFERENCE, HEALTH, *REFLECTIONS), pool)

    async def check(messages: AsyncIterator[bytes], context: Context) -> None:
        reply = await servicer.Check(await _only(messages), context)
        await context.write(reply.SerializeToString())

    async def watch(messages: AsyncIterator[bytes], context: Context) -> None:
        await servicer.Watch(await _only(messages), _Writer(context))

    async def reflect(messages: AsyncIterator[bytes], context: Context) -> None:
        async for message in messages:
            request = parse(ServerReflectionRequest(), message)
            async for reply in reflector.ServerReflectionInfo(_once(_findable(request, pool)), context):
                reply.original_request.CopyFrom(request)
                await context.write(reply.SerializeToString())

    return {
        f"/{HEALTH}/Check": check,
        f"/{HEALTH}/Watch": watch,
        **{f"/{name}/ServerReflectionInfo": reflect for name in REFLECTIONS},
    }


def _described() -> DescriptorPool:
    """Returns what reflection knows: the files of what is served, and nothing else that the process may have loaded."""
    pool = DescriptorPool()
    for file in (
        classifier_pb2.DESCRIPTOR,
        open_inference_pb2.DESCRIPTOR,
        health_pb2.DESCRIPTOR,
        reflection_pb2.DESCRIPTOR,
    ):
        pool.AddSerializedFile(file.serialized_pb)
    pool.AddSerializedFile(_reflection_v1().SerializeToString())
    return pool


def _reflection_v1() -> FileDescriptorProto:
    """Derives v1 from v1alpha, the only one in grpcio-reflection: it was renamed, and is not deprecated."""
    file = FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.options.ClearField("deprecated")
    return text_format.Parse(text_format.MessageToString(file).replace("v1alpha", "v1"), FileDescriptorProto())


def _findable(request: ServerReflectionRequest, pool: DescriptorPool) -> ServerReflectionRequest:
    """Asks for a method's service if it asks for a method: a pool finds the files of all symbols but methods."""
    try:
        method = pool.FindMethodByName(request.file_containing_symbol)
    except KeyError:
        return request
    return ServerReflectionRequest(file_containing_symbol=method.containing_service.full_name)


class _Writer:
    """A context whose `write` takes a message, as the health servicer expects."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def write(self, message: Message) -> None:
        await self._context.write(message.SerializeToString())


async def _only(messages: AsyncIterator[bytes]) -> HealthCheckRequest:
    async for message in messages:
        return parse(HealthCheckRequest(), message)
    raise InvalidRequestError("NO_MESSAGE", "the call carried no message", "send one HealthCheckRequest")


async def _once(request: ServerReflectionRequest) -> AsyncIterator[ServerReflectionRequest]:
    yield request
