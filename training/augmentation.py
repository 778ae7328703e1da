"""Images as they might have been: mirrored and moved. On batches of uint8, a whole batch at once.

What happens to each image of an epoch is drawn before it begins, on the CPU, whatever device the images are on: the
same everywhere, and a step that is captured as a CUDA graph finds it in tensors.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from training.recipes import Recipe


def draw_changes(recipe: Recipe, seed: int, epoch: int, sizes: list[int]) -> Tensor:
    """Draws the changes of an epoch's N images, in batches of `sizes`, from (seed, epoch) alone: (3, N) int64.

    Row 0 is 1 for an image to be mirrored, else 0. Rows 1 and 2 are pixels down and to the right, from 0 to
    2 * max_shift; max_shift leaves it in place.
    """
    generator = torch.Generator().manual_seed(_generator_seed(seed, epoch))
    batches = []
    for size in sizes:
        changes = torch.zeros(3, size, dtype=torch.int64)
        if recipe.flip:
            changes[0] = torch.rand(size, generator=generator) < 0.5
        changes[1:].random_(0, 2 * recipe.max_shift + 1, generator=generator)
        batches.append(changes)
    return torch.cat(batches, dim=1)


def _generator_seed(seed: int, epoch: int) -> int:
    """Derives a seed from (seed, epoch) alone, and not the one of the epoch's order."""
    return int(np.random.SeedSequence((seed, epoch, 1)).generate_state(1)[0])


def augment(images: Tensor, recipe: Recipe, changes: Tensor) -> Tensor:
    """Changes images, (B, 1, H, W) uint8, as their (3, B) of `draw_changes` say; the same shape."""
    size, device = images.shape[-1], images.device
    pixels = torch.arange(size, device=device)
    is_flipped = changes[0].bool()  # (B,)
    down, right = changes[1:, :, None]  # (B, 1) each
    rows = pixels + down  # (B, H), indices into the padded image
    columns = torch.where(is_flipped[:, None], size - 1 - pixels, pixels) + right  # (B, W)
    padded = pad(images, [recipe.max_shift] * 4)[:, 0]  # (B, H + 2s, W + 2s)
    which = torch.arange(len(images), device=device)[:, None, None]
    return padded[which, rows[:, :, None], columns[:, None, :]][:, None]  # (B, 1, H, W)
