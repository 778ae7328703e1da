"""IDX files that lie about themselves."""

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from atelier.errors import BadDataError
from tests.idx_files import idx_bytes
from training.idx_files import array_from_idx, read_idx_bytes

PATH = Path("images")


def images(num_images: int = 3) -> bytes:
    return idx_bytes(np.arange(num_images * 784).astype(np.uint8).reshape(num_images, 28, 28))


def with_bytes(data: bytes, offset: int, new: bytes) -> bytes:
    return data[:offset] + new + data[offset + len(new) :]


def test_array_is_what_was_written() -> None:
    array = array_from_idx(images(), (28, 28), PATH)
    assert array.shape == (3, 28, 28)
    assert (array.ravel() == np.arange(3 * 784).astype(np.uint8)).all()


@pytest.mark.fault("T7")
@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "a header of 16 bytes, found 0 bytes"),
        (images()[:15], "a header of 16 bytes, found 15 bytes"),
        (with_bytes(images(), 2, b"\x0d"), "expected the magic number 00000803, found 00000d03"),  # floats
        (with_bytes(images(), 3, b"\x01"), "expected the magic number 00000803, found 00000801"),  # labels
        (with_bytes(images(), 4, b"\xff\xff\xff\xff"), "for its 4294967295 items, found 2368"),
        (with_bytes(images(), 4, b"\0\0\0\2"), "expected 1584 bytes for its 2 items, found 2368"),
        (with_bytes(images(), 8, b"\0\0\0\x1b"), r"expected the shape \(N, 28, 28\), found \(3, 27, 28\)"),
        (with_bytes(images(), 8, b"\xff" * 8), r"found \(3, 4294967295, 4294967295\)"),
        (images(0), r"found \(0, 28, 28\)"),
        (images()[:-1], "expected 2368 bytes for its 3 items, found 2367"),
        (images() + b"\0", "expected 2368 bytes for its 3 items, found 2369"),
    ],
)
def test_lying_header_is_refused_and_the_field_named(data: bytes, complaint: str) -> None:
    with pytest.raises(BadDataError, match=f"BAD_DATASET: images: .*{complaint}.*delete images and run make data"):
        array_from_idx(data, (28, 28), PATH)


def test_gzip_is_known_by_its_content_not_by_its_name(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.gz", tmp_path / "packed"
    plain.write_bytes(images())
    packed.write_bytes(gzip.compress(images()))
    assert read_idx_bytes(plain, 10_000) == read_idx_bytes(packed, 10_000) == images()


@pytest.mark.fault("T5")
@pytest.mark.parametrize("kept", [1, 10, 0.5, -1])
def test_truncated_gzip_is_refused(tmp_path: Path, kept: float) -> None:
    data = gzip.compress(images())
    path = tmp_path / "images.gz"
    path.write_bytes(data[: int(len(data) * kept)] if kept == 0.5 else data[: int(kept)])
    with pytest.raises(BadDataError, match=r"BAD_DATASET: .*images\.gz"):
        array_from_idx(read_idx_bytes(path, 10_000), (28, 28), path)


@pytest.mark.fault("T8")
def test_gzip_bomb_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(50_000_000), compresslevel=1))
    tracemalloc.start()
    with pytest.raises(BadDataError, match="expected 10008 bytes, found more"):
        read_idx_bytes(path, 10_008)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1_000_000
