"""Images as they might have been: mirrored, moved, partly covered. On batches of uint8, a whole batch at once."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from training.recipes import Recipe


def augment(images: Tensor, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(B, 1, H, W) uint8 -> the changed images, the same shape, and (B,) bool: which are mirrored.

    The random numbers are drawn on the CPU, whatever device the images are on: the same ones everywhere.
    """
    num_images, size, device = len(images), images.shape[-1], images.device
    is_flipped = torch.zeros(num_images, dtype=torch.bool)
    if recipe.flip:
        is_flipped = torch.rand(num_images, generator=generator) < 0.5
    shifts = torch.randint(0, 2 * recipe.max_shift + 1, (2, num_images, 1), generator=generator)  # down, to the right
    pixels = torch.arange(size)
    rows = pixels + shifts[0]  # (B, H), indices into the padded image
    columns = torch.where(is_flipped[:, None], size - 1 - pixels, pixels) + shifts[1]  # (B, W)
    padded = pad(images, [recipe.max_shift] * 4)[:, 0]  # (B, H + 2s, W + 2s)
    which = torch.arange(num_images, device=device)[:, None, None]
    moved = padded[which, rows.to(device)[:, :, None], columns.to(device)[:, None, :]][:, None]  # (B, 1, H, W)
    if recipe.cutout:
        moved = moved.masked_fill(_squares(num_images, size, recipe.cutout, generator).to(device), 0)
    return moved, is_flipped.to(device)


def _squares(num_images: int, size: int, side: int, generator: torch.Generator) -> Tensor:
    """(B, 1, size, size) bool: a square in each, its middle anywhere, so that it may hang over the border."""
    middles = torch.randint(0, size, (2, num_images, 1), generator=generator)
    distances = torch.arange(size) - middles + side // 2  # (2, B, size): 0 to side - 1 is inside
    inside = (distances >= 0) & (distances < side)  # (2, B, size)
    return (inside[0, :, :, None] & inside[1, :, None, :])[:, None]
