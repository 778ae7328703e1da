"""The native front end over a fake device, behind the fixture's face that test_server.py's cases know."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from serving.config import ServerConfig
from serving.frontends.native.server import NativeServer
from serving.listening import Listening
from serving.models import ServedModel
from tests.serving.fake_backend import MANIFEST, FakeBackend
from tests.serving.settings import config_with
from tests.serving.test_server import Calls


class ListeningServer(NativeServer):
    """A server with sockets of its own, which are closed at its end."""

    def __init__(self, config: ServerConfig, served: ServedModel, *, hosts: Sequence[str]) -> None:
        self.listening = Listening(hosts, 0)
        self.addresses = self.listening.addresses
        try:
            super().__init__(config, served, sockets=self.listening.sockets)
        except BaseException:
            self.listening.close()
            raise


def started(backend: FakeBackend, *, hosts: Sequence[str] = ("127.0.0.1",), **settings: Any) -> ListeningServer:
    """A server that serves. What the device ran while its pace was measured is forgotten."""
    config = config_with(**{"metrics_port": 0, **settings})
    served = ServedModel(manifest=MANIFEST, backend=backend, sha256="a" * 64)
    server = ListeningServer(config, served, hosts=hosts)
    is_open = backend.gate.is_set()
    backend.gate.set()
    server.start()
    backend.batches.clear()
    backend.started = threading.Semaphore(0)
    if not is_open:
        backend.gate.clear()
    return server


def end_of(server: ListeningServer) -> None:
    """Waits until the server has stopped. Raises ProgramError if it ended badly."""
    with server.listening:
        while not server.wait(0.2):
            pass


@asynccontextmanager
async def native_serving(
    backend: FakeBackend, **settings: Any
) -> AsyncIterator[tuple[Any, Calls, "asyncio.Task[None]"]]:
    """A started server, a client of it, and the task that ends when the server has stopped."""
    settings.pop("metrics", None)
    server = await asyncio.to_thread(started, backend, **settings)

    async def run_until_stopped() -> None:
        try:
            await asyncio.to_thread(end_of, server)
        finally:
            backend.close()

    stopped = asyncio.create_task(run_until_stopped())
    try:
        async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
            yield server, Calls(channel), stopped
    finally:
        backend.gate.set()
        server.stop()
        await asyncio.wait([stopped])  # a test that expects it to fail looks at it itself
