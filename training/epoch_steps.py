"""One training step after the other: gather, change, forward, loss, backward, update, average; on CUDA as one graph.

Everything that a step reads or writes lies in tensors that stay where they are: the epoch's order, its random changes,
the number of the step, the step size, the losses. So on a GPU the whole step is captured once (per batch size) as a
CUDA graph and then replayed. On the CPU the very same function runs as it is.

What the steps remember between two epochs (momentum, the average) is saved beside the weights, so that a killed run
goes on to the same weights.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from atelier.errors import ConfigurationError
from training import distributed
from training.augmentation import augment, draw_changes
from training.cuda_graph import captured, cuda_graph_of
from training.models import LeNet
from training.models.in_blocks import fastest_form
from training.optimisation import average_decay, learning_rate_share, optimizer_for
from training.recipes import Recipe

CHOICE_SEED = 2026  # of the images put aside: the same ones for every recipe and seed


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """A part of the data set."""

    images: Tensor  # (N, 1, 28, 28) uint8
    labels: Tensor  # (N,) int64


def split_on(device: torch.device, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> Split:
    """Copies (N, 1, 28, 28) images and (N,) labels to `device`."""
    return Split(
        images=torch.tensor(images, device=device),  # (N, 1, 28, 28) uint8
        labels=torch.tensor(labels, device=device, dtype=torch.int64),  # (N,)
    )


def put_aside(split: Split, num_images: int) -> tuple[Split, Split | None]:
    """Returns what is left to train on, and `num_images` of the images, taken at random; None for 0 images.

    Raises ConfigurationError BAD_RECIPE if fewer than one would be left.
    """
    if num_images == 0:
        return split, None
    if num_images >= len(split.images):
        what = f"num_validation_images is {num_images}, of {len(split.images)} training images"
        raise ConfigurationError("BAD_RECIPE", what, "leave some to train on: --set num_validation_images")
    order = torch.from_numpy(np.random.default_rng(CHOICE_SEED).permutation(len(split.images)))
    order = order.to(split.images.device)  # (N,)
    chosen, rest = order[:num_images], order[num_images:]
    return (
        Split(images=split.images[rest], labels=split.labels[rest]),
        Split(images=split.images[chosen], labels=split.labels[chosen]),
    )


class Steps:
    """The steps of a run, by its recipe; `averaged` is the model to evaluate and to save.

    With `precision` bf16 the forward pass is in it where torch finds that safe; weights, losses and statistics are
    float32. Once a loss or a gradient is not finite, the weights stay as they are: see `results`.
    """

    def __init__(self, model: LeNet, recipe: Recipe, split: Split, *, precision: str = "fp32") -> None:
        device, num_images = split.images.device, len(split.images)
        self.model, self.recipe, self.split, self.precision = model, recipe, split, precision
        self.sizes = [len(batch) for batch in torch.split(torch.empty(num_images), recipe.batch_size)]  # S of them
        self.is_captured = device.type == "cuda" and distributed.size() == 1
        self.graph_of = cuda_graph_of
        self._forward = fastest_form(model, device, precision)
        self.averaged = copy.deepcopy(model) if recipe.average_decay else model
        self.optimizer = optimizer_for(model, recipe, is_captured=self.is_captured)
        distributed.share_statistics(model)
        # (S, B): which images each step is on; a row for each, for one look-up instead of three operators.
        self._order = torch.zeros(len(self.sizes), max(self.sizes), dtype=torch.int64, device=device)
        self._changes = torch.zeros(3, num_images, dtype=torch.int64, device=device)  # see draw_changes
        self._places = torch.arange(max(self.sizes), device=device)  # (B,)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)  # (1,): number of the epoch's next step
        self._numbers = torch.arange(len(self.sizes), device=device)  # (S,)
        self._losses = torch.zeros(len(self.sizes), device=device)  # (S,)
        self._num_correct = torch.zeros((), dtype=torch.int64, device=device)
        self._not_finite = torch.zeros((), device=device)  # (): 0; NaN once a loss or a gradient was not finite
        self._is_stopped = torch.zeros((), device=device)  # (): 1 from then on
        weight = next(model.parameters())
        self._nearer = torch.zeros((), dtype=weight.dtype, device=device)  # (): how far the average goes to the weights
        self._num_done, self._rate = 0, recipe.learning_rate  # steps of the run, and the size of the last one
        self._replays: dict[int, Callable[[], None]] = {}  # by the number of images

    # --- An epoch ----------------------------------------------------------------------------------------------------

    def begin(self, order: Tensor, seed: int, epoch: int) -> None:
        """Begins an epoch, counting from 1, in this order, (N,) int64; its chances depend on (seed, epoch) alone."""
        self._order.view(-1)[: len(order)].copy_(order)
        if self.recipe.changes_images:
            self._changes.copy_(draw_changes(self.recipe, seed, epoch, self.sizes))
        self._step.zero_()
        self._losses.zero_()
        self._num_correct.zero_()
        self._not_finite.zero_()
        self._num_done = (epoch - 1) * len(self.sizes)

    def take(self, size: int) -> None:
        """Takes the next step, on the next `size` images; on a GPU it is only launched."""
        self._set_pace()
        self._num_done += 1
        if not self.is_captured:
            self._run(size)
            return
        if size not in self._replays:
            self._replays[size] = captured(partial(self._run, size), self._step, self._changing, self.graph_of)
        self._replays[size]()

    def results(self) -> tuple[list[float], int]:
        """Returns each step's loss and how many images were right; waits for the device, and for other processes.

        The loss is NaN from the first step on that was not made, for its loss or its gradient was not finite.
        """
        distributed.add_up(self._losses)
        distributed.add_up(self._num_correct)
        return self._losses.tolist(), int(self._num_correct)

    def _set_pace(self) -> None:
        """Sets the next step's size, and how far the average goes; in tensors, if a graph is to read them."""
        num_steps = self.recipe.num_epochs * len(self.sizes)
        rate = self.recipe.learning_rate * learning_rate_share(self.recipe, self._num_done, num_steps)
        if rate != self._rate:
            self._rate = rate
            for group in self.optimizer.param_groups:
                if torch.is_tensor(group["lr"]):
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
        if self.averaged is not self.model:
            self._nearer.fill_(1 - average_decay(self.recipe, self._num_done))

    # --- A step ------------------------------------------------------------------------------------------------------

    def _run(self, size: int) -> None:
        """Makes a step, all of it on the device. B of its `size` images are this process's."""
        images, labels = self._batch(size)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=False):
            logits = self._forward(images)  # (B, 10)
        logits = logits.to(self._nearer.dtype)  # of the weights
        loss = self._loss(logits, labels, size)  # () this process's share of the batch's mean
        loss.backward()  # type: ignore[no-untyped-call]
        distributed.add_up_gradients(self.model)
        self._look_for_divergence(loss.detach())
        self._change_weights()
        self._average()
        # Not by index: PyTorch's deterministic way to do that sorts, which is many launches for one number.
        torch.where(self._numbers == self._step, loss.detach() + self._not_finite, self._losses, out=self._losses)
        self._num_correct += (logits.argmax(dim=1) == labels).sum()
        self._step += 1

    def _batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Returns images (B, 1, 28, 28) as they are shown, and labels (B,)."""
        share = distributed.share()
        indices = self._order[self._step][0, :size][share]  # (B,)
        images, labels = self.split.images[indices], self.split.labels[indices]
        if not self.recipe.changes_images:
            return images, labels
        places = self._step * self.recipe.batch_size + self._places[:size]  # (size,) in the epoch's order
        return augment(images, self.recipe, self._changes[:, places[share]]), labels

    def _loss(self, logits: Tensor, labels: Tensor, size: int) -> Tensor:
        smoothing = self.recipe.label_smoothing
        if len(labels) == size:
            return cross_entropy(logits, labels, label_smoothing=smoothing)
        return cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum") / size

    def _look_for_divergence(self, loss: Tensor) -> None:
        """Notes on the device whether this loss, (), or a gradient is not finite. Few launches: a step has not many."""
        gradients = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
        largest = torch.nn.utils.get_total_norm(gradients, norm_type=math.inf)  # (); NaN if one is
        nothing = (largest + loss) * 0  # (); NaN if one of them is not finite
        distributed.add_up(nothing)
        self._not_finite += nothing
        torch.ne(self._not_finite, 0, out=self._is_stopped)

    def _change_weights(self) -> None:
        """Makes the optimiser's step unless the run has diverged; then weights and momentum stay as they are."""
        if self.optimizer.defaults["fused"]:  # its kernel reads the number on the device, as for torch's GradScaler
            self.optimizer.found_inf = self._is_stopped  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not self._is_stopped:
            self.optimizer.step()
        self.optimizer.zero_grad()  # here and not before: in a capture, gradients are then all the graph's own

    @torch.no_grad()
    def _average(self) -> None:
        if self.averaged is self.model:
            return
        for mean, value in zip(self.averaged.state_dict().values(), self.model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, self._nearer)
            else:
                mean.copy_(value)  # a count of batches

    # --- What is kept ------------------------------------------------------------------------------------------------

    def _changing(self) -> list[Tensor]:
        """Lists all that a step changes."""
        remembered = [value for state in self.optimizer.state.values() for value in state.values()]
        averages = self.averaged.state_dict(keep_vars=True).values() if self.averaged is not self.model else ()
        counted = (self._step, self._losses, self._num_correct, self._not_finite)
        weights = self.model.state_dict(keep_vars=True).values()
        return [*weights, *averages, *(value for value in remembered if torch.is_tensor(value)), *counted]

    def state(self) -> dict[str, Tensor]:
        """Returns all, beside the weights of `averaged`, that the next epoch depends on."""
        weights = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        state = self.optimizer.state_dict()["state"]
        remembered = {
            f"optimizer.{index}.{key}": value for index, entry in state.items() for key, value in entry.items()
        }
        return weights | {name: value for name, value in remembered.items() if value is not None}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes on where `state` was taken. Raises KeyError, RuntimeError or ValueError if it is of another run."""
        weights = {name[6:]: tensor for name, tensor in state.items() if name.startswith("model.")}
        self.model.load_state_dict(weights)
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                entries.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": entries})
        self._replays.clear()  # they have the tensors from before
