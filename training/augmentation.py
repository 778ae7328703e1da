"""Images as they might have been: mirrored and moved. On batches of uint8, a whole batch at once.

What happens to each image of an epoch is drawn before it begins, on the CPU, whatever device the images are on: the
same everywhere, and a step that is captured as a CUDA graph finds it in tensors.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from training.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Changes to each of N images, in the order in which they are shown."""

    is_flipped: Tensor  # (N,) bool
    shifts: Tensor  # (2, N) int64: pixels down and to the right, from 0 to 2 * max_shift; max_shift leaves it in place

    @classmethod
    def none(cls, num_images: int, device: torch.device) -> "Changes":
        """Makes zeros."""
        shifts = torch.zeros(2, num_images, dtype=torch.int64, device=device)
        return cls(is_flipped=shifts[0].bool(), shifts=shifts)

    def at(self, places: Tensor) -> "Changes":
        """Picks those of the images at (B,) places."""
        return Changes(is_flipped=self.is_flipped[places], shifts=self.shifts[:, places])

    def copy_(self, other: "Changes") -> None:
        """Takes over the other's, in the tensors that there are."""
        self.is_flipped.copy_(other.is_flipped)
        self.shifts.copy_(other.shifts)


def draw_changes(recipe: Recipe, seed: int, epoch: int, sizes: list[int]) -> Changes:
    """Draws the changes of an epoch's images, in batches of `sizes`, from (seed, epoch) alone."""
    generator = torch.Generator().manual_seed(_generator_seed(seed, epoch))
    batches = []
    for size in sizes:
        changes = Changes.none(size, torch.device("cpu"))
        if recipe.flip:
            changes.is_flipped.copy_(torch.rand(size, generator=generator) < 0.5)
        changes.shifts.random_(0, 2 * recipe.max_shift + 1, generator=generator)
        batches.append(changes)
    return Changes(
        is_flipped=torch.cat([batch.is_flipped for batch in batches]),
        shifts=torch.cat([batch.shifts for batch in batches], dim=1),
    )


def _generator_seed(seed: int, epoch: int) -> int:
    """Derives a seed from (seed, epoch) alone, and not the one of the epoch's order."""
    return int(np.random.SeedSequence((seed, epoch, 1)).generate_state(1)[0])


def augment(images: Tensor, recipe: Recipe, changes: Changes) -> Tensor:
    """Changes images, (B, 1, H, W) uint8; the same shape."""
    size, device = images.shape[-1], images.device
    pixels = torch.arange(size, device=device)
    down, right = changes.shifts[:, :, None]  # (B, 1) each
    rows = pixels + down  # (B, H), indices into the padded image
    columns = torch.where(changes.is_flipped[:, None], size - 1 - pixels, pixels) + right  # (B, W)
    padded = pad(images, [recipe.max_shift] * 4)[:, 0]  # (B, H + 2s, W + 2s)
    which = torch.arange(len(images), device=device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]][:, None]  # (B, 1, H, W)
