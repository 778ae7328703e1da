"""Serves the page, in its process: HTTP by Starlette on uvicorn, on the sockets that the supervisor holds."""

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import anyio.to_thread
import uvicorn
from starlette.types import ASGIApp

from atelier.client import AsyncClient
from serving.access import Tokens, tls_of
from serving.config import ServerConfig
from serving.listening import is_loopback
from serving.models import ModelVersion
from serving.playground.app import make_app
from serving.playground.connection import MAX_SILENCE_S, BoundedProtocol
from serving.playground.entrance import Entrance
from serving.playground.guard import MAX_HEADER_BYTES, SECURITY_HEADERS
from serving.playground.looks import Looks
from serving.playground.versions import Versions

MAX_THREADS = 4  # that prepare photographs
TICK_S = 1.0


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
