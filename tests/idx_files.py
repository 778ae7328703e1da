"""Makes small data sets in the files' own format, so that a test needs no Fashion-MNIST."""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.dataset import FashionMNIST
from training.idx_files import FILES

Array = npt.NDArray[np.uint8]


def idx_bytes(array: Array) -> bytes:
    """`array`, of unsigned bytes, as an IDX file."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def write_first_images(directory: Path, data: FashionMNIST, *, num_train: int, num_test: int) -> None:
    """Writes the first real images of either kind, for what need not see them all."""
    directory.mkdir(parents=True, exist_ok=True)
    arrays = (
        *(data.train_images[:num_train, 0], data.train_labels[:num_train]),
        *(data.test_images[:num_test, 0], data.test_labels[:num_test]),
    )
    for file, array in zip(FILES, arrays, strict=True):
        (directory / f"{file.name}.gz").write_bytes(gzip.compress(idx_bytes(array), compresslevel=1))


def write_idx_files(
    directory: Path, *, num_train: int = 600, num_test: int = 100, seed: int = 0, gzipped: bool = False
) -> dict[str, str]:
    """Writes the four files into `directory`; returns name -> SHA-256 of the uncompressed bytes.

    An image is noise with a bright bar whose row is its label: something that can be learnt.
    """
    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    arrays: list[Array] = []
    for num_images in (num_train, num_test):
        labels = random.integers(0, 10, num_images, dtype=np.uint8)  # (N,)
        images = random.integers(0, 64, (num_images, 28, 28), dtype=np.uint8)  # (N, 28, 28)
        images[np.arange(num_images), 4 + 2 * labels] = 255
        arrays += [images, labels]
    digests = {}
    for file, array in zip(FILES, arrays, strict=True):
        data = idx_bytes(array)
        digests[file.name] = hashlib.sha256(data).hexdigest()
        path = directory / (f"{file.name}.gz" if gzipped else file.name)
        path.write_bytes(gzip.compress(data, compresslevel=1, mtime=0) if gzipped else data)
    return digests
