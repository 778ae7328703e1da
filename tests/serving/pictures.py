"""Pictures for the tests, and what becomes of them."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from serving.errors import InvalidRequestError
from serving.images import image_from_picture

WHITE = 255


def encoded(picture: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """`picture` as a file."""
    file = BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def decoded(data: bytes, *, invert: bool = False) -> NDArray[np.uint8]:
    """(28, 28) uint8."""
    image = image_from_picture(data, index=0, invert=invert)
    assert image.shape == (1, 28, 28)
    assert image.dtype == np.uint8
    pixels: NDArray[np.uint8] = image[0]
    return pixels


def refusal(data: bytes, index: int = 0) -> str:
    """The message with which a picture is refused."""
    with pytest.raises(InvalidRequestError) as caught:
        image_from_picture(data, index=index, invert=False)
    assert caught.value.word == "BAD_PICTURE"
    return str(caught.value)


def garment(height: int = 28, width: int = 28) -> NDArray[np.uint8]:
    """(height, width) of noise: no two pixels alike, no symmetry."""
    return np.random.default_rng(3).integers(0, 256, (height, width), np.uint8)
