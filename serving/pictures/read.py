"""Reads a request's pictures as it asks for it: prepared as photographs, inverted or as they are."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atelier.contract import Images
from atelier.wire import classifier_pb2 as pb
from serving.errors import InvalidRequestError
from serving.pictures.decode import fitted, light_on_black
from serving.pictures.photographs import Prepared, has_light_border, prepared


class Reading(NamedTuple):
    """Options of a request about its pictures."""

    invert: bool
    prepare: bool

    def check(self) -> None:
        """Raises InvalidRequestError if both are asked for."""
        if self.invert and self.prepare:
            what = "prepare and invert are both set, and prepare decides itself what to invert"
            raise InvalidRequestError("BAD_PREPARE", what, "set one of them")


class ReadPicture(NamedTuple):
    """One picture's image, and what there is to say of it."""

    image: NDArray[np.uint8]  # (1, 28, 28)
    prepared: Prepared | None  # if that was asked for
    is_light: bool  # at its border, though neither was asked for


def read_picture(picture: bytes, index: int, reading: Reading) -> ReadPicture:
    """Decodes the picture. Raises InvalidRequestError, which names it by its place in the request, `index`."""
    if reading.prepare:
        return ReadPicture(*prepared(picture, index=index), is_light=False)
    gray = light_on_black(picture, index=index, invert=reading.invert)
    return ReadPicture(fitted(gray), None, not reading.invert and has_light_border(np.asarray(gray)))


def images_of(pictures: list[ReadPicture]) -> Images:
    """Stacks their images: (N, 1, 28, 28) uint8."""
    return np.stack([picture.image for picture in pictures])


def notes_of(pictures: list[ReadPicture]) -> bytes:
    """Serialises what a ClassifyResponse says of its pictures, to stand behind the rest of it."""
    response = pb.ClassifyResponse(light_pictures=[i for i, picture in enumerate(pictures) if picture.is_light])
    for picture in pictures:
        if picture.prepared is not None:
            y0, x0, y1, x1 = picture.prepared.box
            response.prepared.add(inverted=picture.prepared.inverted, box=pb.Box(y0=y0, x0=x0, y1=y1, x1=x1))
    return response.SerializeToString()
