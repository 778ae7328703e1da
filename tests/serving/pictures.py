"""Pictures for the tests, and what becomes of them."""

import struct
import time
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from serving.errors import InvalidRequestError
from serving.pictures.reading import Reading
from serving.pictures.worker import read_picture

WHITE = 255


def encoded(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """`picture` as a file."""
    file = BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


# PNG's colour types.
GRAY, COLOUR, PALETTE, GRAY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(samples: NDArray[np.integer[Any]], depth: int, colour: int, **chunks: bytes) -> bytes:
    """Packs (H, W, channels) samples of `depth` bits each as a PNG; `chunks` stand before the pixels."""
    height, width, _ = samples.shape
    bits = (samples[..., np.newaxis] >> np.arange(depth)[::-1]) & 1  # (H, W, channels, depth)
    rows = np.packbits(bits.astype(np.uint8).reshape(height, -1), axis=1)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = {"IHDR": header, **chunks, "IDAT": pixels, "IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind.encode(), body) for kind, body in parts.items())


def blank_png(width: int, height: int, depth: int, colour: int, **chunks: bytes) -> bytes:
    """Zeros as a PNG, in a thousandth of their size; `chunks` stand before the pixels."""
    num_samples = {GRAY: 1, COLOUR: 3, PALETTE: 1, GRAY_ALPHA: 2, COLOUR_ALPHA: 4}[colour]
    packer, row = zlib.compressobj(9), bytes(1 + (width * num_samples * depth + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = {"IHDR": header, **chunks, "IDAT": pixels, "IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind.encode(), body) for kind, body in parts.items())


def decoded(data: bytes, *, invert: bool = False) -> NDArray[np.uint8]:
    """(28, 28) uint8."""
    image = read_picture(data, 0, Reading(invert=invert, prepare=False)).image
    assert image.shape == (1, 28, 28)
    assert image.dtype == np.uint8
    pixels: NDArray[np.uint8] = image[0]
    return pixels


def refusal(data: bytes, index: int = 0) -> str:
    """The message with which a picture is refused."""
    with pytest.raises(InvalidRequestError) as caught:
        read_picture(data, index, Reading(invert=False, prepare=False))
    assert caught.value.word == "BAD_PICTURE"
    return str(caught.value)


def garment(height: int = 28, width: int = 28) -> NDArray[np.uint8]:
    """(height, width) of noise: no two pixels alike, no symmetry."""
    return np.random.default_rng(3).integers(0, 256, (height, width), np.uint8)


def cpu_seconds(work: Callable[[], object]) -> float:
    """The CPU time of this thread that `work` takes, whatever else the machine does: the least of five tries."""
    tries_s = []
    for _ in range(5):
        started_s = time.thread_time()
        work()
        tries_s.append(time.thread_time() - started_s)
    return min(tries_s)
