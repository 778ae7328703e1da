"""HTTP/2 pings to a real server: clients that keep their connection alive may, whether they call or not."""

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.serving.fake_backend import FakeBackend
from tests.serving.running import frame
from tests.serving.test_server import grpcio_serving, request, run

DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0)
# HPACK (RFC 7541): :method POST, :scheme http, :authority x, :path, content-type, te
WATCH = b"\x83\x86\x01\x01x\x04\x1c/grpc.health.v1.Health/Watch\x0f\x10\x10application/grpc\x00\x02te\x08trailers"
CALL = frame(HEADERS, 4, 1, WATCH) + frame(DATA, 1, 1, bytes(5))  # one that lasts, and on which nothing happens


class Frame(NamedTuple):
    kind: int
    flags: int
    body: bytes


def received(connection: socket.socket, seconds: float) -> Iterator[Frame]:
    """What comes within that time, or until the server hangs up."""
    data, end_s = b"", time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > 0:
        connection.settimeout(left_s)
        try:
            data += (come := connection.recv(65536))
        except (TimeoutError, ConnectionError):
            return
        if not come:
            return
        while len(data) >= 9 and len(data) >= (end := 9 + int.from_bytes(data[:3], "big")):
            yield Frame(data[3], data[4], data[9:end])
            data = data[end:]


def send_pings(port: int, *, calls: bytes, interval_s: float, count: int) -> tuple[int, bytes]:
    """How many were answered, and what the connection was ended with."""
    num_answered, reason = 0, b""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(PREFACE + calls)
        for number in range(count):
            connection.sendall(frame(PING, 0, 0, number.to_bytes(8, "big")))
            for come in received(connection, interval_s):
                num_answered += come.kind == PING and come.flags == 1
                reason += come.body[8:] if come.kind == GOAWAY else b""
            if reason:
                break
    return num_answered, reason


@pytest.mark.slow
@pytest.mark.parametrize("calls", [b"", CALL], ids=["without calls", "during a call"])
def test_client_may_ping_every_second(calls: bytes) -> None:
    async def test() -> None:
        async with grpcio_serving(FakeBackend()) as (server, _, _):
            pinging = asyncio.to_thread(send_pings, server.port, calls=calls, interval_s=1.0, count=6)
            assert await pinging == (6, b"")

    run(test())


@pytest.mark.fault("S14")
def test_flood_of_pings_ends_its_connection_and_disturbs_nobody() -> None:
    async def test() -> None:
        async with grpcio_serving(FakeBackend()) as (server, calls, _):
            flood = asyncio.to_thread(send_pings, server.port, calls=b"", interval_s=0.005, count=200)
            num_answered, reason = await flood
            assert (num_answered < 50, reason) == (True, b"too_many_pings")
            await calls.classify(request(1))

    run(test())
