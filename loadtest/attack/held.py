"""Attacks that hold on to what they get: streams and connections that the server keeps for them."""

import contextlib
import socket
import time
from collections import Counter
from collections.abc import Callable

from loadtest.attack.field import Counts, Field, paused
from loadtest.attack.http2 import (
    INITIAL_WINDOW,
    ONE_IMAGE,
    PREFACE,
    SETTINGS,
    Connection,
    frame,
    opening,
    setting,
)

STREAMS = 100  # of a connection
ASKED = 128  # of a connection that never reads
ROUND_S = 0.1
ASK_FOR_METRICS = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"

# What a held connection does once a round: with its open streams, and the bytes sent on each.
Tend = Callable[[Connection, dict[int, int]], None]


def window_zero(field: Field) -> Counts:
    """Opens connections that ask, allow the server not one byte of answer, and never read."""
    counts: Counts = Counter()

    def ask() -> Connection:
        connection = Connection(field.address, setting(INITIAL_WINDOW, 0))
        connection.read(0.05)  # what the server allows
        for _ in range(min(ASKED, connection.max_streams)):
            stream = connection.next_stream()
            connection.send(opening(stream))
            if not connection.send_data(stream, ONE_IMAGE, time.monotonic() + 0.2):
                break
            counts["requests"] += 1
        return connection

    return _hold(field, counts, ask)


def headers_only(field: Field) -> Counts:
    """Opens streams whose message never comes."""
    return _hold_streams(field, lambda _connection, _streams: None)


def slow_bodies(field: Field) -> Counts:
    """Opens streams whose message comes a byte at a time."""

    def drip(connection: Connection, streams: dict[int, int]) -> None:
        for stream, sent in list(streams.items()):
            if sent < len(ONE_IMAGE) - 1:
                connection.send_data(stream, ONE_IMAGE[sent : sent + 1], 0.0, ends=False)
                streams[stream] += 1

    return _hold_streams(field, drip)


def silent_connections(field: Field) -> Counts:
    """Opens connections on which not a byte is sent."""
    return _hold(field, Counter(), lambda: socket.create_connection(field.address, 1.0))


def half_open_connections(field: Field) -> Counts:
    """Opens connections that stop amid the preface, a frame or a call; some are closed on one side."""
    greeting = PREFACE + frame(SETTINGS)
    halves = [PREFACE[:10], PREFACE, greeting + b"\0\0", greeting + opening(1), greeting + opening(1)[:-5]]
    counts: Counts = Counter()

    def stop_halfway() -> socket.socket:
        opened = socket.create_connection(field.address, 1.0)
        number = counts["connections"]
        opened.sendall(halves[number % len(halves)])
        if number % 3 == 0:
            opened.shutdown(socket.SHUT_WR)
        return opened

    return _hold(field, counts, stop_halfway)


def slow_scrapers(field: Field) -> Counts:
    """Asks for the metrics page: half a byte at a time, half for many pages of which they read bytes."""
    counts: Counts = Counter()
    sockets: dict[int, socket.socket] = {}
    sent: Counter[int] = Counter()

    def turn(rank: int) -> None:
        if rank not in sockets:
            sockets[rank] = socket.create_connection(field.metrics_address, 1.0)
            sockets[rank].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            counts["connections"] += 1
            sent[rank] = 0
            sockets[rank].sendall(ASK_FOR_METRICS * 100 if rank % 2 else b"")
        elif rank % 2:
            sockets[rank].recv(1, socket.MSG_DONTWAIT)
        elif sent[rank] < len(ASK_FOR_METRICS) - 1:
            sockets[rank].sendall(ASK_FOR_METRICS[sent[rank] : sent[rank] + 1])
            sent[rank] += 1

    while field.goes_on(counts["connections"]):
        for rank in range(field.size):
            try:
                turn(rank)
            except BlockingIOError:
                pass
            except OSError:
                counts["refused"] += 1
                if rank in sockets:
                    sockets.pop(rank).close()
        paused(ROUND_S, field)
    return counts


def _hold(field: Field, counts: Counts, open_one: Callable[[], socket.socket | Connection]) -> Counts:
    """Opens `size` connections, and keeps them until the attack's time is over."""
    held = []
    while counts["connections"] < field.size and time.monotonic() < field.most_s:
        try:
            held.append(open_one())
            counts["connections"] += 1
        except OSError:
            counts["refused"] += 1
            paused(0.01, field)
    while field.goes_on(field.size):
        paused(ROUND_S, field)
    for opened in held:
        opened.close()
    return counts


def _hold_streams(field: Field, tend: Tend) -> Counts:
    """Keeps `size` streams open, on as many connections as they need; what the server ends is opened anew."""
    counts: Counts = Counter()
    held = [_Held(field, counts) for _ in range(-(-field.size // STREAMS))]
    while field.goes_on(counts["streams"]):
        for each in held:
            each.turn(tend)
        paused(ROUND_S, field)
    return counts


class _Held:
    """A connection that is full of streams, and is replaced if it ends."""

    def __init__(self, field: Field, counts: Counts) -> None:
        self._field, self._counts = field, counts
        self._connection: Connection | None = None
        self._streams: dict[int, int] = {}

    def turn(self, tend: Tend) -> None:
        """Opens what is missing, and tends the streams."""
        with contextlib.suppress(OSError):
            if self._connection is None or not self._connection.read():
                self._open()
        if self._connection is not None and self._connection.is_open:
            self._fill(self._connection)
            tend(self._connection, self._streams)

    def _open(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = Connection(self._field.address)
        self._streams = {}
        self._counts["connections"] += 1

    def _fill(self, connection: Connection) -> None:
        for ended in connection.ended & self._streams.keys():
            del self._streams[ended]
        missing = min(STREAMS, self._field.size, connection.max_streams) - len(self._streams)
        streams = [connection.next_stream() for _ in range(missing)]
        if streams and connection.send(b"".join(map(opening, streams))):
            self._streams.update(dict.fromkeys(streams, 0))
            self._counts["streams"] += len(streams)
