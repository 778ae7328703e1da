"""Attacks by large messages, and by small ones that become large: gzip and pictures."""

import struct
import time
import zlib
from collections.abc import Sequence

from atelier.wire import classifier_pb2 as pb
from loadtest.attack.field import Counts, Field, GoesOn, in_threads
from loadtest.attack.http2 import (
    Connection,
    literal,
    message,
    opening,
    request_headers,
    reset,
)

THREADS = 4
CROWD = 100  # connections that send pictures, each waiting for its answer
RESETS = 20  # in a row
MEBIBYTE = 1 << 20
LARGEST_SIDE = 16383  # of a WebP
ALLOWED_SIDE = 4096  # of a PNG
ALLOWED_WEBP_SIDE = 2896
GZIP = literal(b"grpc-encoding", b"gzip")


def malformed_megabytes(field: Field) -> Counts:
    """Sends messages of 15 MB that are no protobuf."""
    return ask(field, [message(b"\xff" * (15 * MEBIBYTE))])


def gzip_bombs(field: Field) -> Counts:
    """Sends messages of a gigabyte of zeros that compress to one megabyte."""
    return ask(field, [message(zeros_gzipped(1024), 1)], GZIP)


def picture_bombs(field: Field) -> Counts:
    """Sends pictures of 268 megapixels in a few bytes, alone and a thousand in a request, 100 requests at a time."""
    webp, png = blank_webp(LARGEST_SIDE), blank_png(LARGEST_SIDE)
    requests = [*map(picture_request, ([webp], [png], [webp] * 1000, [png] * 100))]
    return ask(field, requests, connections=CROWD)


def picture_heaps(field: Field) -> Counts:
    """Sends pictures as large as is allowed, in a few bytes: one and hundreds in a request, 100 requests at a time."""
    webp, png = blank_webp(ALLOWED_WEBP_SIDE), blank_png(ALLOWED_SIDE)
    requests = [*map(picture_request, ([webp], [png], [webp] * 1000, [png] * 400))]
    return ask(field, requests, connections=CROWD)


def reset_pictures(field: Field) -> Counts:
    """Cancels pictures as large as is allowed before they are decoded; a small one among them must be answered."""
    whole, small = picture_request([blank_png(ALLOWED_SIDE)]), picture_request([blank_png(28)])

    def work(_rank: int, counts: Counts, _goes_on: GoesOn) -> None:
        with Connection(field.address) as connection:
            streams = [connection.ask(whole, field.most_s) for _ in range(RESETS)]
            connection.send(b"".join(map(reset, streams)))
            if connection.wait_for(connection.ask(small, field.most_s), field.most_s):
                counts["streams"] += RESETS

    return in_threads(THREADS, field, work, "streams")


def zeros_gzipped(mebibytes: int) -> bytes:
    """Returns so many MiB of zeros as gzip (RFC 1952): one compressed MiB over and over, which takes no time."""
    packer, zeros, digest = zlib.compressobj(9, zlib.DEFLATED, -15), bytes(MEBIBYTE), 0
    block = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
    for _ in range(mebibytes):
        digest = zlib.crc32(zeros, digest)
    head, last_block = b"\x1f\x8b\x08" + bytes(6) + b"\xff", b"\x03\0"
    return head + block * mebibytes + last_block + struct.pack("<II", digest, mebibytes * MEBIBYTE)


def blank_png(side: int) -> bytes:
    """Returns a black PNG of one bit a pixel."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(kind, body) for kind, body in chunks)


def blank_webp(side: int) -> bytes:
    """Returns a lossless WebP whose five codes have one symbol each, so that its pixels take no bits at all."""
    fields = [(side - 1, 14), (side - 1, 14), (0, 1), (0, 3)]  # no alpha, version 0
    fields += [(0, 1), (0, 1), (0, 1)]  # no transform, no cache of colours, one group of codes
    fields += [(1, 1), (0, 1), (0, 1), (0, 1)] * 5  # a simple code, of one symbol, which has one bit: 0
    bits, used = 0, 0
    for value, width in fields:
        bits |= value << used
        used += width
    body = b"\x2f" + bits.to_bytes(-(-used // 8), "little")
    body += bytes(len(body) % 2)
    return b"RIFF" + struct.pack("<I", len(body) + 12) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def picture_request(pictures: Sequence[bytes]) -> bytes:
    """Returns a ClassifyRequest of pictures, as a gRPC message."""
    return message(pb.ClassifyRequest(pictures=pictures).SerializeToString())


def ask(field: Field, messages: Sequence[bytes], extra: bytes = b"", *, connections: int = THREADS) -> Counts:
    """Sends the messages in turn, each on a connection of its own, and waits for the answer."""
    block = request_headers(extra=extra)

    def work(rank: int, counts: Counts, _goes_on: GoesOn) -> None:
        with Connection(field.address) as connection:
            stream = connection.next_stream()
            connection.send(opening(stream, block))
            body = messages[(rank + counts["messages"]) % len(messages)]
            is_taken = connection.send_data(stream, body, field.most_s)
            counts["megabytes"] += round(is_taken * len(body) / MEBIBYTE)
            connection.wait_for(stream, min(field.most_s, time.monotonic() + 10))
            counts["messages"] += 1

    return in_threads(connections, field, work, "messages")
