"""Training images put aside: what is chosen is chosen by these, and the test images are used once."""

import numpy as np
import torch

from atelier.errors import ConfigurationError
from training.epoch import Split

CHOICE_SEED = 2026  # of the images: the same ones for every recipe and seed


def put_aside(split: Split, num_images: int) -> tuple[Split, Split | None]:
    """What is left to train on, and `num_images` of the images, taken at random; None for 0 images.

    Raises ConfigurationError BAD_RECIPE where fewer than one would be left.
    """
    if num_images == 0:
        return split, None
    if num_images >= len(split.images):
        what = f"num_validation_images is {num_images}, of {len(split.images)} training images"
        raise ConfigurationError("BAD_RECIPE", what, "leave some to train on: --validation-images")
    order = torch.from_numpy(np.random.default_rng(CHOICE_SEED).permutation(len(split.images)))
    order = order.to(split.images.device)  # (N,)
    chosen, rest = order[:num_images], order[num_images:]
    return (
        Split(images=split.images[rest], labels=split.labels[rest]),
        Split(images=split.images[chosen], labels=split.labels[chosen]),
    )
