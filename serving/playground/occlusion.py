"""Covers an image square by square, to ask which pixels matter to the answer (Zeiler and Fergus, 2014, section 4.2)."""

import math

import numpy as np

from atelier.contract import Images
from serving.playground.errors import PageError

SIDE = 28
MAX_IMAGES = 1024  # in one request, as a server takes by default


def occluded(image: Images, size: int, stride: int) -> tuple[Images, int]:
    """Returns the image and its copies with one square of background each, and how many squares a row has.

    (1, 1, 28, 28) -> (1 + N * N, 1, 28, 28). The squares of `size` pixels lie `stride` pixels apart and reach both
    edges: the first and last may hang over them. Raises PageError BAD_SQUARE.
    """
    num_places = math.ceil((SIDE - size) / stride) + 1 if 1 <= size <= SIDE and stride >= 1 else 0
    if not num_places >= 2 or 1 + num_places**2 > MAX_IMAGES:
        cure = "send ?size=5&stride=2, or others"
        raise PageError(400, "BAD_SQUARE", f"size {size} and stride {stride} make {num_places}**2 squares", cure)
    overhang = (num_places - 1) * stride + size - SIDE
    starts = [place * stride - math.ceil(overhang / 2) for place in range(num_places)]
    images = np.repeat(image, 1 + num_places**2, axis=0)
    squares = [(top, left) for top in starts for left in starts]
    for copy, (top, left) in zip(images[1:, 0], squares, strict=True):
        copy[max(0, top) : top + size, max(0, left) : left + size] = 0
    return images, num_places
