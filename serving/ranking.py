"""From one image's logits to its most probable classes.

In plain Python, an image at a time: for ten classes that takes 1.5 us, less than NumPy needs to begin, and gives up the
GIL nowhere, which NumPy does with each call and a busy server pays for.
"""

from math import exp, isfinite

import numpy as np

from serving.backends.base import Logits
from serving.errors import BackendError

NUM_CLASSES = 10


def rank(logits: list[float], top_k: int) -> list[tuple[int, float]]:
    """The `top_k` most probable (label, probability), best first; equal ones in the order of their labels.

    Softmax, shifted by the maximum so that it cannot overflow.
    """
    largest = max(logits)
    exponentials = [exp(logit - largest) for logit in logits]  # the largest is 1
    total = sum(exponentials)
    best = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)[:top_k]
    return [(label, exponentials[label] / total) for label in best]


def checked_rows(logits: Logits, num_images: int) -> list[list[float]]:
    """The logits, one row of floats per image.

    Raises BackendError unless there is one finite row of 10 per image: the largest of NaN would be a confident answer.
    """
    if np.shape(logits) != (num_images, NUM_CLASSES):
        expected = (num_images, NUM_CLASSES)
        raise BackendError("BAD_OUTPUT", f"the backend answered with shape {np.shape(logits)}, expected {expected}")
    rows: list[list[float]] = logits.tolist()
    if not isfinite(sum(map(sum, rows))):  # any NaN or infinity makes the sum one
        raise BackendError("BAD_OUTPUT", "the backend answered with logits that are not finite")
    return rows
