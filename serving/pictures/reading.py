"""Describes how a request wants its pictures read, and what is read from one; as bytes too, for another process."""

import json
import struct
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from atelier.contract import IMAGE_BYTES, IMAGE_SHAPE, Images
from serving.errors import InvalidRequestError

Box = tuple[int, int, int, int]  # y0, x0, y1, x1

_QUESTION = struct.Struct("<I??")  # index, invert, prepare; then the picture
_ANSWER = struct.Struct("<???4I")  # is it light, is it prepared, inverted, box; then the image


class Reading(NamedTuple):
    """Options of a request about its pictures."""

    invert: bool
    prepare: bool

    def check(self) -> None:
        """Raises InvalidRequestError if both are asked for."""
        if self.invert and self.prepare:
            what = "prepare and invert are both set, and prepare decides itself what to invert"
            raise InvalidRequestError("BAD_PREPARE", what, "set one of them")


class Prepared(NamedTuple):
    """Facts of how a picture was prepared."""

    inverted: bool
    box: Box  # what was kept: y0, x0, y1, x1 in pixels of the upright picture, y1 and x1 behind the last


class ReadPicture(NamedTuple):
    """One picture's image, and what there is to say of it."""

    image: NDArray[np.uint8]  # (1, 28, 28)
    prepared: Prepared | None  # if that was asked for
    is_light: bool  # at its border, though neither was asked for

    def to_bytes(self) -> bytes:
        """Packs it."""
        prepared = self.prepared or Prepared(False, (0, 0, 0, 0))
        facts = _ANSWER.pack(self.is_light, self.prepared is not None, prepared.inverted, *prepared.box)
        return facts + self.image.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Unpacks it; raises the InvalidRequestError that `refused` has packed. Raises ValueError for anything else."""
        if len(data) != _ANSWER.size + IMAGE_BYTES:
            word, what, cure = json.loads(data)
            raise InvalidRequestError(str(word), str(what), str(cure))
        is_light, is_prepared, inverted, *box = _ANSWER.unpack_from(data)
        image = np.frombuffer(data, np.uint8, offset=_ANSWER.size).reshape(IMAGE_SHAPE)
        y0, x0, y1, x1 = box
        return cls(image, Prepared(inverted, (y0, x0, y1, x1)) if is_prepared else None, is_light)


def refused(error: InvalidRequestError) -> bytes:
    """Packs a refusal, in the place of a ReadPicture."""
    return json.dumps([error.word, error.what, error.cure]).encode()


def question(picture: bytes, index: int, reading: Reading) -> bytes:
    """Packs what is to be read."""
    return _QUESTION.pack(index, *reading) + picture


def asked(data: bytes) -> tuple[bytes, int, Reading]:
    """Unpacks a question: picture, index and how to read it."""
    index, invert, prepare = _QUESTION.unpack_from(data)
    return data[_QUESTION.size :], index, Reading(invert, prepare)


def images_of(pictures: list[ReadPicture]) -> Images:
    """Stacks their images: (N, 1, 28, 28) uint8."""
    return np.stack([picture.image for picture in pictures])
