"""Optimisation: the optimiser, the schedule of the step sizes, the average of the weights."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from training.recipes import Recipe

# LeCun (1998), section III.B: the step sizes of its 20 passes, as shares of the first.
STEPS_1998 = ((2, 1.0), (5, 0.4), (8, 0.2), (12, 0.1), (20, 0.02))  # passes done by then, share
AVERAGE_WARMUP = 10  # steps in which the average forgets faster: it begins with weights that are worth nothing


def optimizer_for(model: nn.Module, recipe: Recipe, *, is_captured: bool) -> torch.optim.Optimizer:
    """Makes the recipe's optimiser. Only kernels and matrices decay: biases and normalisations have one dimension.

    For steps that are captured as a CUDA graph the step size is a tensor on the device, which PyTorch's fused kernels
    read there; the others ask the host for it, or take a number, and a graph would keep the one that it was captured
    with. On every GPU they are fused: these alone leave out a step without asking the host.
    """
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups: list[dict[str, Any]] = [{"params": trained}]
    if recipe.weight_decay:
        groups = [
            {"params": [weight for weight in trained if weight.dim() > 1], "weight_decay": recipe.weight_decay},
            {"params": [weight for weight in trained if weight.dim() <= 1]},
        ]
    rate: float | Tensor = recipe.learning_rate
    for group in groups if is_captured else ():
        group["lr"] = torch.tensor(rate, device=trained[0].device)
    fused = True if is_captured or trained[0].is_cuda else None
    return torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=fused)


def learning_rate_share(recipe: Recipe, step: int, num_steps: int) -> float:
    """Returns the share of the recipe's step size, for step number `step` (from 0) of the whole run's `num_steps`."""
    done = step / num_steps
    if recipe.schedule == "constant":
        return 1.0
    if recipe.schedule == "steps":
        return next(share for passes, share in STEPS_1998 if done < passes / STEPS_1998[-1][0])
    if done < recipe.warmup:
        return (step + 1) / (recipe.warmup * num_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * (done - recipe.warmup) / (1 - recipe.warmup)))


def average_decay(recipe: Recipe, step: int) -> float:
    """Returns what the moving average keeps of itself in step number `step` (from 0)."""
    return min(recipe.average_decay, (1 + step) / (AVERAGE_WARMUP + step))
