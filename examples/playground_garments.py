"""Draws the garments that the playground's page offers: `python -m examples.playground_garments`."""

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atelier.contract import NUM_CLASSES
from atelier.program import run_program
from training.dataset import load_dataset

PICTURE = Path(__file__).parent.parent / "serving" / "playground" / "page" / "garments.png"
NUM_OF_EACH = 10


def main(arguments: list[str]) -> int:
    """Writes one PNG of 280x280 grey pixels: a column for each class, and in it the class's first ten test images."""
    parser = argparse.ArgumentParser(prog="python -m examples.playground_garments", description=__doc__)
    parser.add_argument("picture", type=Path, nargs="?", default=PICTURE, help="the PNG to write (%(default)s)")
    parser.add_argument("--data-dir", type=Path, help="the folder of Fashion-MNIST's four files")
    options = parser.parse_args(arguments)
    data = load_dataset(options.data_dir)
    Image.fromarray(garments(data.test_images[:, 0], data.test_labels)).save(options.picture, optimize=True)
    return 0


def garments(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lays images (N, 28, 28) out as one of (280, 280): row r, column c is the r-th image of class c."""
    columns = [np.concatenate(images[labels == label][:NUM_OF_EACH]) for label in range(NUM_CLASSES)]  # (280, 28) each
    return np.concatenate(columns, axis=1)


if __name__ == "__main__":
    sys.exit(run_program(main))
