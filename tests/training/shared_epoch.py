"""Each of several processes trains an epoch with the others and one alone, and compares: what test_optimisation runs.

In float64, where rounding cannot be taken for an error, nor an error for rounding; the losses are kept in float32.
"""

import dataclasses

import torch
from torch import Tensor

from training.distributed import joined
from training.epoch import TrainResult, image_order, train_epoch
from training.epoch_steps import Split, Steps
from training.models import initialise, model_for
from training.recipes import RECIPES, Recipe

NUM_IMAGES, BATCH_SIZE = 84, 33  # so that the shares of two processes differ, and the last batch is smaller

CLASSIC = dataclasses.replace(RECIPES["classic"], num_epochs=1, batch_size=BATCH_SIZE)
MODERN = dataclasses.replace(
    RECIPES["modern"],
    num_epochs=1,
    batch_size=BATCH_SIZE,
    average_decay=0.9,
)


def trained(recipe: Recipe) -> tuple[TrainResult, dict[str, Tensor]]:
    """An epoch on noise; its result, and every weight, statistic and momentum after it."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (NUM_IMAGES, 1, 28, 28), generator=generator, dtype=torch.uint8)
    split = Split(images=images, labels=torch.randint(0, 10, (NUM_IMAGES,), generator=generator))
    model = model_for(recipe)
    initialise(model, seed=0)
    steps = Steps(model.double(), recipe, split)
    result = train_epoch(steps, image_order(0, 1, NUM_IMAGES), 0, 1, title="", before_step=lambda: None)
    averaged = {f"averaged.{name}": value for name, value in steps.averaged.state_dict().items()}
    return result, steps.state() | averaged


def main() -> None:
    """Raises AssertionError where the processes together end elsewhere than one alone."""
    results_alone = [trained(recipe) for recipe in (CLASSIC, MODERN)]
    with joined(torch.device("cpu")):
        for recipe, (alone, theirs) in zip((CLASSIC, MODERN), results_alone, strict=True):
            together, ours = trained(recipe)
            assert together.acc == alone.acc
            torch.testing.assert_close(together.step_losses, alone.step_losses, rtol=1e-6, atol=0)
            assert ours.keys() == theirs.keys()
            for name, value in ours.items():
                assert torch.allclose(value, theirs[name], rtol=1e-9, atol=1e-9), f"{recipe.name}: {name}"


if __name__ == "__main__":
    main()
