"""Hostile clients of a server with TLS and tokens: each makes a burst, and knows a valid token where it needs one.

None of it is a Classify that is answered with OK: those are the load's, to be accounted for.
"""

import contextlib
import functools
import socket
import struct
import time
from random import Random

import numpy as np

from atelier.wire import classifier_pb2 as pb
from loadtest.attack.bombs import ALLOWED_SIDE, LARGEST_SIDE, blank_png, blank_webp, picture_request, zeros_gzipped
from loadtest.attack.held import ASK_FOR_METRICS
from loadtest.attack.http2 import (
    CLASSIFY,
    INITIAL_WINDOW,
    Connection,
    literal,
    message,
    request_headers,
    reset,
    setting,
)
from loadtest.load.open_inference import OpenInference
from loadtest.load.protocols import Reference
from loadtest.soak.site import Site

ANSWERED_S = 10.0  # for all of a burst
HELD_S = 3.0  # by those who never read, or never go on
STREAMS = 100  # of a connection
INFER = b"/inference.GRPCInferenceService/ModelInfer"
GZIP_BOMB_MEBIBYTES = 100


def cancelled_calls(site: Site, random: Random) -> str:
    """Makes calls of which a third is cancelled at once, a third once it waits, and a third has a millisecond."""
    with _connected(site) as connection:
        streams, kinds = [], [random.randrange(3) for _ in range(STREAMS)]
        for kind in kinds:
            headers = _headers(site, INFER, literal(b"grpc-timeout", b"1m") if kind == 2 else b"")
            streams.append(connection.ask(_infer_message(), time.monotonic() + ANSWERED_S, headers))
            if kind == 0:
                connection.send(reset(streams[-1]))
        connection.send(b"".join(reset(stream) for stream, kind in zip(streams, kinds, strict=True) if kind == 1))
        _await(connection, [stream for stream, kind in zip(streams, kinds, strict=True) if kind == 2])
    return f"{STREAMS} calls"


def malformed_messages(site: Site, random: Random) -> str:
    """Sends messages that are noise or cut off to Classify, and some with flipped bits to ModelInfer."""
    classify = pb.ClassifyRequest(images=bytes(784)).SerializeToString()
    with _connected(site) as connection:
        streams = []
        for _ in range(STREAMS):
            if random.random() < 0.5:
                path, body = INFER, bytearray(_infer_message()[5:])
                body[random.randrange(len(body))] ^= 1 << random.randrange(8)
            elif random.random() < 0.5:
                path, body = CLASSIFY, bytearray(classify[: random.randrange(1, len(classify))])
            else:
                path, body = CLASSIFY, bytearray(random.randbytes(random.randrange(2000)))
            until_s = time.monotonic() + ANSWERED_S
            streams.append(connection.ask(message(bytes(body)), until_s, _headers(site, path)))
        _await(connection, streams)
    return f"{STREAMS} messages"


def picture_bombs(site: Site, random: Random) -> str:
    """Sends small messages that become large: pictures of 268 megapixels, one of 16, and 100 MB as gzip."""
    bombs = [*_bombs()]
    random.shuffle(bombs)
    for body, extra in bombs:
        _ask(site, body, extra)
    return f"{len(bombs)} messages"


def bad_pictures(site: Site, _random: Random) -> str:
    """Sends one request whose first picture is decoded, and whose second is none."""
    _ask(site, picture_request([blank_png(28), blank_png(28)[:-20]]))
    return ""


def slow_readers(site: Site, _random: Random) -> str:
    """Asks on connections that allow the server no byte of answer, and reads nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            connection = stack.enter_context(_connected(site, setting(INITIAL_WINDOW, 0)))
            for _ in range(STREAMS):
                connection.ask(_infer_message(), time.monotonic() + 0.2, _headers(site, INFER))
        time.sleep(HELD_S)
    return "5 connections"


def slow_senders(site: Site, random: Random) -> str:
    """Opens streams whose message never comes, or stops in its middle."""
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            connection = stack.enter_context(_connected(site))
            for _ in range(STREAMS):
                part = _infer_message()[: random.randrange(10)]
                connection.ask(part, time.monotonic() + 0.2, _headers(site, INFER), ends=False)
        time.sleep(HELD_S)
    return "5 connections"


def churn(site: Site, random: Random) -> str:
    """Makes connections and drops them: before the handshake, after it, and some with a reset."""
    for _ in range(100):
        with socket.create_connection(site.server.address, ANSWERED_S) as opened:
            if random.random() < 0.5:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for _ in range(20):
        _connected(site).close()
    return "120 connections"


def garbage(site: Site, random: Random) -> str:
    """Sends noise: instead of a handshake, behind one, and to the metrics page."""
    for _ in range(10):
        for address in (site.server.address, site.server.metrics_address):
            with socket.create_connection(address, ANSWERED_S) as opened:
                opened.sendall(random.randbytes(random.randrange(1, 5000)))
        noise = random.randbytes(random.randrange(1, 5000))
        Connection(site.server.address, greeting=noise, tls=site.credentials.context).close()
    return "30 connections"


def stalled_scrapers(site: Site, random: Random) -> str:
    """Asks for the metrics page: some stop in the middle of it, others ask for many pages and read none."""
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            opened = stack.enter_context(socket.create_connection(site.server.metrics_address, ANSWERED_S))
            with contextlib.suppress(OSError):  # there are too many
                opened.sendall(ASK_FOR_METRICS * 100 if random.random() < 0.5 else ASK_FOR_METRICS[:10])
        time.sleep(HELD_S)
    return "20 connections"


def _connected(site: Site, settings: bytes = b"") -> Connection:
    return Connection(site.server.address, settings, tls=site.credentials.context)


def _headers(site: Site, path: bytes, extra: bytes = b"") -> bytes:
    return request_headers(path, literal(b"authorization", b"Bearer " + site.credentials.token.encode()) + extra)


def _ask(site: Site, body: bytes, extra: bytes = b"") -> None:
    """Makes a Classify call on a connection of its own, and waits for its end."""
    with _connected(site) as connection:
        stream = connection.ask(body, time.monotonic() + ANSWERED_S, _headers(site, CLASSIFY, extra))
        _await(connection, [stream])


def _await(connection: Connection, streams: list[int]) -> None:
    """Waits until the server has ended them. Raises ConnectionError if the connection, or ANSWERED_S, ends first."""
    until_s = time.monotonic() + ANSWERED_S
    for stream in streams:
        if not connection.wait_for(stream, until_s):
            raise ConnectionError(f"stream {stream} has not ended, and the connection is open: {connection.is_open}")


@functools.cache
def _infer_message() -> bytes:
    black = Reference(images=np.zeros((1, 1, 28, 28), np.uint8), logits=np.zeros((1, 10), np.float32), atol=0.0)
    return message(OpenInference(target="", reference=black).request([0]))


@functools.cache
def _bombs() -> list[tuple[bytes, bytes]]:
    """Returns messages, and what their headers say beside."""
    gzip = literal(b"grpc-encoding", b"gzip")
    webp, png = blank_webp(LARGEST_SIDE), blank_png(LARGEST_SIDE)
    requests = map(picture_request, [[webp], [png], [webp] * 1000, [blank_png(ALLOWED_SIDE), b"no picture"]])
    return [(request, b"") for request in requests] + [(message(zeros_gzipped(GZIP_BOMB_MEBIBYTES), 1), gzip)]
