"""From logits to ranked probabilities, for a whole batch at once."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.backends.base import Logits
from serving.errors import BackendError


class Ranking(NamedTuple):
    """What the model says about N images."""

    logits: Logits  # (N, 10) float32
    probabilities: NDArray[np.float32]  # (N, 10), softmax of the logits
    labels: NDArray[np.intp]  # (N, 10), most probable first

    def rows(self, start: int, stop: int) -> "Ranking":
        """The images `start` to `stop`, as views."""
        return Ranking(self.logits[start:stop], self.probabilities[start:stop], self.labels[start:stop])


def rank(logits: Logits) -> Ranking:
    """Softmax, shifted by the maximum so that it cannot overflow; equal logits rank in the order of their labels."""
    labels = np.argsort(-logits, axis=1, kind="stable")  # (N, 10)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))  # (N, 10), the largest is 1
    return Ranking(logits, exponentials / exponentials.sum(axis=1, keepdims=True), labels)


def check_logits(logits: Logits, num_images: int, num_classes: int = 10) -> None:
    """Raises BackendError unless there is one finite row per image: the argmax of NaN would be a confident answer."""
    if logits.shape != (num_images, num_classes):
        expected = (num_images, num_classes)
        raise BackendError("BAD_OUTPUT", f"the backend answered with shape {logits.shape}, expected {expected}")
    if not np.isfinite(logits).all():
        raise BackendError("BAD_OUTPUT", "the backend answered with logits that are not finite")


def join(rankings: list[Ranking]) -> Ranking:
    """The rankings of consecutive images as one."""
    logits, probabilities, labels = zip(*rankings, strict=True)
    return Ranking(np.concatenate(logits), np.concatenate(probabilities), np.concatenate(labels))
