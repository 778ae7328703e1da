"""Photographs of garments, simulated: images of the data set laid on lit, noisy tables, off their centre."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from serving.pictures.reading import Box
from training.dataset import FashionMNIST

HEIGHT, WIDTH = 240, 320
NOISE = 4.0  # standard deviation, of 255
SEED = 3
FAINT = 8  # of 255: darker pixels of the data set are background

Pixels = NDArray[np.float64]


@dataclass(frozen=True)
class Photograph:
    """What a camera would have seen, and where the garment lies in it."""

    pixels: NDArray[np.uint8]  # (240, 320)
    box: Box


@dataclass(frozen=True)
class Spot:
    """The square in which a garment lies."""

    top: int
    left: int
    size: int

    @property
    def square(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.size), slice(self.left, self.left + self.size)


def sample(data: FashionMNIST, count: int = 600) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Chooses test images, (N, 28, 28), and their labels (N,)."""
    chosen = np.random.default_rng(SEED).choice(len(data.test_images), count, replace=False)
    return data.test_images[chosen, 0], data.test_labels[chosen]


def photographs(images: NDArray[np.uint8], *, is_light: bool, trouble: str = "") -> list[Photograph]:
    """Takes one of each image, on a light table or on a dark one; the same ones every time."""
    rng = np.random.default_rng(SEED)
    return [_photograph(image, images[index - 1], rng, is_light, trouble) for index, image in enumerate(images)]


def _photograph(
    image: NDArray[np.uint8], other: NDArray[np.uint8], rng: np.random.Generator, is_light: bool, trouble: str
) -> Photograph:
    size = int(rng.uniform(0.5, 0.9) * HEIGHT)
    spot = Spot(int(rng.uniform(0, HEIGHT - size)), int(rng.uniform(0, WIDTH - size)), size)
    light = _light(rng)
    scene = light if is_light else 255 - light
    if trouble == "second garment":
        scene = _laid(scene, other, _corner(spot), is_light)
    elif trouble in BENEATH:
        scene = BENEATH[trouble](scene, image, spot, rng)
    scene = _laid(scene, image, spot, is_light)
    if trouble == "hand":
        scene = _with_hand(scene, spot, is_light)
    noisy = scene + rng.normal(0, NOISE, scene.shape)
    return Photograph(np.clip(noisy, 0, 255).astype(np.uint8), _box(image, spot))


def _light(rng: np.random.Generator) -> Pixels:
    """Light from one side: about 185 to 255 on a white table."""
    down, across = np.mgrid[0:HEIGHT, 0:WIDTH]
    angle = rng.uniform(0, 2 * np.pi)
    slope: Pixels = (across / WIDTH - 0.5) * np.cos(angle) + (down / HEIGHT - 0.5) * np.sin(angle)
    return 225 + 40 * slope


def _laid(scene: Pixels, image: NDArray[np.uint8], spot: Spot, is_light: bool) -> Pixels:
    """Lays the garment down: as dark as the product picture on white, as light as the data set's image on black."""
    garment, mask = _resized(image, spot.size), _mask(image, spot.size)
    below = scene[spot.square]
    color = (255 - garment) * below / 255 if is_light else garment * 0.9 + 25
    scene = scene.copy()
    scene[spot.square] = below * (1 - mask) + color * mask
    return scene


def _resized(image: NDArray[np.uint8], size: int) -> Pixels:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC), np.float64)


def _mask(image: NDArray[np.uint8], size: int) -> Pixels:
    """1 where the garment is."""
    return _resized(np.where(image > FAINT, 255, 0).astype(np.uint8), size) / 255


def _box(image: NDArray[np.uint8], spot: Spot) -> Box:
    rows, columns = np.nonzero(image > FAINT)
    top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
    scaled = [round(int(edge) * spot.size / 28) for edge in (top, left, bottom, right)]
    return spot.top + scaled[0], spot.left + scaled[1], spot.top + scaled[2], spot.left + scaled[3]


# --- Troubles --------------------------------------------------------------------------------------------------------


def _with_shadow(scene: Pixels, image: NDArray[np.uint8], spot: Spot, _rng: np.random.Generator) -> Pixels:
    """The garment's own soft shadow, beside it: 30 % darker."""
    shadow = Image.new("L", (WIDTH, HEIGHT))
    shape = Image.fromarray((_mask(image, spot.size) * 255).clip(0, 255).astype(np.uint8))
    shadow.paste(shape, (spot.left + spot.size // 12, spot.top + spot.size // 12))
    return scene * (1 - 0.3 * np.asarray(shadow.filter(ImageFilter.GaussianBlur(spot.size / 30))) / 255)


def _half_in_shade(scene: Pixels, _image: NDArray[np.uint8], _spot: Spot, rng: np.random.Generator) -> Pixels:
    """A shadow with a hard edge that falls over the table: 30 % darker."""
    columns = np.arange(WIDTH)
    return scene * np.where(columns < rng.uniform(0.3, 0.7) * WIDTH, 0.7, 1.0)


def _striped(scene: Pixels, _image: NDArray[np.uint8], _spot: Spot, _rng: np.random.Generator) -> Pixels:
    """Boards, 20 pixels wide, of which every other is 15 % darker."""
    return scene * np.where(np.arange(WIDTH) // 20 % 2, 0.85, 1.0)


def _with_hanger(scene: Pixels, image: NDArray[np.uint8], spot: Spot, _rng: np.random.Generator) -> Pixels:
    """A hook and two arms of gray wire, from behind the garment to an eighth of its size above it."""
    middle, top, size = spot.left + spot.size / 2, _box(image, spot)[0], spot.size
    hook = top - size / 8
    picture = Image.new("L", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(picture)
    draw.line([(middle, hook), (middle, top)], fill=255, width=4)
    draw.arc([middle - size / 20, hook - size / 20, middle + size / 20, hook + size / 20], 180, 90, fill=255, width=4)
    for side in (-1, 1):
        draw.line([(middle, top), (middle + side * size * 0.4, top + size / 8)], fill=255, width=4)
    wire = np.asarray(picture) / 255
    return scene * (1 - wire) + 110 * wire


def _corner(spot: Spot) -> Spot:
    """Where a second garment of half the size is farthest from the first."""
    size = spot.size // 2
    is_low, is_right = spot.top + spot.size / 2 > HEIGHT / 2, spot.left + spot.size / 2 > WIDTH / 2
    return Spot(4 if is_low else HEIGHT - size - 4, 4 if is_right else WIDTH - size - 4, size)


def _with_hand(scene: Pixels, spot: Spot, is_light: bool) -> Pixels:
    """A forearm from below, and a fist that holds the garment by its lower edge."""
    middle, wrist = spot.left + spot.size / 2, spot.top + spot.size
    picture = Image.new("L", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(picture)
    draw.rectangle([middle - 16, wrist, middle + 16, HEIGHT], fill=255)
    draw.ellipse([middle - 24, wrist - 30, middle + 24, wrist + 12], fill=255)
    skin = np.asarray(picture.filter(ImageFilter.GaussianBlur(1))) / 255
    return scene * (1 - skin) + (150 if is_light else 120) * skin


BENEATH: dict[str, Callable[[Pixels, NDArray[np.uint8], Spot, np.random.Generator], Pixels]] = {
    "soft shadow": _with_shadow,
    "half in shade": _half_in_shade,
    "boards": _striped,
    "hanger": _with_hanger,
}
TROUBLES = (*BENEATH, "hand", "second garment")
