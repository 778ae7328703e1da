"""Prepares a photograph as Fashion-MNIST's images were: light on a background of 0, the garment's box filling 28 x 28.

What the model learned from are product pictures, trimmed to the garment and inverted. A photograph has uneven light,
noise and margins besides, and is answered by chance with them.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageStat

from atelier.contract import IMAGE_SHAPE
from serving.pictures.decode import fitted, gray_from_picture

WORKING_EDGE = 160  # pixels; a garment that takes up a sixth of the photograph still has 28 of them
BORDER_SHARE = 0.025  # of the shorter side: the frame that shows the background
NUM_FITS = 6
MIN_TOLERANCE = 6.0  # of 255: what differs less from the background is part of it while it is fitted
NUM_DEVIATIONS = 4.0
MIN_CONTRAST = 16.0  # of 255
MIN_SHARE = 0.01  # of a row or column that must stand out: a few bright pixels do not stretch the box
BRIGHT, BRIGHT_PERCENTILE = 220, 95  # where the data set's garments have their light parts, whatever the exposure

Box = tuple[int, int, int, int]  # y0, x0, y1, x1
Values = NDArray[np.float32]


class Prepared(NamedTuple):
    """Facts of how a picture was prepared."""

    inverted: bool
    box: Box  # what was kept: y0, x0, y1, x1 in pixels of the upright picture, y1 and x1 behind the last


def prepared(picture: bytes, *, index: int = 0) -> tuple[NDArray[np.uint8], Prepared]:
    """Decodes a PNG, JPEG or WebP and prepares it: (1, 28, 28) uint8, and what was done.

    Raises InvalidRequestError as `image_from_picture` does.
    """
    gray, size = gray_from_picture(picture, _reduced, index=index, edge=WORKING_EDGE)
    return prepared_from(np.asarray(gray), size)


def prepared_from(gray: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.uint8], Prepared]:
    """Prepares (h, w) uint8, the upright picture of `size` = (height, width) or scaled down from it.

    A picture of 28 x 28 is one of the data set's kind, and only inverted. If nothing stands out from the background,
    the whole picture is taken.
    """
    found = None if size == IMAGE_SHAPE[1:] else _garment(gray)
    if found is None:
        is_light = bool(np.median(gray[_frame(gray.shape)]) > 127)
        whole = Image.fromarray(255 - gray if is_light else gray)
        return fitted(whole), Prepared(is_light, (0, 0, *size))
    garment, is_dark, box = found
    top, left, bottom, right = box
    image = fitted(Image.fromarray(_exposed(garment[top:bottom, left:right])))
    return image, Prepared(is_dark, _scaled(box, gray.shape, size))


def _reduced(gray: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """Lays what has transparent parts on white or black, whichever is farther from the others, and averages blocks."""
    if alpha is not None:
        opaque = ImageStat.Stat(gray, alpha)
        is_dark = opaque.count[0] > 0 and opaque.mean[0] < 128
        gray = Image.composite(gray, Image.new("L", gray.size, 255 if is_dark else 0), alpha)
    return gray.reduce(max(1, max(gray.size) // WORKING_EDGE))


def _garment(gray: NDArray[np.uint8]) -> tuple[Values, bool, Box] | None:
    """Returns how far each pixel stands out, 0 elsewhere; whether it is the dark ones; and the box around them.

    Both sides of the background are looked at, and the one on which more stands out is the garment's. None if none do.
    """
    background, deviation = _background(gray)
    limit = max(MIN_CONTRAST, NUM_DEVIATIONS * deviation)
    differences = gray - background
    is_dark = bool(np.count_nonzero(differences < -limit) > np.count_nonzero(differences > limit))
    if is_dark:
        differences = -differences
    differences[differences <= limit] = 0
    box = _box(differences > 0)
    return None if box is None else (differences, is_dark, box)


def _background(gray: NDArray[np.uint8]) -> tuple[Values, float]:
    """Fits a plane through the frame: (h, w), and the standard deviation of the frame from it.

    What lies on the frame without belonging to the background is left out, fit by fit.
    """
    height, width = gray.shape
    frame = _frame(gray.shape)
    rows, columns = np.nonzero(frame)
    terms = np.stack([rows / height, columns / width, np.ones(len(rows))], axis=1)
    values = gray[frame].astype(np.float64)
    distances = np.abs(values - np.median(values))
    kept = distances <= max(MIN_TOLERANCE, 2 * np.median(distances))
    for _ in range(NUM_FITS):
        some = terms[kept]
        down, across, corner = np.linalg.lstsq(some.T @ some, some.T @ values[kept], rcond=None)[0]
        distances = np.abs(values - terms @ (down, across, corner))
        deviation = float(np.sqrt(np.mean(distances[kept] ** 2)))
        kept = distances <= max(MIN_TOLERANCE, 2 * deviation)
    plane = corner + down * (np.arange(height) / height)[:, np.newaxis] + across * (np.arange(width) / width)
    return plane.astype(np.float32), deviation


def _frame(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    frame = np.ones(shape, np.bool_)
    thickness = max(1, round(min(shape) * BORDER_SHARE))
    frame[thickness:-thickness, thickness:-thickness] = False
    return frame


def _box(stands_out: NDArray[np.bool_]) -> Box | None:
    height, width = stands_out.shape
    rows = np.flatnonzero(np.count_nonzero(stands_out, axis=1) > MIN_SHARE * width)
    columns = np.flatnonzero(np.count_nonzero(stands_out, axis=0) > MIN_SHARE * height)
    if not len(rows) or not len(columns):
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _exposed(garment: Values) -> NDArray[np.uint8]:
    """Scales the values so that the light parts are as light as in the data set."""
    light = np.percentile(garment[garment > 0], BRIGHT_PERCENTILE)
    exposed: NDArray[np.uint8] = np.clip(np.rint(garment * (BRIGHT / light)), 0, 255).astype(np.uint8)
    return exposed


def _scaled(box: Box, working: tuple[int, ...], size: tuple[int, int]) -> Box:
    """Converts a box to pixels of the whole picture, none of them cut."""
    down, across = size[0] / working[0], size[1] / working[1]
    top, left, bottom, right = box
    return int(top * down), int(left * across), -int(-bottom * down // 1), -int(-right * across // 1)
