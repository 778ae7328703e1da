"""Images and labels on one device; some of them put aside to choose by, so that the test images are used once."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from atelier.errors import ConfigurationError

CHOICE_SEED = 2026  # of the images put aside: the same ones for every recipe and seed


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """A part of the data set."""

    images: Tensor  # (N, 1, 28, 28) uint8
    labels: Tensor  # (N,) int64


def split_on(device: torch.device, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> Split:
    """Copies (N, 1, 28, 28) images and (N,) labels to `device`."""
    return Split(
        images=torch.tensor(images, device=device),  # (N, 1, 28, 28) uint8
        labels=torch.tensor(labels, device=device, dtype=torch.int64),  # (N,)
    )


def put_aside(split: Split, num_images: int) -> tuple[Split, Split | None]:
    """Returns what is left to train on, and `num_images` of the images, taken at random; None for 0 images.

    Raises ConfigurationError BAD_RECIPE if fewer than one would be left.
    """
    if num_images == 0:
        return split, None
    if num_images >= len(split.images):
        what = f"num_validation_images is {num_images}, of {len(split.images)} training images"
        raise ConfigurationError("BAD_RECIPE", what, "leave some to train on: --set num_validation_images")
    order = torch.from_numpy(np.random.default_rng(CHOICE_SEED).permutation(len(split.images)))
    order = order.to(split.images.device)  # (N,)
    chosen, rest = order[:num_images], order[num_images:]
    return (
        Split(images=split.images[rest], labels=split.labels[rest]),
        Split(images=split.images[chosen], labels=split.labels[chosen]),
    )
