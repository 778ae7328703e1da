"""Prepares a photograph as Fashion-MNIST's images were: light on a background of 0, the garment's box filling 28 x 28.

What the model learned from are product pictures, trimmed to the garment and inverted. A photograph has uneven light,
noise and margins besides, and is answered by chance with them.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageStat

from atelier.contract import IMAGE_SHAPE
from serving.pictures.decode import fitted, gray_from_picture
from serving.pictures.reading import Box, Prepared

WORKING_EDGE = 160  # pixels; a garment that takes up a sixth of the photograph still has 28 of them
BORDER_SHARE = 0.025  # of the shorter side: the frame that shows the background
NUM_FITS = 6
MIN_TOLERANCE = 6.0  # of 255: what differs less from the background is part of it while it is fitted
NUM_DEVIATIONS = 4.0
MIN_CONTRAST = 16.0  # of 255
MIN_SHARE = 0.01  # of a row or column that must stand out: a few bright pixels do not stretch the box
GAP_SHARE = 0.03  # of the longest side: what is farther apart than that is something else, and the largest is kept
BRIGHT, BRIGHT_PERCENTILE = 220, 95  # where the data set's garments have their light parts, whatever the exposure

Values = NDArray[np.float32]


def prepared(picture: bytes, *, index: int = 0) -> tuple[NDArray[np.uint8], Prepared]:
    """Decodes a PNG, JPEG or WebP and prepares it: (1, 28, 28) uint8, and what was done.

    Raises InvalidRequestError as `light_on_black` does.
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
        is_light = has_light_border(gray)
        whole = Image.fromarray(255 - gray if is_light else gray)
        return fitted(whole), Prepared(is_light, (0, 0, *size))
    garment, is_dark, box = found
    top, left, bottom, right = box
    image = fitted(Image.fromarray(_exposed(garment[top:bottom, left:right])))
    return image, Prepared(is_dark, _scaled(box, gray.shape, size))


def has_light_border(gray: NDArray[np.uint8]) -> bool:
    """Returns whether the background of (h, w) is light: none of the data set's 70,000 images has such a border."""
    return bool(np.median(gray[_frame(gray.shape)]) > 127)


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
    """Returns the box around the largest of what stands out apart from each other; None if nothing does."""
    height, width = stands_out.shape
    gap = GAP_SHARE * max(height, width)
    top, left, bottom, right = 0, 0, height, width
    for _ in range(2):  # once the rows of the other things are gone, its columns are found again
        columns = _run(np.count_nonzero(stands_out[top:bottom, left:right], axis=0), bottom - top, gap)
        if columns is None:
            return None
        left, right = left + columns[0], left + columns[1]
        rows = _run(np.count_nonzero(stands_out[top:bottom, left:right], axis=1), right - left, gap)
        if rows is None:
            return None
        top, bottom = top + rows[0], top + rows[1]
    return top, left, bottom, right


def _run(counts: NDArray[np.intp], length: int, gap: float) -> tuple[int, int] | None:
    """Finds where the most stands out between gaps: of rows or columns of `length` pixels, so many of each."""
    found = np.flatnonzero(counts > MIN_SHARE * length)
    if not len(found):
        return None
    runs = np.split(found, np.flatnonzero(np.diff(found) > gap) + 1)
    largest = max(runs, key=lambda run: int(counts[run].sum()))
    return int(largest[0]), int(largest[-1]) + 1


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
