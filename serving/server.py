"""The grpcio front end: sockets, deadlines, statuses, health, drain. What a call means stands in service.py.

Three habits of grpcio shape this file. Its default stop answers calls it has accepted but not started with CANCELLED,
so a drain first goes on accepting and says UNAVAILABLE. It sends the text of an exception to the client, so
none may escape a handler. It waits for a message without limit, so Classify is registered as client-streaming (the
same bytes on the wire) and reads its one message under a timeout.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos import classifier_pb2 as pb
from serving.backends.select import open_backend
from serving.batch_queue import BatchQueue
from serving.batcher import Batcher
from serving.config import ServerConfig, parse_arguments
from serving.errors import (
    ExpiredError,
    InvalidRequestError,
    MissingInputError,
    NotServingError,
    ProgramError,
    RequestError,
    ResourceUnavailableError,
)
from serving.manifest import FILE_OF_BACKEND, list_versions, load_manifest
from serving.service import ClassifierService, ServedModel

logger = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["Classifier"].full_name
Method = Callable[[bytes, float], Awaitable[bytes]]
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"


class ClassifierHandler(grpc.GenericRpcHandler):
    """Routes the service's methods, reads one raw message each, and turns RequestError into a status."""

    def __init__(self, methods: dict[str, Method], config: ServerConfig) -> None:
        self.refusal: NotServingError | None = None  # set while draining
        self._config = config
        self._handlers: dict[str, Handler] = {
            f"/{SERVICE}/{name}": grpc.stream_unary_rpc_method_handler(self._handler(method))
            for name, method in methods.items()
        }

    def service(self, call: grpc.HandlerCallDetails) -> "Handler | None":
        """None makes grpcio answer UNIMPLEMENTED."""
        return self._handlers.get(call.method)

    def _handler(self, method: Method) -> Callable[..., Awaitable[bytes]]:
        async def handle(_messages: Any, context: Context) -> bytes:
            try:
                if self.refusal is not None:
                    raise self.refusal.with_traceback(None)
                left_s = context.time_remaining()
                message = await self._read(context)
                if left_s is None:
                    left_s = self._config.default_deadline_s
                return await method(message, time.monotonic() + left_s)
            except RequestError as error:
                failure = error
            except Exception:
                logger.exception("a call failed")
                failure = RequestError("INTERNAL", "the server failed on this request", "see the server's log")
            return await _abort(context, failure)

        return handle

    async def _read(self, context: Context) -> bytes:
        try:
            async with asyncio.timeout(self._config.message_timeout_s):
                message: Any = await context.read()
        except TimeoutError:
            limit_s = self._config.message_timeout_s
            raise ExpiredError("SLOW_MESSAGE", f"no whole message came within {limit_s:g} s of the headers") from None
        if not isinstance(message, bytes):  # grpc.aio.EOF: the stream ended without one
            raise InvalidRequestError("NO_MESSAGE", "the call carried no message", "send one ClassifyRequest")
        return message


async def _abort(context: Context, error: RequestError) -> bytes:
    if error.retry_pushback_ms is not None:
        context.set_trailing_metadata((("grpc-retry-pushback-ms", str(error.retry_pushback_ms)),))
    return await context.abort(grpc.StatusCode[error.status], str(error))


