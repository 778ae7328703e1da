"""Attacks that hold on to what they get: streams and connections that the server keeps for them."""

import contextlib
import socket
import time
from collections import Counter
from collections.abc import Callable

from loadtest.attack.field import Counts, Field, GoesOn, in_threads, paused
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

    def work(rank: int, counts: Counts, goes_on: GoesOn) -> None:
        with socket.create_connection(field.metrics_address, 1.0) as opened:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            counts["connections"] += 1
            sent = 0
            if rank % 2:
                opened.sendall(ASK_FOR_METRICS * 100)
            while goes_on():
                if rank % 2:
                    with contextlib.suppress(BlockingIOError):
                        opened.recv(1, socket.MSG_DONTWAIT)
                elif sent < len(ASK_FOR_METRICS) - 1:
                    opened.sendall(ASK_FOR_METRICS[sent : sent + 1])
                    sent += 1
                paused(ROUND_S, field)

    return in_threads(field.size, field, work, "connections")


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


def _hold_streams(field: Field, tend: Callable[[Connection, dict[int, int]], None]) -> Counts:
    """Keeps `size` streams open, on as many connections as they need; what the server ends is opened anew.

    `tend` is called once a round, with a connection's open streams and the bytes sent on each.
    """

    def work(_rank: int, counts: Counts, goes_on: GoesOn) -> None:
        streams: dict[int, int] = {}
        with Connection(field.address) as connection:
            counts["connections"] += 1
            while goes_on() and connection.read():
                for ended in connection.ended & streams.keys():
                    del streams[ended]
                missing = min(STREAMS, field.size, connection.max_streams) - len(streams)
                opened = [connection.next_stream() for _ in range(missing)]
                if opened and connection.send(b"".join(map(opening, opened))):
                    streams.update(dict.fromkeys(opened, 0))
                    counts["streams"] += len(opened)
                tend(connection, streams)
                paused(ROUND_S, field)

    return in_threads(-(-field.size // STREAMS), field, work, "streams")
