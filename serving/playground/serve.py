"""Serves the page, in its process: HTTP by Starlette on uvicorn, on the sockets that the supervisor holds.

Uvicorn itself bounds neither the number of connections nor how long a request may take: BoundedProtocol does.
"""

import asyncio
import json
import logging
import socket
import ssl
import time
from collections.abc import Sequence
from http import HTTPStatus
from multiprocessing.connection import Connection
from typing import Any

import anyio.to_thread
import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from atelier.client import AsyncClient
from serving.access import Tokens, tls_of
from serving.config import ServerConfig
from serving.listening import is_loopback
from serving.models import ModelVersion
from serving.playground.app import make_app
from serving.playground.entrance import Entrance
from serving.playground.errors import PageError, described
from serving.playground.guard import MAX_HEADER_BYTES, SECURITY_HEADERS
from serving.playground.looks import Looks
from serving.playground.versions import Versions

MAX_THREADS = 4  # that prepare photographs
TICK_S = 1.0
MAX_CONNECTIONS = 16
MAX_SILENCE_S = 10.0  # until a request's headers are there
MAX_REQUEST_S = 30.0  # until its answer has been taken
LINGER_S = 1.0  # for a refusal to be read before the connection ends


async def serve(
    config: ServerConfig,
    versions: Sequence[ModelVersion],
    entrance: Entrance,
    sockets: list[socket.socket],
    link: Connection,
) -> None:
    """Serves until nobody has looked for a while, or the supervisor has gone."""
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # strangers' requests are no warnings
    anyio.to_thread.current_default_thread_limiter().total_tokens = MAX_THREADS
    async with AsyncClient(entrance.target, token=entrance.token) as client:
        looks, is_public = Looks(client, Versions(config, versions)), not is_loopback(config.playground_host)
        tokens = Tokens(config.tokens) if is_public and config.tokens else None
        app = make_app(looks, [config.playground_host], tokens)
        server = server_for(app, **(_tls_options(config) if is_public else {}))
        asyncio.get_running_loop().add_reader(link.fileno(), _on_supervisors_end, server, link)
        idle = asyncio.create_task(_end_when_idle(server, config.limits.playground_idle_s))
        try:
            await server.serve(sockets)
        finally:
            idle.cancel()


def _tls_options(config: ServerConfig) -> dict[str, Any]:
    """Returns what makes uvicorn speak TLS as the server does; nothing if that has no certificate. Raises BAD_TLS."""
    if tls_of(config) is None:
        return {}
    asked = {"ssl_ca_certs": config.tls_client_authority, "ssl_cert_reqs": ssl.CERT_REQUIRED}
    options = {"ssl_certfile": config.tls_certificate, "ssl_keyfile": config.tls_key}
    return options | (asked if config.tls_client_authority else {})


def server_for(app: ASGIApp, **options: Any) -> uvicorn.Server:
    """Returns the HTTP server, which is to serve on sockets that listen; `options` are more of uvicorn's."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            headers=SECURITY_HEADERS,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_keep_alive=round(MAX_SILENCE_S) + 1,  # the protocol's own comes first
            timeout_graceful_shutdown=1,
            **options,
        )
    )


def _on_supervisors_end(server: uvicorn.Server, link: Connection) -> None:
    asyncio.get_running_loop().remove_reader(link.fileno())
    server.should_exit = True


async def _end_when_idle(server: uvicorn.Server, max_idle_s: float) -> None:
    """Ends the process once nobody has asked anything, nor kept a connection open, for so long."""
    state = server.server_state
    idle_since_s, num_requests = time.monotonic(), -1
    while time.monotonic() - idle_since_s < max_idle_s:
        await asyncio.sleep(min(TICK_S, max_idle_s / 2))
        if state.connections or state.total_requests != num_requests:
            idle_since_s, num_requests = time.monotonic(), state.total_requests
    server.should_exit = True


class BoundedProtocol(H11Protocol):
    """Serves HTTP/1.1 on one connection; what it refuses gets the same JSON and headers as from the application."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._is_refused = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuses a connection too many."""
        super().connection_made(transport)
        # asyncio does so itself, but not for sockets that it has not made: an answer would wait 40 ms for an ACK.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > MAX_CONNECTIONS:
            self.connections.discard(self)
            what = f"{MAX_CONNECTIONS} connections are open"
            self._refuse(PageError(503, "TOO_MANY_CONNECTIONS", what, "close other windows of the page"))
        else:
            self._allow(MAX_SILENCE_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the timer."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads on, unless it was refused: then what still comes is dropped."""
        if not self._is_refused:
            super().data_received(data)

    def handle_events(self) -> None:
        """Gives a request whose headers are there time for its body and its answer."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and not self._is_refused:
            self._allow(MAX_REQUEST_S)

    def on_response_complete(self) -> None:
        """Waits for the next request."""
        self._allow(MAX_SILENCE_S)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuses what is not HTTP, or has too many headers."""
        cure = f"send HTTP/1.1, with headers of at most {MAX_HEADER_BYTES} bytes"
        self._refuse(PageError(400, "BAD_REQUEST", msg.rstrip("."), cure))

    def _allow(self, time_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(time_s, self._on_time_up)

    def _on_time_up(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # its answer, or the rest of its body, would never end
        elif self.conn.trailing_data[0] and self.conn.their_state is h11.IDLE:
            what = f"the headers were not there after {MAX_SILENCE_S:g} s"
            self._refuse(PageError(408, "TOO_SLOW", what, "send them at once"))
        else:
            self.transport.abort()

    def _refuse(self, error: PageError) -> None:
        """Writes the answer without h11, which may have given up; ends a moment later, for it to be read."""
        self._is_refused = True
        status, content = described(error)
        body = json.dumps(content).encode()
        about = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        lines += [f"{name}: {value}" for name, value in [*SECURITY_HEADERS, *about.items()]]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(LINGER_S, self.transport.abort)
