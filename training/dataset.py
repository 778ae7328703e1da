"""Fashion-MNIST as NumPy arrays: found on this machine or fetched, and never used unchecked.

    python -m training.dataset        (make data)

Looked for in the places of `PLACES`, in that order, then fetched into the first of them. Only NumPy is needed, so the
load tests can use the test images without installing torch.
"""

import argparse
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from atelier.program import run_program
from training.download import fetch_dataset
from training.idx_files import (
    FILES,
    PLACES,
    array_from_idx,
    bad_dataset,
    data_missing,
    find_dataset,
    not_in_any_place,
    path_of,
    read_idx_bytes,
    read_verified,
)

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class FashionMNIST:
    """Images are (N, 1, 28, 28) uint8, 0 = background; labels are (N,) uint8, indices of `CLASSES`."""

    train_images: npt.NDArray[np.uint8]
    train_labels: npt.NDArray[np.uint8]
    test_images: npt.NDArray[np.uint8]
    test_labels: npt.NDArray[np.uint8]
    digests: dict[str, str]  # file name -> SHA-256 of its uncompressed bytes
    verified: bool  # the digests were compared with `FILES`
    source: Path  # the directory it was read from


def load_dataset(data_dir: Path | None = None, *, fetch: bool = True, verify: bool = True) -> FashionMNIST:
    """Finds the dataset (fetching it where `fetch` allows) and loads it.

    `data_dir`, or else the environment's FASHION_MNIST_DIR, is the only place looked at where it is given. With
    `verify=False`, for tests on small stand-ins, any four well-formed IDX files will do.

    Raises MissingInputError DATA_MISSING listing the places and the cures, BadDataError BAD_DATASET naming the file,
    what was expected and what was found.
    """
    directory = find_dataset(data_dir)
    if directory is None and fetch:
        directory = fetch_dataset(PLACES[0], FILES)
    if directory is None:
        raise data_missing(not_in_any_place())
    return _load(directory, verify)


def _load(directory: Path, verify: bool) -> FashionMNIST:
    arrays, digests = [], {}
    for file in FILES:
        path = path_of(file, directory)
        if path is None:
            raise data_missing(f"{directory}/{file.name} was there a moment ago")
        data = read_verified(path, file) if verify else read_idx_bytes(path, file.num_bytes)
        digests[file.name] = hashlib.sha256(data).hexdigest()
        arrays.append(array_from_idx(data, file.shape[1:], path))
        if file.shape[1:] == ():
            _check_labels(labels=arrays[-1], images=arrays[-2], path=path)
    train_images, train_labels, test_images, test_labels = arrays
    return FashionMNIST(
        train_images=train_images[:, np.newaxis],  # (60000, 1, 28, 28)
        train_labels=train_labels,  # (60000,)
        test_images=test_images[:, np.newaxis],  # (10000, 1, 28, 28)
        test_labels=test_labels,  # (10000,)
        digests=digests,
        verified=verify,
        source=directory,
    )


def _check_labels(*, labels: npt.NDArray[np.uint8], images: npt.NDArray[np.uint8], path: Path) -> None:
    if len(labels) != len(images):
        raise bad_dataset(path, f"expected {len(images)} labels, one for each image, found {len(labels)}")
    if labels.max() >= len(CLASSES):
        index = int(labels.argmax())
        raise bad_dataset(path, f"expected labels from 0 to {len(CLASSES) - 1}, found {labels[index]} at {index}")


def main(arguments: list[str]) -> int:
    """Finds or fetches the dataset, checks it, and says where it is."""
    parser = argparse.ArgumentParser(prog="python -m training.dataset", description="Find or fetch Fashion-MNIST.")
    parser.add_argument("--data-dir", type=Path, help="use the files in this directory, and look nowhere else")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    dataset = load_dataset(parser.parse_args(arguments).data_dir)
    print(f"Fashion-MNIST is in {dataset.source}: {len(dataset.train_images)} + {len(dataset.test_images)} images")
    for name, digest in dataset.digests.items():
        print(f"  {digest}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
