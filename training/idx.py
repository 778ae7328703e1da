"""The IDX format of MNIST and its kin: a magic number that holds type and rank, the shape, the bytes (big-endian).

Nothing a file says about itself is believed: at most the expected number of bytes is ever read out of it, compressed
or not, and its header must describe exactly the bytes that follow.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from atelier.errors import BadDataError

GZIP_MAGIC = b"\x1f\x8b"
UNSIGNED_BYTE = 0x08  # the only type of element that MNIST and Fashion-MNIST use


def num_bytes(shape: tuple[int, ...]) -> int:
    """Length of the uncompressed file: magic and one size per dimension, 4 bytes each, then a byte per element."""
    return 4 + 4 * len(shape) + math.prod(shape)


def read_idx_bytes(path: Path, max_bytes: int) -> bytes:
    """The file's bytes, uncompressed; gzip is known by its magic, not by the name.

    Raises BadDataError BAD_DATASET where there are more than `max_bytes` (found after reading one byte too many, so a
    gzip bomb costs nothing) or where the gzip stream is cut short or corrupt.
    """
    with path.open("rb") as file:
        is_gzip = file.peek(2)[:2] == GZIP_MAGIC
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if is_gzip else file
        try:
            data = stream.read(max_bytes + 1)  # reaching the end is what makes gzip check its own checksum
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise bad_dataset(path, f"its gzip stream is damaged: {error}") from None
    if len(data) > max_bytes:
        raise bad_dataset(path, f"expected {max_bytes} bytes, found more")
    return data


def array_from_idx(data: bytes, item_shape: tuple[int, ...], path: Path) -> npt.NDArray[np.uint8]:
    """The (N, *item_shape) uint8 array that `data` describes, N >= 1; read-only, it shares the bytes.

    Raises BadDataError BAD_DATASET naming `path` and the field that is wrong.
    """
    rank = 1 + len(item_shape)
    if len(data) < 4 + 4 * rank:
        raise bad_dataset(path, f"expected a header of {4 + 4 * rank} bytes, found {len(data)} bytes in all")
    magic, expected_magic = data[:4], bytes([0, 0, UNSIGNED_BYTE, rank])
    if magic != expected_magic:
        raise bad_dataset(path, f"expected the magic number {expected_magic.hex()}, found {magic.hex()}")
    shape = tuple(int.from_bytes(data[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(rank))
    if shape[1:] != item_shape or shape[0] < 1:
        raise bad_dataset(path, f"expected the shape (N, {', '.join(map(str, item_shape))}), found {shape}")
    if len(data) != num_bytes(shape):
        raise bad_dataset(path, f"expected {num_bytes(shape)} bytes for its {shape[0]} items, found {len(data)}")
    return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape)


def bad_dataset(path: Path, what: str) -> BadDataError:
    """`BAD_DATASET: <path>: <what>`, and how to get a good one."""
    return BadDataError("BAD_DATASET", f"{path}: {what}", f"delete {path} and run make data")
