"""How each model is trained. One recipe so far: the tutorial's own."""

import math
from dataclasses import dataclass

from serving.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything but the seed that decides the weights: same recipe, seed and machine, same weights."""

    name: str
    """What `--recipe` calls it."""

    architecture: str
    """A key of `training.model.ARCHITECTURES`."""

    num_epochs: int
    """Passes over all training images."""

    batch_size: int
    """Images per step; the last batch of an epoch is what is left."""

    learning_rate: float
    """Step size of plain SGD (no momentum, so the weights are all there is to resume from)."""

    def __post_init__(self) -> None:
        self._check("num_epochs", isinstance(self.num_epochs, int) and self.num_epochs >= 1, "a whole number >= 1")
        self._check("batch_size", isinstance(self.batch_size, int) and self.batch_size >= 1, "a whole number >= 1")
        rate = self.learning_rate
        is_positive = isinstance(rate, int | float) and math.isfinite(rate) and rate > 0
        self._check("learning_rate", is_positive, "a finite number > 0")

    def _check(self, field: str, holds: bool, wanted: str) -> None:
        if not holds:
            what = f"{field} of recipe {self.name!r} is {getattr(self, field)!r}"
            raise ConfigurationError("BAD_RECIPE", what, f"it must be {wanted}")


RECIPES = {
    # Dive into Deep Learning, section 7.6: `lr, num_epochs = 0.9, 10` and `batch_size = 256`.
    "tutorial": Recipe(name="tutorial", architecture="tutorial", num_epochs=10, batch_size=256, learning_rate=0.9),
}
