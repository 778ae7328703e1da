"""Writes HTTP/2 by hand: frames as bytes, and a connection that keeps the rules until an attack breaks one.

No library is asked, for a library would refuse to send most of this.
"""

import contextlib
import os
import socket
import ssl
import struct
import time
from collections import Counter
from collections.abc import Iterator
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CLASSIFY = b"/atelier.v1.Classifier/Classify"

# Frames and flags, RFC 9113, section 6.
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
ACK = END_STREAM = 1
END_HEADERS = 4
PADDED = 8
MAX_STREAMS, INITIAL_WINDOW = 3, 4  # settings

FIRST_WINDOW = 65535
LARGEST_FRAME = 16384
READ_BYTES = 1 << 18
BLOCKED_S = 1.0  # a server that reads nothing for so long is left


def frame(kind: int, flags: int = 0, stream: int = 0, body: bytes = b"") -> bytes:
    """Returns one frame, whatever its parts are."""
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def _string(text: bytes) -> bytes:
    """Returns an HPACK string: its length in a prefix of 7 bits, and its bytes."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, digits = len(text) - 127, bytearray([127])
    while rest >= 128:
        digits.append(rest % 128 + 128)
        rest //= 128
    return bytes([*digits, rest]) + text


def literal(name: bytes, value: bytes, first: int = 0x00) -> bytes:
    """Returns a header in HPACK: a literal without Huffman codes; `first` 0x40 has the decoder remember it."""
    return bytes([first]) + _string(name) + _string(value)


def request_headers(path: bytes = CLASSIFY, extra: bytes = b"") -> bytes:
    """Returns the header block of a gRPC call; `extra` is appended as it is."""
    block = b"\x83\x86" + literal(b":authority", b"localhost") + literal(b":path", path)  # POST, http
    return block + literal(b"te", b"trailers") + literal(b"content-type", b"application/grpc") + extra


def opening(stream: int, block: bytes = b"", flags: int = END_HEADERS) -> bytes:
    """Returns the frame that opens a stream, for Classify without `block`."""
    return frame(HEADERS, flags, stream, block or CLASSIFY_HEADERS)


def reset(stream: int) -> bytes:
    """Returns the frame that cancels a stream."""
    return frame(RST_STREAM, 0, stream, struct.pack(">I", 8))


def message(body: bytes, flag: int = 0) -> bytes:
    """Returns a gRPC message with its prefix; `flag` 1 says that it is compressed."""
    return bytes([flag]) + len(body).to_bytes(4, "big") + body


CLASSIFY_HEADERS = request_headers()
ONE_IMAGE = message(b"\n\x90\x06" + bytes(784))  # a ClassifyRequest with one black image


def setting(number: int, value: int) -> bytes:
    """Returns one entry of a SETTINGS frame."""
    return struct.pack(">HI", number, value)


class Connection:
    """A connection that keeps to the server's windows, and answers its pings and settings when it reads.

    Raises OSError if the server does not take it. After that `send` and `read` return false once it has ended.
    """

    def __init__(
        self,
        address: tuple[str, int],
        settings: bytes = b"",
        *,
        greeting: bytes = b"",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`greeting` replaces the preface and the settings."""
        self.received: Counter[int] = Counter()  # frames, by their kind
        self.ended: set[int] = set()  # streams that the server has ended
        self.answered: bytes = b""  # the data of all streams, one after the other
        self.max_streams = 100
        self.is_open = True
        self._next_stream = 1
        self._first_window = FIRST_WINDOW
        self._window = FIRST_WINDOW
        self._stream_windows: dict[int, int] = {}
        self._unparsed = b""
        self._socket = socket.create_connection(address, BLOCKED_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self._socket = tls.wrap_socket(self._socket, server_hostname="localhost")
        self.send(greeting or PREFACE + frame(SETTINGS, 0, 0, settings))

    def next_stream(self) -> int:
        """Returns a number that no stream has had."""
        self._next_stream += 2
        return self._next_stream - 2

    def send(self, data: bytes) -> bool:
        """Sends bytes as they are, and lets others go first: the system itself takes cores away at its ticks only."""
        try:
            self._socket.sendall(data)
            os.sched_yield()
        except OSError:  # half a frame may be under way: the connection is of no use any more
            self.is_open = False
        return self.is_open

    def read(self, wait_s: float = 0.0) -> bool:
        """Takes in what has come, after waiting for something for so long."""
        for data in self._arrivals(wait_s):
            self._take(data)
        return self.is_open

    def skip(self, wait_s: float = 0.0) -> bool:
        """Throws away what has come, unlooked at, after waiting for something for so long."""
        for _data in self._arrivals(wait_s):
            pass
        return self.is_open

    def send_data(self, stream: int, data: bytes, until_s: float, *, ends: bool = True) -> bool:
        """Sends a stream's bytes as its windows allow. Returns false if they were not all taken until then."""
        sent = 0
        while sent < len(data):
            room = min(self._window, self._stream_windows.setdefault(stream, self._first_window), LARGEST_FRAME)
            part = data[sent : sent + max(0, room)]
            if part:
                sent += len(part)
                self._window -= len(part)
                self._stream_windows[stream] -= len(part)
                flags = END_STREAM if ends and sent == len(data) else 0
                self.send(frame(DATA, flags, stream, part))
            self.read(0.0 if part else 0.05)
            if not self.is_open or stream in self.ended or time.monotonic() > until_s:
                return False
        return True

    def ask(self, body: bytes, until_s: float, block: bytes = b"", *, ends: bool = True) -> int:
        """Opens a stream, for Classify without `block`, and sends it the message; returns its number."""
        stream = self.next_stream()
        self.send(opening(stream, block))
        self.send_data(stream, body, until_s, ends=ends)
        return stream

    def wait_for(self, stream: int, until_s: float) -> bool:
        """Reads until the server has ended the stream; false if it has not until then."""
        while stream not in self.ended and self.is_open and time.monotonic() < until_s:
            self.read(0.05)
        return stream in self.ended

    def close(self) -> None:
        """Ends it."""
        self.is_open = False
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _arrivals(self, wait_s: float) -> Iterator[bytes]:
        try:
            self._socket.settimeout(wait_s)  # 0 does not wait
            while data := self._socket.recv(READ_BYTES):
                self._socket.settimeout(BLOCKED_S)  # what is done about it may send
                yield data
                self._socket.settimeout(0.0)
            self.is_open = False
        except (BlockingIOError, TimeoutError, ssl.SSLWantReadError):
            pass
        except OSError:
            self.is_open = False
        with contextlib.suppress(OSError):
            self._socket.settimeout(BLOCKED_S)

    def _take(self, data: bytes) -> None:
        self._unparsed += data
        start = 0
        while len(self._unparsed) >= start + 9:
            end = start + 9 + int.from_bytes(self._unparsed[start : start + 3], "big")
            if len(self._unparsed) < end:
                break
            kind, flags = self._unparsed[start + 3], self._unparsed[start + 4]
            stream = int.from_bytes(self._unparsed[start + 5 : start + 9], "big")
            self._on_frame(kind, flags, stream, self._unparsed[start + 9 : end])
            start = end
        self._unparsed = self._unparsed[start:]

    def _on_frame(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        self.received[kind] += 1
        if kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
            self.ended.add(stream)
            self._stream_windows.pop(stream, None)
        if kind == DATA:
            self.answered += body
        elif kind == WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(body, "big")
        elif kind == WINDOW_UPDATE and stream not in self.ended:
            known = self._stream_windows.setdefault(stream, self._first_window)
            self._stream_windows[stream] = known + int.from_bytes(body, "big")
        elif kind == SETTINGS and not flags & ACK:
            self._on_settings(body)
            self.send(frame(SETTINGS, ACK))
        elif kind == PING and not flags & ACK:
            self.send(frame(PING, ACK, 0, body))

    def _on_settings(self, body: bytes) -> None:
        for number, value in struct.iter_unpack(">HI", body[: len(body) // 6 * 6]):
            if number == MAX_STREAMS:
                self.max_streams = value
            elif number == INITIAL_WINDOW:
                for stream in self._stream_windows:
                    self._stream_windows[stream] += value - self._first_window
                self._first_window = value
