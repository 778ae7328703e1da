"""The tensors that every program, artifact and call agrees on: `images` in, `logits` out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]  # (N, 1, 28, 28), row-major, 0 = background
Logits = NDArray[np.float32]  # (N, 10)

IMAGE_SHAPE = (1, 28, 28)
IMAGE_BYTES = 28 * 28
NUM_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output; -1 in `shape` stands for the batch, `dtype` is NumPy's name."""

    name: str
    dtype: str
    shape: tuple[int, ...]
