"""Defines what every runtime offers the batcher: uint8 images in, float32 logits out, NumPy at the border."""

from typing import Protocol

import numpy as np

from atelier.contract import IMAGE_SHAPE, Images, Logits


class Backend(Protocol):
    """A model loaded on a device.

    `infer` is only ever called from one thread at a time. Everything may raise; whoever calls translates.
    """

    name: str  # "torch", "onnxruntime", "tensorrt", "litert"
    device: str  # "cpu", "cuda:0"
    max_batch_size: int

    def infer(self, images: Images) -> Logits:
        """Computes (N, 1, 28, 28) uint8 -> (N, 10) float32, 1 <= N <= max_batch_size."""
        ...

    def warm_up(self) -> None:
        """Runs every batch size bucket twice, so that no request pays for a first run."""
        for batch_size in batch_size_buckets(self.max_batch_size):
            images = np.zeros((batch_size, *IMAGE_SHAPE), np.uint8)
            for _ in range(2):
                self.infer(images)

    def close(self) -> None:
        """Frees the device; `infer` must not be called again."""
        ...


def batch_size_buckets(max_batch_size: int) -> list[int]:
    """Returns the powers of two up to `max_batch_size`, and itself: 1, 2, 4, ... 64."""
    powers = [1 << exponent for exponent in range(max_batch_size.bit_length())]
    return sorted({*powers, max_batch_size})
