"""Reads a picture as a request asks for it: prepared as a photograph, inverted or as it is."""

import numpy as np

from serving.pictures.decode import fitted, light_on_black
from serving.pictures.photographs import has_light_border, prepared
from serving.pictures.reading import Reading, ReadPicture


def read_picture(picture: bytes, index: int, reading: Reading) -> ReadPicture:
    """Decodes the picture. Raises InvalidRequestError, which names it by its place in the request, `index`."""
    if reading.prepare:
        return ReadPicture(*prepared(picture, index=index), is_light=False)
    gray = light_on_black(picture, index=index, invert=reading.invert)
    return ReadPicture(fitted(gray), None, not reading.invert and has_light_border(np.asarray(gray)))
