"""One pass over the training images, and one test: all that happens to images and weights.

The images of a split live on the device as one uint8 tensor, and a batch is gathered there by its indices. Within an
epoch nothing waits for the device: what is counted is counted in device tensors and read once, at the end.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Images and labels on one device."""

    images: Tensor  # (N, 1, 28, 28) uint8
    labels: Tensor  # (N,) int64


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """As the tutorial counts: every image with the weights of the step that used it."""

    step_losses: list[float]  # mean loss of each step's batch
    loss: float  # mean over all images
    acc: float  # fraction of all images
    seconds: float  # of the steps alone


def split_on(device: torch.device, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> Split:
    """Copies (N, 1, 28, 28) images and (N,) labels to `device`."""
    return Split(
        images=torch.tensor(images, device=device),  # (N, 1, 28, 28) uint8
        labels=torch.tensor(labels, device=device, dtype=torch.int64),  # (N,)
    )


def image_order(seed: int, epoch: int, num_images: int) -> Tensor:
    """(num_images,) int64: the epoch's permutation, from (seed, epoch) alone: resuming needs no generator state."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(num_images))


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    split: Split,
    order: Tensor,
    batch_size: int,
    *,
    title: str,
    before_step: Callable[[], None],
) -> TrainResult:
    """One step per `batch_size` images in the given order, (N,) int64. `before_step` may raise to stop it."""
    model.train()
    started = time.perf_counter()
    order = order.to(split.images.device)  # (N,)
    batches = torch.split(order, batch_size)  # S times (B,); the last may be smaller
    losses = torch.zeros(len(batches), device=order.device)  # (S,) for S steps
    num_correct = torch.zeros((), device=order.device, dtype=torch.int64)
    for step, indices in enumerate(tqdm(batches, desc=title, unit="step", leave=False, disable=None)):
        before_step()
        images, labels = split.images[indices], split.labels[indices]  # (B, 1, 28, 28), (B,)
        optimizer.zero_grad()
        logits = model(images)  # (B, 10)
        loss = cross_entropy(logits, labels)  # () mean over the batch
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it untyped
        optimizer.step()
        losses[step] = loss.detach()
        num_correct += (logits.argmax(dim=1) == labels).sum()
    step_losses = losses.tolist()  # waits for the device
    seconds = time.perf_counter() - started
    loss_sum = sum(loss * len(indices) for loss, indices in zip(step_losses, batches, strict=True))
    return TrainResult(
        step_losses=step_losses, loss=loss_sum / len(order), acc=int(num_correct) / len(order), seconds=seconds
    )


@torch.inference_mode()
def accuracy(model: nn.Module, split: Split, batch_size: int) -> float:
    """The fraction of all the split's images whose largest logit is the label's."""
    model.eval()
    num_correct = torch.zeros((), device=split.labels.device, dtype=torch.int64)
    batches = zip(torch.split(split.images, batch_size), torch.split(split.labels, batch_size), strict=True)
    for images, labels in batches:  # (B, 1, 28, 28), (B,)
        num_correct += (model(images).argmax(dim=1) == labels).sum()  # (B, 10) -> (B,) -> ()
    return int(num_correct) / len(split.labels)
