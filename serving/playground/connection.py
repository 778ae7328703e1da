"""Bounds a connection to the page as uvicorn does not by itself: their number, and how long a request may take."""

import asyncio
import json
import socket
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.playground.errors import PageError, described
from serving.playground.guard import MAX_HEADER_BYTES, SECURITY_HEADERS

MAX_CONNECTIONS = 16
MAX_SILENCE_S = 10.0  # until a request's headers are there
MAX_REQUEST_S = 30.0  # until its answer has been taken
LINGER_S = 1.0  # for a refusal to be read before the connection ends


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
