"""The networks, by the names that recipes have for them: images go in as stored, logits come out."""

from collections.abc import Callable

import torch

from training.models.classic import ClassicLeNet5
from training.models.lenet import LeNet, LeNet5, WeightedLayer
from training.models.modern import ModernLeNet5
from training.recipes import PaddingMode, Recipe

__all__ = ["MODELS", "ClassicLeNet5", "LeNet", "LeNet5", "ModernLeNet5", "initialise", "model_for"]

MODELS: dict[str, Callable[[str, str, PaddingMode], LeNet]] = {
    "tutorial": LeNet5,
    "classic": ClassicLeNet5,
    "modern": ModernLeNet5,
}


def model_for(recipe: Recipe) -> LeNet:
    """Returns the recipe's model; its weights are yet to be initialised."""
    return MODELS[recipe.architecture](recipe.activation, recipe.pooling, recipe.padding_mode)


def initialise(model: LeNet, seed: int) -> None:
    """Sets the architecture's own initial weights, from `seed` alone."""
    torch.manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, WeightedLayer):
            model.initialise_layer(layer)
