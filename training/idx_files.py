"""The four files of Fashion-MNIST: what they must be, where they may be, and how their format, IDX, is read.

IDX is a magic number that holds type and rank, the shape, and the bytes (big-endian). Nothing a file says about itself
is believed: at most the expected number of bytes is ever read out of it, compressed or not, and its header must
describe exactly the bytes that follow.
"""

import gzip
import hashlib
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from atelier.errors import BadDataError, MissingInputError

GZIP_MAGIC = b"\x1f\x8b"
UNSIGNED_BYTE = 0x08  # the only type of element that MNIST and Fashion-MNIST use


@dataclass(frozen=True)
class DataFile:
    """One of the four files, as Zalando Research published it."""

    name: str  # of the uncompressed file; `.gz` may follow
    shape: tuple[int, ...]  # (images, 28, 28) or (labels,)
    sha256: str  # of the uncompressed bytes

    @property
    def num_bytes(self) -> int:
        """Length of the uncompressed file."""
        return num_bytes(self.shape)


FILES = (
    DataFile(
        "train-images-idx3-ubyte", (60_000, 28, 28), "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
    DataFile("train-labels-idx1-ubyte", (60_000,), "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    DataFile(
        "t10k-images-idx3-ubyte", (10_000, 28, 28), "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
    ),
    DataFile("t10k-labels-idx1-ubyte", (10_000,), "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
)

PLACES = (
    Path("data"),
    Path("/usr/share/datasets/fashion-mnist"),  # Debian's and Ubuntu's package dataset-fashion-mnist
    Path("data/FashionMNIST/raw"),  # torchvision.datasets.FashionMNIST("data")
)


def find_dataset(data_dir: Path | None = None) -> Path | None:
    """Returns the first directory with all four files, or None; raises DATA_MISSING if the chosen one lacks any."""
    chosen = data_dir or os.environ.get("FASHION_MNIST_DIR")
    if chosen:
        if not _has_all_files(Path(chosen)):
            raise MissingInputError(
                "DATA_MISSING",
                f"no Fashion-MNIST in the directory chosen, {_missing_from(Path(chosen))}",
                "choose another, or none: without --data-dir and FASHION_MNIST_DIR it is looked for, and fetched",
            )
        return Path(chosen)
    return next((place for place in PLACES if _has_all_files(place)), None)


def path_of(file: DataFile, directory: Path) -> Path | None:
    """Returns where `directory` has the file, gzipped or not; None if it has not."""
    return next((path for path in (directory / file.name, directory / f"{file.name}.gz") if path.is_file()), None)


def _has_all_files(directory: Path) -> bool:
    """Returns whether the four are there; what is in them is another matter."""
    return all(path_of(file, directory) for file in FILES)


def _missing_from(directory: Path) -> str:
    """Names the directory and, in brackets, what it lacks."""
    if not directory.is_dir():
        return (
            f"{directory} ({dangling_link(directory) or ('no directory' if directory.exists() else 'does not exist')})"
        )
    missing = [_missing(file, directory) for file in FILES if path_of(file, directory) is None]
    return f"{directory} (no {', '.join(missing)}, gzipped or not)"


def _missing(file: DataFile, directory: Path) -> str:
    """Names the file, and what became of the link that has its name, if there is one."""
    links = filter(None, (dangling_link(directory / name) for name in (file.name, f"{file.name}.gz")))
    return " as ".join([file.name, *links])


def dangling_link(path: Path) -> str:
    """Says where `path` leads, if it is a link to nothing; else ""."""
    return f"a dangling link to {path.readlink()}" if path.is_symlink() and not path.exists() else ""


def read_verified(path: Path, file: DataFile) -> bytes:
    """Returns the uncompressed bytes of `path` if they are `file`'s; raises BadDataError BAD_DATASET."""
    data = read_idx_bytes(path, file.num_bytes)
    if len(data) != file.num_bytes:
        raise bad_dataset(path, f"expected {file.num_bytes} bytes, found {len(data)}")
    found = hashlib.sha256(data).hexdigest()
    if found != file.sha256:
        raise bad_dataset(path, f"expected SHA-256 {file.sha256}, found {found}")
    return data


def not_in_any_place() -> str:
    """Names the places looked at, and what each lacks."""
    return f"it is not in {', '.join(_missing_from(place) for place in PLACES)}"


def data_missing(what: str) -> MissingInputError:
    """Returns `DATA_MISSING: <what>`, and every way to get the data."""
    cure = (
        f"put {', '.join(file.name for file in FILES)}, gzipped or not, into {PLACES[0]}/ or name their directory with "
        "--data-dir or FASHION_MNIST_DIR, or install the Debian package dataset-fashion-mnist, or run make data online"
    )
    return MissingInputError("DATA_MISSING", f"no Fashion-MNIST: {what}", cure)


# --- The format -------------------------------------------------------------------------------------------------------


def num_bytes(shape: tuple[int, ...]) -> int:
    """Returns the uncompressed file's length: magic and a size per dimension, 4 bytes each, then a byte per element."""
    return 4 + 4 * len(shape) + math.prod(shape)


def read_idx_bytes(path: Path, max_bytes: int) -> bytes:
    """Reads the file's bytes, uncompressed; gzip is known by its magic, not by the name.

    Raises BadDataError BAD_DATASET if there are more than `max_bytes` (found after reading one byte too many, so a
    gzip bomb costs nothing) or if the gzip stream is cut short or corrupt.
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
    """Returns the (N, *item_shape) uint8 array that `data` describes, N >= 1; read-only, it shares the bytes.

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
    """Returns `BAD_DATASET: <path>: <what>`, and how to get a good one."""
    return BadDataError("BAD_DATASET", f"{path}: {what}", f"delete {path} and run make data")
