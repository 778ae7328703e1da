"""Recipes by which models are trained, and what may stand in one."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from atelier.errors import ConfigurationError

# The keys of the tables in training/models/, known here without torch.
ARCHITECTURES = ("tutorial", "classic", "modern")
ACTIVATIONS = ("sigmoid", "tanh", "scaled_tanh", "relu", "gelu")
POOLINGS = ("avg", "max")
PaddingMode = Literal["zeros", "replicate"]
PADDING_MODES: tuple[str, ...] = get_args(PaddingMode)
SCHEDULES = ("constant", "steps", "cosine")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything but the seed that decides the weights: same recipe, seed and machine, same weights.

    What a recipe does not say is as the tutorial has it.
    """

    name: str
    """What `--recipe` calls it."""

    architecture: str
    """A network of training/models/: `tutorial`, `classic` or `modern`."""

    activation: str = "sigmoid"
    """`sigmoid`, `tanh`, `scaled_tanh`, `relu` or `gelu`."""

    pooling: str = "avg"
    """`avg` or `max`, over 2x2 pixels."""

    padding_mode: PaddingMode = "zeros"
    """What lies beyond the border: `zeros`, or `replicate`, the border's own pixels."""

    num_epochs: int
    """Passes over all training images."""

    batch_size: int
    """Images per step; the last batch of an epoch is what is left."""

    learning_rate: float
    """Step size of the optimizer, before the schedule."""

    momentum: float = 0.0
    """Nesterov's, of SGD; 0 is plain SGD."""

    weight_decay: float = 0.0
    """Share of kernels and matrices (not of biases and normalisations) taken away per step, times the step size."""

    schedule: str = "constant"
    """`constant`; `steps`, the falling ones of LeCun (1998); `cosine`, after `warmup`, down to almost 0.

    Any but `constant` spreads its step sizes over all epochs, so that the weights depend on how many there are.
    """

    warmup: float = 0.0
    """Fraction of the run in which the step size rises linearly, for `cosine`."""

    label_smoothing: float = 0.0
    """Probability spread over all classes in the label (Szegedy et al., 2016)."""

    flip: bool = False
    """Mirror half of the images, left to right."""

    max_shift: int = 0
    """Move each image by up to so many pixels, up or down and to a side; what comes in is background."""

    average_decay: float = 0.0
    """Per step, of the moving average of the weights, which is then what is saved; 0 averages nothing."""

    num_validation_images: int = 0
    """Training images put aside to follow the run by; the test images are then used once, at its end."""

    def __post_init__(self) -> None:
        self._check_choice("architecture", ARCHITECTURES)
        self._check_choice("activation", ACTIVATIONS)
        self._check_choice("pooling", POOLINGS)
        self._check_choice("padding_mode", PADDING_MODES)
        self._check("num_epochs", isinstance(self.num_epochs, int) and self.num_epochs >= 1, "a whole number >= 1")
        self._check("batch_size", isinstance(self.batch_size, int) and self.batch_size >= 1, "a whole number >= 1")
        self._check_choice("schedule", SCHEDULES)
        is_positive = _is_number(self.learning_rate, 0) and self.learning_rate > 0
        self._check("learning_rate", is_positive, "a finite number > 0")
        for field in ("momentum", "warmup", "label_smoothing", "average_decay"):
            self._check(field, _is_number(getattr(self, field), 0) and getattr(self, field) < 1, "at least 0, below 1")
        self._check("weight_decay", _is_number(self.weight_decay, 0), "a finite number >= 0")
        self._check("flip", isinstance(self.flip, bool), "true or false")
        for field, most in (("max_shift", 27), ("num_validation_images", 50_000)):
            value = getattr(self, field)
            self._check(field, isinstance(value, int) and 0 <= value <= most, f"a whole number from 0 to {most}")

    @property
    def memory(self) -> str:
        """Names the field, and its value, that makes steps remember more than the saved weights; "" if none does."""
        remembers = {
            "momentum": self.momentum > 0,
            "average_decay": self.average_decay > 0,
        }
        return next((f"{field} {getattr(self, field)}" for field, holds in remembers.items() if holds), "")

    @property
    def changes_images(self) -> bool:
        """Tells whether images are shown otherwise than they are."""
        return self.flip or self.max_shift > 0

    def _check_choice(self, field: str, choices: tuple[str, ...]) -> None:
        self._check(field, getattr(self, field) in choices, f"one of {', '.join(choices)}")

    def _check(self, field: str, holds: bool, wanted: str) -> None:
        if not holds:
            what = f"{field} of recipe {self.name!r} is {getattr(self, field)!r}"
            raise ConfigurationError("BAD_RECIPE", what, f"it must be {wanted}")


def _is_number(value: float, least: float) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= least


RECIPES = {
    # Dive into Deep Learning, section 7.6: `lr, num_epochs = 0.9, 10` and `batch_size = 256`.
    "tutorial": Recipe(name="tutorial", architecture="tutorial", num_epochs=10, batch_size=256, learning_rate=0.9),
    # LeCun et al. (1998): scaled tanh, average pooling, 20 passes with falling step sizes. The paper's steps are of one
    # image each, scaled by second derivatives, and its loss compares with drawings of digits: here they are of 32
    # images, plain, and the loss is the cross entropy.
    "classic": Recipe(
        name="classic",
        architecture="classic",
        activation="scaled_tanh",
        num_epochs=20,
        batch_size=32,
        learning_rate=0.05,
        schedule="steps",
    ),
    # Chosen by validation images; reports/modern-search.md reports what was tried, a teacher and AdamW too.
    "modern": Recipe(
        name="modern",
        architecture="modern",
        activation="gelu",
        pooling="max",
        num_epochs=24,
        batch_size=256,
        learning_rate=0.2,
        momentum=0.9,
        weight_decay=5e-4,
        schedule="cosine",
        warmup=0.2,
        label_smoothing=0.1,
        flip=True,
        max_shift=2,
        average_decay=0.998,
        num_validation_images=5000,
    ),
}