class Server:
    """A served model behind one port. `start`, then `run_until_stopped`."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._health = health.aio.HealthServicer()
        self._is_stopping = asyncio.Event()
        self._failure: ProgramError | None = None
        self.port = config.port

    async def start(self) -> None:
        """Loads, listens, warms up; then health says SERVING. Raises ProgramError where one of them cannot be."""
        started_s = time.monotonic()
        config = self._config
        model, why = _load(config)
        queue = BatchQueue(
            max_batch_size=model.backend.max_batch_size,
            max_queue_size=config.max_queue_size,
            max_queue_delay_us=config.max_queue_delay_us,
        )
        self._batcher = Batcher(model.backend, queue, hang_timeout_s=config.hang_timeout_s, on_hang=self._give_up)
        self._service = ClassifierService(model, self._batcher, config)
        await self._listen()
        await self._batcher.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        self._announce(model, why, time.monotonic() - started_s)

    def stop(self) -> None:
        """Begins the drain."""
        self._is_stopping.set()

    async def run_until_stopped(self) -> None:
        """Serves until `stop`, then drains: every accepted request is answered. Raises ProgramError where it cannot."""
        await self._is_stopping.wait()
        config = self._config
        await self._health.enter_graceful_shutdown()  # NOT_SERVING
        if self._failure is None:
            print("atelier: draining: new calls are told to retry elsewhere", flush=True)
            self._handler.refusal = NotServingError(
                "DRAINING", "the server is shutting down", "retry: another may serve"
            )
            await asyncio.sleep(config.lame_duck_s)
            self._batcher.refuse(self._handler.refusal)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(config.drain_timeout_s):
                    await self._batcher.drain()
        await self._grpc_server.stop(grace=1.0)
        await self._batcher.close()
        self._service.close()
        print(
            f"atelier: answered {self._service.num_requests} requests, {self._batcher.num_answered} images", flush=True
        )
        if self._failure is not None:
            raise self._failure
        if self._batcher.num_unanswered:
            what = f"{self._batcher.num_unanswered} requests were unanswered after {config.drain_timeout_s:g} s"
            raise ProgramError("DRAIN_TIMEOUT", what, "raise --drain-timeout-s")

    def _give_up(self) -> None:
        """A hung device cannot be freed from inside: end the process, so that a supervisor starts a new one."""
        what = f"a batch ran longer than {self._config.hang_timeout_s:g} s"
        self._failure = ProgramError("BACKEND_HUNG", what, "restart the server; raise --hang-timeout-s if it was busy")
        self._is_stopping.set()

    async def _listen(self) -> None:
        config = self._config
        self._grpc_server = grpc.aio.server(
            options=_channel_arguments(config), maximum_concurrent_rpcs=config.max_concurrent_requests
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc_server)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._grpc_server)
        methods: dict[str, Method] = {"Classify": self._service.classify, "GetModel": self._get_model}
        self._handler = ClassifierHandler(methods, config)
        self._grpc_server.add_generic_rpc_handlers((self._handler,))
        address = f"{config.host}:{config.port}"
        try:
            self.port = self._grpc_server.add_insecure_port(address)
        except RuntimeError:
            what = f"cannot listen on {address}"
            raise ResourceUnavailableError("PORT_IN_USE", what, "stop what uses it, or choose another --port") from None
        await self._grpc_server.start()

    async def _get_model(self, message: bytes, _deadline_s: float) -> bytes:
        return self._service.get_model(message)

    async def _set_health(self, status: int) -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)

    def _announce(self, model: ServedModel, why: str, seconds: float) -> None:
        manifest, backend, config = model.manifest, model.backend, self._config
        name, sha256 = f"{manifest.model_name} version {manifest.version}", model.sha256[:12]
        print(f"atelier: {name}, {manifest.precision}, sha256 {sha256}…")
        print(f"atelier: {backend.name} on {backend.device}: {why}")
        limits = f"batches of up to {backend.max_batch_size} images, up to {config.max_queue_size} waiting"
        print(
            f"atelier: serving {SERVICE} on {config.host}:{self.port}, {limits}; ready in {seconds:.2f} s", flush=True
        )


def _load(config: ServerConfig) -> tuple[ServedModel, str]:
    """The newest version, or the one asked for, on the backend asked for; and why that backend."""
    model_dir = config.repository / config.model
    versions = list_versions(model_dir)
    version = config.model_version or max(versions, default=None)
    if version is None or version not in versions:
        there = ", ".join(map(str, versions)) or "none"
        what = f"no version {version or ''} of {config.model} in {config.repository}; there: {there}"
        raise MissingInputError("NO_MODEL", what, "make export writes one")
    version_dir = model_dir / str(version)
    manifest = load_manifest(version_dir)
    backend, why = open_backend(
        config.backend,
        config.device,
        version_dir,
        manifest,
        max_batch_size=min(config.max_batch_size, manifest.max_batch_size),
        num_threads=config.num_threads,
    )
    return ServedModel(manifest=manifest, backend=backend, sha256=manifest.files[FILE_OF_BACKEND[backend.name]]), why


def _channel_arguments(config: ServerConfig) -> list[tuple[str, int]]:
    """grpc/grpc's grpc_types.h; its defaults set no bound on streams, and let two servers share a port unnoticed."""
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", 128),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_metadata_size", 8 << 10),
        ("grpc.max_connection_idle_ms", 300_000),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ]


async def serve(config: ServerConfig) -> None:
    """Runs a server until SIGTERM or SIGINT has drained it; a second signal ends the process at once."""
    server = Server(config)
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        server.stop()
        loop.add_signal_handler(number, os._exit, 128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    await server.start()
    await server.run_until_stopped()


def main(arguments: list[str]) -> int:
    """`python -m serving`."""
    config = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO if "--debug" in arguments else logging.WARNING)
    asyncio.run(serve(config))
    return 0
