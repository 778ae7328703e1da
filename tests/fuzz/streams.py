"""Byte streams that are no honest sessions, each from a seed and its number, and what sends them.

Noise, TLS, HTTP/1.1 and HTTP/2: of the latter sessions of frames that are wrong in their kind, flags, order or bytes.
"""

import asyncio
import base64
import gzip
import json
import ssl
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

import uvloop

from loadtest.attack import http2
from loadtest.attack.http2 import frame, literal, message, request_headers
from tests.fuzz.messages import IMAGE, METHODS
from tests.fuzz.mutants import PICTURES, mutated_bytes

IN_FLIGHT = 16
CLOSED_S = 2.0  # after the client has said that it sends no more
PAUSE_S = 0.02  # in which calls are answered that the end of their connection would cancel
TIMEOUT_S = 30.0  # on a machine that is busy
SIZES = (1, 8, 9, 23, 24, 25, 100, 1000, 20_000)
WITH_HEADERS = {http2.HEADERS, http2.CONTINUATION, http2.PUSH_PROMISE}
LENGTHS = (0, 1, 2**14, 2**14 + 1, 2**24 - 1)
STREAMS = (0, 1, 2, 3, 5, 2**31 - 1, 2**31, 2**32 - 1)


def stream(seed: int, number: int, *, is_careful: bool) -> bytes:
    """Returns the byte stream of this seed and number: the same each time.

    A careful one has no damaged block of headers: a path that is not UTF-8 ends the loop in which grpcio accepts calls.
    """
    random = Random(seed << 40 | number)
    kind = random.choice(KINDS)
    return _http2(random, is_careful=is_careful) if kind is _http2 else kind(random)


# --- Anything but HTTP/2 ---------------------------------------------------------------------------------------------


def _noise(random: Random) -> bytes:
    return random.randbytes(random.choice(SIZES))


@cache
def _client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("nobody has answered")


def _tls(random: Random) -> bytes:
    return mutated_bytes(random, _client_hello()) if random.random() < 0.8 else _client_hello() + _noise(random)


