"""How each model is trained: the recipes, and what may stand in one."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from serving.errors import ConfigurationError

# Keys of the tables of the same names in training/model.py, known here without torch.
ARCHITECTURES = ("tutorial", "classic")
ACTIVATIONS = ("sigmoid", "tanh", "scaled_tanh", "relu", "gelu")
POOLINGS = ("avg", "max")
PaddingMode = Literal["zeros", "replicate"]
PADDING_MODES: tuple[str, ...] = get_args(PaddingMode)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything but the seed that decides the weights: same recipe, seed and machine, same weights."""

    name: str
    """What `--recipe` calls it."""

    architecture: str
    """A key of `training.model.ARCHITECTURES`."""

    activation: str = "sigmoid"
    """A key of `training.model.ACTIVATIONS`."""

    pooling: str = "avg"
    """`avg` or `max`, over 2x2 pixels."""

    padding_mode: PaddingMode = "zeros"
    """What lies beyond the border: `zeros`, or `replicate`, the border's own pixels."""

    num_epochs: int
    """Passes over all training images."""

    batch_size: int
    """Images per step; the last batch of an epoch is what is left."""

    learning_rate: float
    """Step size of plain SGD (no momentum, so the weights are all there is to resume from)."""

    def __post_init__(self) -> None:
        self._check_choice("architecture", ARCHITECTURES)
        self._check_choice("activation", ACTIVATIONS)
        self._check_choice("pooling", POOLINGS)
        self._check_choice("padding_mode", PADDING_MODES)
        self._check("num_epochs", isinstance(self.num_epochs, int) and self.num_epochs >= 1, "a whole number >= 1")
        self._check("batch_size", isinstance(self.batch_size, int) and self.batch_size >= 1, "a whole number >= 1")
        rate = self.learning_rate
        is_positive = isinstance(rate, int | float) and math.isfinite(rate) and rate > 0
        self._check("learning_rate", is_positive, "a finite number > 0")

    def _check_choice(self, field: str, choices: tuple[str, ...]) -> None:
        self._check(field, getattr(self, field) in choices, f"one of {', '.join(choices)}")

    def _check(self, field: str, holds: bool, wanted: str) -> None:
        if not holds:
            what = f"{field} of recipe {self.name!r} is {getattr(self, field)!r}"
            raise ConfigurationError("BAD_RECIPE", what, f"it must be {wanted}")


RECIPES = {
    # Dive into Deep Learning, section 7.6: `lr, num_epochs = 0.9, 10` and `batch_size = 256`.
    "tutorial": Recipe(name="tutorial", architecture="tutorial", num_epochs=10, batch_size=256, learning_rate=0.9),
}
