"""One epoch: a pass over the training images, and what it came to.

The images of a split live on the device as one uint8 tensor, and a batch is gathered there by its indices. Within an
epoch nothing waits for the device: what is counted is counted in device tensors and read once, at the end.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from training.divergence import check_steps
from training.epoch_steps import Split, Steps
from training.run_record import EpochMetrics, RunRecord


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Results of an epoch as the tutorial counts: every image with the weights of the step that used it."""

    step_losses: list[float]  # mean loss of each step's batch
    loss: float  # mean over all images
    acc: float  # fraction of all images
    seconds: float  # of the steps alone


def run_epoch(
    record: RunRecord, steps: Steps, validation: Split | None, test: Split, before_step: Callable[[], None]
) -> tuple[EpochMetrics, list[float]]:
    """Trains the run's next epoch and tests it; returns its metrics, and the loss of each of its steps.

    Raises BadDataError DIVERGED if a loss or a weight is no number any more, and what `before_step` raises.
    """
    recipe, epoch, started = record.recipe, record.completed_epochs + 1, time.perf_counter()
    title, order = title_of_next(record), image_order(record.seed, epoch, record.num_train_images)  # (N,)
    result = train_epoch(steps, order, record.seed, epoch, title=title, before_step=before_step)
    model = steps.averaged
    check_steps(result.step_losses, model, title, recipe.learning_rate)
    is_tested = validation is None or epoch == recipe.num_epochs
    metrics = EpochMetrics(
        epoch=epoch,
        train_loss=result.loss,
        train_acc=result.acc,
        test_acc=accuracy(model, test, recipe.batch_size) if is_tested else None,
        val_acc=accuracy(model, validation, recipe.batch_size) if validation else None,
        step_seconds=result.seconds,
        seconds=time.perf_counter() - started,
    )
    return metrics, result.step_losses


def title_of_next(record: RunRecord) -> str:
    """Names the epoch to come: `seed 0, epoch 3/10`."""
    return f"seed {record.seed}, epoch {record.completed_epochs + 1}/{record.recipe.num_epochs}"


def image_order(seed: int, epoch: int, num_images: int) -> Tensor:
    """Permutes (num_images,) int64 from (seed, epoch) alone: resuming needs no generator state."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(num_images))


def train_epoch(
    steps: Steps, order: Tensor, seed: int, epoch: int, *, title: str, before_step: Callable[[], None]
) -> TrainResult:
    """Makes the steps of epoch number `epoch`, from 1, over the images in the given order, (N,) int64.

    `before_step` may raise to stop it. The loss is the one that is minimised.
    """
    steps.model.train()
    started = time.perf_counter()
    steps.begin(order, seed, epoch)
    for size in tqdm(steps.sizes, desc=title, unit="step", leave=False, disable=None):
        before_step()
        steps.take(size)
    step_losses, num_correct = steps.results()  # waits for the device
    seconds = time.perf_counter() - started
    loss_sum = sum(loss * size for loss, size in zip(step_losses, steps.sizes, strict=True))
    return TrainResult(
        step_losses=step_losses, loss=loss_sum / len(order), acc=num_correct / len(order), seconds=seconds
    )


@torch.inference_mode()
def accuracy(model: nn.Module, split: Split, batch_size: int) -> float:
    """Returns the fraction of all the split's images whose largest logit is the label's."""
    if split.images.is_cuda:
        # A GPU is done with all of them before the host has launched forty batches.
        batch_size = max(batch_size, 10_000)
    found = all_logits(model, split.images, batch_size).argmax(dim=1)  # (N, 10) -> (N,)
    return int((found == split.labels).sum()) / len(split.labels)


@torch.inference_mode()
def all_logits(model: nn.Module, images: Tensor, batch_size: int = 1000) -> Tensor:
    """Maps (N, 1, 28, 28) uint8 to (N, 10), on the device of the images."""
    return torch.cat([model.eval()(batch) for batch in torch.split(images, batch_size)])
