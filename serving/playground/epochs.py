"""Reads the weights that a version had after each epoch of its training, if they were kept: `epochs.npz`."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.playground.errors import PageError

CURVES = ("train_loss", "train_acc", "test_acc")


class Epochs:
    """Holds the epochs of one version; none of most."""

    def __init__(self, content: bytes | None) -> None:
        """`content` is that of `epochs.npz`, verified; it can execute no code."""
        self._arrays: dict[str, NDArray[Any]] = {}
        if content is not None:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                self._arrays = dict(archive)

    @property
    def numbers(self) -> list[int]:
        """The epochs that there are; 0 is what the training began with."""
        return [] if not self._arrays else [int(number) for number in self._arrays["epochs"]]

    @property
    def history(self) -> list[dict[str, Any]]:
        """The curves of the training; None where there is no figure."""
        rows = []
        for place, number in enumerate(self.numbers):
            figures = {name: float(self._arrays[name][place]) for name in CURVES}
            rows.append({"epoch": number} | {name: None if np.isnan(x) else x for name, x in figures.items()})
        return rows

    def weights(self, number: int, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Returns the weights after an epoch. Raises PageError NO_EPOCH."""
        if number not in self.numbers:
            there = f"there are {self.numbers[0]} to {self.numbers[-1]}" if self.numbers else "train with --keep-epochs"
            raise PageError(404, "NO_EPOCH", f"this version has no epoch {number}", there)
        place = self.numbers.index(number)
        return {name: self._arrays[name][place] for name in names}
