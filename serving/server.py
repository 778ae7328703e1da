"""The server's life: listen, warm up, serve, drain.

grpcio's default stop answers calls that it has accepted but not started with CANCELLED. So a drain goes on accepting
for a moment, answering UNAVAILABLE, and only then stops.
"""

import asyncio
import errno
import gc
import logging
import os
import signal
import socket

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from serving.batch_queue import BatchQueue
from serving.batcher import Batcher
from serving.channel import SERVICE
from serving.config import ServerConfig, parse_arguments
from serving.errors import NotServingError, ProgramError, ResourceUnavailableError
from serving.rpc import ClassifierHandler, Method
from serving.served_model import ServedModel, load_model, say
from serving.service import ClassifierService


class Server:
    """A served model behind one port. `start`, then `run_until_stopped`."""

    def __init__(self, config: ServerConfig, model: ServedModel) -> None:
        self._config = config
        self._model = model
        self._health = health.aio.HealthServicer()
        self._is_stopping = asyncio.Event()
        self._failure: ProgramError | None = None
        self.port = config.port

    async def start(self) -> None:
        """Listens, warms up; then health says SERVING. Raises ResourceUnavailableError where the port is taken."""
        config, model = self._config, self._model
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
        limits = f"batches of up to {model.backend.max_batch_size} images, up to {config.max_queue_size} waiting"
        say(f"serving {SERVICE} on {config.host}:{self.port}: {limits}")

    def stop(self) -> None:
        """Begins the drain."""
        self._is_stopping.set()

    async def run_until_stopped(self) -> None:
        """Serves until `stop`, then drains: every accepted request is answered. Raises ProgramError where it cannot."""
        await self._is_stopping.wait()
        config = self._config
        await self._health.enter_graceful_shutdown()  # NOT_SERVING
        say("draining: new calls are told to retry elsewhere")
        self._handler.refusal = NotServingError("DRAINING", "the server is shutting down", "retry: another may serve")
        await asyncio.sleep(config.lame_duck_s)
        self._batcher.refuse(self._handler.refusal)
        try:
            async with asyncio.timeout(config.drain_timeout_s):
                await self._batcher.drain()
        except TimeoutError:
            what = f"{self._batcher.num_unanswered} requests were unanswered after {config.drain_timeout_s:g} s"
            self._failure = ProgramError("DRAIN_TIMEOUT", what, "raise --drain-timeout-s")
            self._batcher.abandon(NotServingError("DRAIN_TIMEOUT", "the server shut down first", "retry elsewhere"))
        await self._grpc_server.stop(grace=1.0)
        await self._batcher.close(timeout_s=1.0)
        self._service.close()
        num_requests, num_images = self._service.num_requests, self._batcher.num_answered
        say(f"answered {num_requests} requests, {num_images} images")
        if self._failure is not None:
            raise self._failure

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
        methods: dict[str, Method] = {"Classify": self._service.classify, "GetModel": self._service.get_model}
        self._handler = ClassifierHandler(methods, config)
        self._grpc_server.add_generic_rpc_handlers((self._handler,))
        address = f"{config.host}:{config.port}"
        try:
            self.port = self._grpc_server.add_insecure_port(address)
        except RuntimeError:
            raise _cannot_listen(config.host, config.port) from None
        if config.host not in ("127.0.0.1", "localhost", "[::1]"):
            say(f"warning: {config.host} may be reached by others, and there is no TLS or authentication")
        await self._grpc_server.start()
        self._acceptor = asyncio.create_task(self._grpc_server.wait_for_termination())
        self._acceptor.add_done_callback(self._on_accept_loop_end)

    def _on_accept_loop_end(self, acceptor: "asyncio.Task[bool]") -> None:
        """grpcio's accept loop dies of a method name that is not UTF-8; the process would live on without a port."""
        if not acceptor.cancelled() and acceptor.exception() is not None:
            self._failure = ProgramError("ACCEPT_FAILED", "gRPC stopped accepting calls", "restart the server")
            self._is_stopping.set()

    async def _set_health(self, status: int) -> None:
        for service in ("", SERVICE):
            await self._health.set(service, status)


def _cannot_listen(host: str, port: int) -> ResourceUnavailableError:
    """grpcio does not say why: the system does."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host.strip("[]"), port), family=family).close()
        why = "grpc refuses the address"
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            cure = "stop what uses it, or choose another --port"
            return ResourceUnavailableError("PORT_IN_USE", f"cannot listen on {host}:{port}", cure)
        why = error.strerror or str(error)
    cure = "choose another --host or --port; IPv6 addresses are written in brackets"
    return ResourceUnavailableError("CANNOT_LISTEN", f"cannot listen on {host}:{port}: {why}", cure)


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
    server = Server(config, load_model(config))
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        server.stop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, os._exit, 128 + each)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await server.start()
    gc.freeze()  # what exists now stays: no collection needs to walk over it again
    try:
        await server.run_until_stopped()
    finally:
        gc.unfreeze()


def main(arguments: list[str]) -> int:
    """`python -m serving`."""
    config = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO if "--debug" in arguments else logging.WARNING)
    uvloop.run(serve(config))  # under load, a tenth to a fifth faster than asyncio's own loop
    return 0