def _post(path: str, body: bytes, *headers: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


_INFER = {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 1, 28, 28], "data": list(IMAGE)}]}
_FRAMED = message(b"\n\x90\x06" + IMAGE)
_WEB = "/atelier.v1.Classifier/Classify"
REQUESTS = [
    b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /v2/models/lenet5/versions/1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABk\r\n\r\n",
    b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[[1,2\r\n0\r\n\r\n",
    _post("/v2/models/lenet5/infer", json.dumps(_INFER).encode(), "Content-Type: application/json"),
    _post("/v2/models/lenet5/infer", IMAGE, "Inference-Header-Content-Length: 0"),
    _post("/v1/classify?top_k=3", PICTURES[0], "Content-Type: image/png"),
    _post("/v1/classify", gzip.compress(json.dumps([[0] * 784]).encode()), "Content-Encoding: gzip"),
    _post(_WEB, _FRAMED, "Content-Type: application/grpc-web+proto"),
    _post(_WEB, base64.b64encode(_FRAMED), "Content-Type: application/grpc-web-text"),
]


def _http1(random: Random) -> bytes:
    lines = random.choice(REQUESTS).split(b"\r\n")
    at, choice = random.randrange(len(lines)), random.randrange(5)
    if choice == 0:
        lines[at:at] = lines[at : at + 1] * random.choice((1, 100))
    elif choice == 1:
        del lines[at]
    elif choice == 2:
        lines.insert(at, b"X: " + b"y" * random.choice((0, 100, 100_000)))
    request = b"\r\n".join(lines) * random.choice((1, 1, 2))
    return mutated_bytes(random, request) if random.random() < 0.7 else request


# --- HTTP/2 ----------------------------------------------------------------------------------------------------------


def _call(random: Random, number: int) -> list[bytes]:
    """Returns the frames of one call, honest but for its message, which may be compressed, and perhaps wrongly."""
    method = random.choice(METHODS)
    body = method.mutant(0, random.randrange(1 << 30)) if random.random() < 0.7 else method.honest
    encoding = random.choice((b"", b"", b"gzip", b"deflate", b"identity", b"br"))
    packed = gzip.compress(body) if encoding == b"gzip" else zlib.compress(body) if encoding == b"deflate" else body
    extra = literal(b"grpc-encoding", encoding) if encoding else b""
    extra += random.choice(
        (b"", b"", literal(b"grpc-timeout", random.choice((b"1n", b"5S", b"99999999H", b"-1S", b""))))
    )
    block = request_headers(method.path.encode(), extra)
    framed = message(mutated_bytes(random, packed) if random.random() < 0.2 else packed, random.choice((0, 0, 1)))
    at = random.randrange(len(framed))
    ended = http2.END_STREAM
    parts = [framed] if random.random() < 0.5 else [framed[:at], framed[at:]]
    data = [frame(http2.DATA, ended if part is parts[-1] else 0, number, part) for part in parts]
    return [frame(http2.HEADERS, http2.END_HEADERS, number, block), *data]


def _odd_frame(random: Random, _sound: bytes) -> bytes:
    kind = random.choice((*range(11), 0xFF))
    body = random.choice(
        (b"", bytes(4), bytes(8), random.randbytes(random.choice((1, 5, 6, 40))), http2.CLASSIFY_HEADERS)
    )
    if kind == http2.SETTINGS:
        body = http2.setting(random.randrange(10), random.choice((0, 1, 2**14, 2**31 - 1, 2**32 - 1)))
    return frame(kind, random.choice((0, 1, 4, 5, 8, 0x20, 0xFF)), random.choice(STREAMS), body)


def _relabelled(random: Random, sound: bytes) -> bytes:
    """Returns a frame whose header contradicts it."""
    changed, choice = bytearray(sound), random.randrange(4)
    if choice == 0:
        changed[:3] = random.choice(LENGTHS).to_bytes(3, "big")
    elif choice == 1:
        changed[3] = random.choice((*range(11), 0xFF))
    elif choice == 2:
        changed[4] ^= 1 << random.randrange(8)
    else:
        changed[5:9] = random.choice(STREAMS).to_bytes(4, "big")
    return bytes(changed)


def _http2(random: Random, *, is_careful: bool = False) -> bytes:
    calls = [_call(random, 1 + 2 * index) for index in range(random.randint(1, 3))]
    frames = [frame(http2.SETTINGS), *(part for call in calls for part in call)]
    for _ in range(random.choice((0, 1, 1, 2, 5))):
        at, choice = random.randrange(len(frames)), random.randrange(6)
        if choice < 3:
            changed = random.choice((_odd_frame, _relabelled, _damaged))(random, frames[at])
            if not is_careful or not {frames[at][3], changed[3]} & WITH_HEADERS:
                frames[at] = changed
        elif choice == 3:
            frames[at:at] = [frames[at]] * random.choice((1, 1, 20))
        elif choice == 4 and len(frames) > 1:
            del frames[at]
        else:
            random.shuffle(frames)
    session = http2.PREFACE + b"".join(frames)
    return mutated_bytes(random, session) if random.random() < 0.2 and not is_careful else session


def _damaged(random: Random, sound: bytes) -> bytes:
    return sound[:9] + mutated_bytes(random, sound[9:])


KINDS: Sequence[Callable[[Random], bytes]] = (_noise, _tls, _http1, _http1, _http2, _http2, _http2, _http2)


# --- Sending them ----------------------------------------------------------------------------------------------------


@dataclass
class Sent:
    """What became of streams."""

    num_closed: int = 0
    num_answered: int = 0  # the server said something
    slow: list[int] = field(default_factory=list)  # numbers of those that were not closed in time, or not at all


def is_foreign(data: bytes) -> bool:
    """Returns whether no line of HTTP/1 and no preface of HTTP/2 begins so."""
    return len(data) >= 100 and not (data[:3].isascii() and data[:3].decode().isprintable())


class _Session(asyncio.Protocol):
    """Sends one stream, and waits for the server to close.

    It says that it sends no more, at once or a little later; but if it is known from the first bytes that this is not
    HTTP, the server is to close by itself.
    """

    def __init__(self, data: bytes, pause_s: float, closed: "asyncio.Future[None]") -> None:
        self.num_bytes = 0
        self._data, self._pause_s, self._closed = data, pause_s, closed

    def connection_made(self, transport: Any) -> None:
        transport.write(self._data)
        if is_foreign(self._data):
            return
        if self._pause_s:
            asyncio.get_running_loop().call_later(self._pause_s, self._end, transport)
        else:
            transport.write_eof()

    def _end(self, transport: Any) -> None:
        if not self._closed.done():
            transport.write_eof()

    def data_received(self, data: bytes) -> None:
        self.num_bytes += len(data)

    def connection_lost(self, _error: Exception | None) -> None:
        if not self._closed.done():
            self._closed.set_result(None)


def send_streams(port: int, streams: Iterable[tuple[int, bytes]], *, in_flight: int = IN_FLIGHT) -> Sent:
    """Sends streams, each with its number over a connection of its own, and waits for the end of all."""
    return uvloop.run(_send(port, streams, in_flight))


async def _send(port: int, streams: Iterable[tuple[int, bytes]], in_flight: int) -> Sent:
    sent, left, loop = Sent(), iter(streams), asyncio.get_running_loop()

    async def work() -> None:
        for number, data in left:
            closed = loop.create_future()
            # Addresses of our own: closed connections keep a port for a minute, and one address has 28,000 of them.
            source = f"127.0.{number // 200 % 200 + 1}.{number % 200 + 1}"
            session = _Session(data, PAUSE_S * (number % 2), closed)
            transport, _ = await loop.create_connection(lambda: session, "127.0.0.1", port, local_addr=(source, 0))  # noqa: B023
            began_s = loop.time()
            await asyncio.wait([closed], timeout=TIMEOUT_S)
            transport.abort()
            sent.num_closed += closed.done()
            sent.num_answered += session.num_bytes > 0
            if loop.time() - began_s > CLOSED_S:
                sent.slow.append(number)

    await asyncio.gather(*(work() for _ in range(in_flight)))
    return sent
