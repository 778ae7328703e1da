"""Training beyond the tutorial's plain steps: optimiser, schedule, augmentation, soft labels, averaged weights.

What these remember between two steps (momentum, the average) is saved beside the weights, so that a killed run goes on
to the same weights here too.
"""

import copy
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax
from tqdm import tqdm

from training.augmentation import augment
from training.epoch import Split, TrainResult
from training.model import LeNet
from training.peers import ALONE, Peers
from training.recipes import Recipe
from training.shared_norm import share_statistics

# LeCun (1998), section III.B: the step sizes of its 20 passes, as shares of the first.
STEPS_1998 = ((2, 1.0), (5, 0.4), (8, 0.2), (12, 0.1), (20, 0.02))  # passes done by then, share
AVERAGE_WARMUP = 10  # steps in which the average forgets faster: it begins with weights that are worth nothing


class Optimisation:
    """What turns a model into a better one, by its recipe; `averaged` is the model to evaluate and to save."""

    def __init__(
        self,
        model: LeNet,
        recipe: Recipe,
        teacher_logits: Tensor | None = None,
        *,
        precision: str = "fp32",
        peers: Peers = ALONE,
    ) -> None:
        """`teacher_logits` (2, N, 10): of the training images as they are, and mirrored.

        With bf16 the forward pass is in it where torch finds that safe; weights, losses and statistics are float32.
        """
        # On a CPU convolutions with few channels are up to twice as fast in this order of memory.
        self.model = model.to(memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(model) if recipe.average_decay else model
        self.recipe, self.teacher_logits = recipe, teacher_logits
        self.precision, self.peers = precision, peers
        self.optimizer = _optimizer(model, recipe)
        if peers.size > 1:
            share_statistics(model, peers)
        self._forward = peers.shared(model)

    def train_epoch(
        self, split: Split, order: Tensor, seed: int, epoch: int, *, title: str, before_step: Callable[[], None]
    ) -> TrainResult:
        """As `training.epoch.train_epoch`; `epoch` counts from 1. The loss is the one that is minimised."""
        self.model.train()
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(_augmentation_seed(seed, epoch))
        batches = torch.split(order, self.recipe.batch_size)
        num_steps, first_step = self.recipe.num_epochs * len(batches), (epoch - 1) * len(batches)
        order = order.to(split.images.device)  # (N,)
        batches = torch.split(order, self.recipe.batch_size)  # S times (B,)
        losses = torch.zeros(len(batches), device=order.device)  # (S,)
        num_correct = torch.zeros((), device=order.device, dtype=torch.int64)
        for step, indices in enumerate(tqdm(batches, desc=title, unit="step", leave=False, disable=None)):
            before_step()
            self._set_learning_rate(first_step + step, num_steps)
            loss, num_right = self._step(split, indices, generator)
            self._average(first_step + step)
            losses[step] = loss
            num_correct += num_right
        self.peers.add_up(losses)
        self.peers.add_up(num_correct)
        step_losses = losses.tolist()  # waits for the device
        loss_sum = sum(loss * len(indices) for loss, indices in zip(step_losses, batches, strict=True))
        return TrainResult(
            step_losses=step_losses,
            loss=loss_sum / len(order),
            acc=int(num_correct) / len(order),
            seconds=time.perf_counter() - started,
        )

    def _step(self, split: Split, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """This process's share of the batch's loss () and of how many of its images were right ()."""
        # Of the whole batch, in every process: so all draw the same random numbers, and one alone draws no others.
        images, is_flipped = augment(split.images[indices], self.recipe, generator)  # (B, 1, 28, 28), (B,)
        size, share = len(indices), self.peers.share
        images, is_flipped, indices = images[share], is_flipped[share], indices[share]  # from here on B of this process
        labels = split.labels[indices]  # (B,)
        self.optimizer.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self._forward(images.to(memory_format=torch.channels_last))  # (B, 10)
        logits = logits.float()
        loss = cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing, reduction="sum") / size
        if self.teacher_logits is not None:
            target = self.teacher_logits[is_flipped.long(), indices]  # (B, 10)
            weight, temperature = self.recipe.distillation_weight, self.recipe.distillation_temperature
            loss = (1 - weight) * loss + weight * distillation_loss(logits, target, temperature, size)
        (loss * self.peers.size).backward()  # type: ignore[no-untyped-call] # the peers' gradients are averaged
        self.optimizer.step()
        return loss.detach(), (logits.argmax(dim=1) == labels).sum()

    def _set_learning_rate(self, step: int, num_steps: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * learning_rate_share(self.recipe, step, num_steps)

    @torch.no_grad()
    def _average(self, step: int) -> None:
        if self.averaged is self.model:
            return
        decay = min(self.recipe.average_decay, (1 + step) / (AVERAGE_WARMUP + step))
        for mean, value in zip(self.averaged.state_dict().values(), self.model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)  # a count of batches

    def state(self) -> dict[str, Tensor]:
        """Everything, beside the weights of `averaged`, that the next epoch depends on."""
        weights = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        state = self.optimizer.state_dict()["state"]
        remembered = {
            f"optimizer.{index}.{key}": value for index, entry in state.items() for key, value in entry.items()
        }
        return weights | {name: value for name, value in remembered.items() if value is not None}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes on where `state` was taken. Raises KeyError, RuntimeError or ValueError where it is of another run."""
        weights = {name[6:]: tensor for name, tensor in state.items() if name.startswith("model.")}
        self.model.load_state_dict(weights)
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                entries.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": entries})


@torch.inference_mode()
def all_logits(model: nn.Module, images: Tensor, batch_size: int = 1000) -> Tensor:
    """(N, 1, 28, 28) uint8 -> (N, 10), on the device of the images."""
    return torch.cat([model.eval()(batch) for batch in torch.split(images, batch_size)])


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float, num_images: int) -> Tensor:
    """(B, 10), (B, 10) -> (): how far the answers are apart, in the scale of a cross entropy (Hinton et al., 2015).

    The sum over these B, divided by `num_images`: those of the batch that they are a part of.
    """
    ours, theirs = log_softmax(logits / temperature, dim=1), softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * kl_div(ours, theirs, reduction="sum") / num_images


def learning_rate_share(recipe: Recipe, step: int, num_steps: int) -> float:
    """Of the recipe's step size, for step number `step` (from 0) of the whole run's `num_steps`."""
    done = step / num_steps
    if recipe.schedule == "constant":
        return 1.0
    if recipe.schedule == "steps":
        return next(share for passes, share in STEPS_1998 if done < passes / STEPS_1998[-1][0])
    if done < recipe.warmup:
        return (step + 1) / (recipe.warmup * num_steps + 1)
    return 0.5 * (1 + math.cos(math.pi * (done - recipe.warmup) / (1 - recipe.warmup)))


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Only kernels and matrices decay: biases and normalisations have one dimension."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in trained if weight.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [weight for weight in trained if weight.dim() <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)
    momentum = recipe.momentum
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=momentum, nesterov=momentum > 0)


def _augmentation_seed(seed: int, epoch: int) -> int:
    """From (seed, epoch) alone, and not the one of the epoch's order."""
    return int(np.random.SeedSequence((seed, epoch, 1)).generate_state(1)[0])
