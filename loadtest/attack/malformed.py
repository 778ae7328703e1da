"""Attacks by what no client would send: bytes, frames, headers and messages that break a rule."""

import itertools
import random
import struct
import time
from collections.abc import Sequence

from loadtest.attack.field import Counts, Field, GoesOn, in_threads
from loadtest.attack.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW,
    LARGEST_FRAME,
    ONE_IMAGE,
    PADDED,
    PREFACE,
    PUSH_PROMISE,
    SETTINGS,
    WINDOW_UPDATE,
    Connection,
    frame,
    literal,
    message,
    opening,
    request_headers,
    setting,
)

THREADS = 4
LOOK_S = 0.05  # for an answer, before the next connection
BOTH_ENDS = END_HEADERS | END_STREAM
MEBIBYTE = 1 << 20


def not_utf8(field: Field) -> Counts:
    """Sends paths and metadata that are not UTF-8, or not what their name promises."""
    blocks = [
        request_headers(b"/\xff"),
        request_headers(b"/atelier.v1.Classifier/\xc3\x28"),
        request_headers(extra=literal(b"x", b"\xff\xfe")),
        request_headers(extra=literal(b"\xff\xfe", b"x")),
        request_headers(extra=literal(b"x-bin", b"!!!!")),
        request_headers(extra=literal(b"grpc-timeout", b"banana")),
        request_headers(extra=literal(b"grpc-timeout", b"\xff")),
        request_headers(extra=literal(b"grpc-encoding", b"\xff")),
        request_headers(extra=literal(b"X", b"upper case")),
        request_headers(extra=literal(b":path", b"/again")),
        request_headers(b""),
    ]
    return _on_new_connections(field, [PREFACE + frame(SETTINGS) + opening(1, block, BOTH_ENDS) for block in blocks])


def bad_prefaces(field: Field) -> Counts:
    """Opens connections that do not begin as HTTP/2 does: other protocols, noise, forbidden frames."""
    noise = random.Random(0)  # noqa: S311 - the same noise each time
    return _on_new_connections(
        field,
        [
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"POST /atelier.v1.Classifier/Classify HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + noise.randbytes(508),  # a TLS ClientHello
            PREFACE.replace(b"SM", b"MS"),
            PREFACE + frame(DATA, 0, 1, b"no settings came"),
            PREFACE + b"\xff\xff\xff" + bytes([SETTINGS]) + bytes(5),  # a frame of 16 MB
            PREFACE + frame(SETTINGS, 0, 0, bytes(5)),  # entries have 6 bytes
            PREFACE + frame(SETTINGS, 0, 0, setting(INITIAL_WINDOW, 2**32 - 1)),
            b"\0",
            *(noise.randbytes(size) for size in (9, 24, 1000, 100_000)),
        ],
    )


def wrong_framing(field: Field) -> Counts:
    """Makes calls whose frames or message prefix contradict themselves or each other."""
    greeting = PREFACE + frame(SETTINGS)
    ended = END_STREAM
    bodies = [
        opening(1) + frame(DATA, ended, 1, ONE_IMAGE[:3]),  # half a prefix
        opening(1) + frame(DATA, ended, 1, ONE_IMAGE[:-1]),  # a byte too few
        opening(1) + frame(DATA, ended, 1, ONE_IMAGE + b"\0"),  # a byte too many
        opening(1) + frame(DATA, ended, 1, ONE_IMAGE * 2),  # two messages
        opening(1) + frame(DATA, ended, 1, message(ONE_IMAGE, 2)),  # a flag that does not exist
        opening(1) + frame(DATA, ended, 1, message(ONE_IMAGE, 1)),  # compressed by nothing
        opening(1) + frame(DATA, ended, 1, b"\0\xff\xff\xff\xff"),  # 4 GB to come
        opening(1, flags=BOTH_ENDS),  # no message
        opening(1) + b"".join(frame(DATA, 0, 1, ONE_IMAGE[at : at + 1]) for at in range(len(ONE_IMAGE))),
        opening(1) + frame(DATA, PADDED, 1, b"\xff"),  # more padding than frame
        opening(1) + opening(1),  # headers twice
        opening(1) + frame(DATA, ended, 1, ONE_IMAGE) + frame(DATA, ended, 1, ONE_IMAGE),  # after the end
        opening(2) + frame(DATA, ended, 2, ONE_IMAGE),  # a server's stream
        opening(5) + opening(3),  # backwards
        frame(DATA, ended, 7, ONE_IMAGE),  # of no stream
        frame(DATA, 0, 0, ONE_IMAGE),  # of the connection
        frame(HEADERS, END_HEADERS, 0, request_headers()),
        frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"),  # an index past every table
        frame(HEADERS, 0, 1, request_headers()) + opening(3),  # between a block and its continuation
        frame(CONTINUATION, END_HEADERS, 1, b""),
        frame(PUSH_PROMISE, END_HEADERS, 1, struct.pack(">I", 2)),
        frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**31 - 1)) * 2,
        frame(WINDOW_UPDATE, 0, 0, bytes(4)),
        opening(1) + frame(DATA, 0, 1, bytes(LARGEST_FRAME + 1)),
    ]
    return _on_new_connections(field, [greeting + body for body in bodies])


def large_headers(field: Field) -> Counts:
    """Makes calls of ten thousand headers each, and of one header of a megabyte."""
    many = request_headers(extra=b"".join(literal(b"x%d" % number, b"y") for number in range(10_000)))
    one = request_headers(extra=literal(b"x", b"y" * MEBIBYTE))
    return _header_blocks(field, [many, one])


def hpack_bombs(field: Field) -> Counts:
    """Sends header blocks of 16 KB that decode to 48 MB: one long header, then named by a byte each."""
    remembered, named = literal(b"x", b"y" * 4000, 0x40), b"\xbe"
    return _header_blocks(field, [request_headers(extra=remembered + named * 12_000)])


def _on_new_connections(field: Field, openings: Sequence[bytes]) -> Counts:
    """Sends one of them after the other, each on a connection of its own, and waits a little for what comes."""
    turns = itertools.cycle(openings)

    def work(_rank: int, counts: Counts, _goes_on: GoesOn) -> None:
        with Connection(field.address, greeting=next(turns)) as connection:
            counts["connections"] += 1
            until_s = time.monotonic() + LOOK_S
            while connection.skip(LOOK_S / 5) and time.monotonic() < until_s:
                pass

    return in_threads(THREADS, field, work, "connections")


def _header_blocks(field: Field, blocks: Sequence[bytes]) -> Counts:
    """Calls with these headers, one after the other; a connection that ends is replaced."""

    def work(_rank: int, counts: Counts, goes_on: GoesOn) -> None:
        with Connection(field.address) as connection:
            counts["connections"] += 1
            for block in itertools.cycle(blocks):
                stream = connection.next_stream()
                if not (goes_on() and connection.send(_split(block, stream))):
                    return
                counts["calls"] += 1
                if not connection.read(LOOK_S):
                    return

    return in_threads(THREADS, field, work, "calls")


def _split(block: bytes, stream: int) -> bytes:
    """Splits a header block into HEADERS and as many CONTINUATION frames as it needs."""
    parts = [block[start : start + LARGEST_FRAME] for start in range(0, len(block), LARGEST_FRAME)]
    kinds = [HEADERS, *[CONTINUATION] * (len(parts) - 1)]
    flags = [END_STREAM if number == 0 else 0 for number in range(len(parts))]
    flags[-1] |= END_HEADERS
    return b"".join(frame(kind, flag, stream, part) for kind, flag, part in zip(kinds, flags, parts, strict=True))
