"""Reads raw images from bytes, and warns those who send a picture in their place."""

import numpy as np

from atelier.contract import IMAGE_BYTES, IMAGE_SHAPE, Images
from serving.errors import InvalidRequestError
from serving.pictures.kinds import kind_of

BEGINNING_BYTES = 1024  # enough to know every kind by


def images_from_bytes(data: bytes) -> Images:
    """Views raw images end to end as (N, 1, 28, 28) uint8, read-only. Raises InvalidRequestError."""
    if not data:
        what = "the request holds neither images nor pictures"
        raise InvalidRequestError("NO_IMAGES", what, f"send {IMAGE_BYTES} bytes per image, or encoded pictures")
    if len(data) % IMAGE_BYTES or not data.startswith(b"\0\0\0\0"):  # garments begin so, pictures never
        check_raw_images(data[:BEGINNING_BYTES], len(data))
    return np.frombuffer(data, np.uint8).reshape(-1, *IMAGE_SHAPE)


def check_raw_images(beginning: bytes, num_bytes: int) -> None:
    """Raises InvalidRequestError unless bytes that begin so may be raw images."""
    kind = kind_of(beginning)
    cure = "send one byte per pixel, row by row, images end to end"
    if kind is not None:
        cure = f"{kind.cure} and send it as pictures" if kind.cure else "send it as pictures"
    if num_bytes % IMAGE_BYTES:
        what = f"images is {num_bytes} bytes long, which is no multiple of {IMAGE_BYTES} = 28 x 28"
        raise InvalidRequestError("BAD_IMAGE_SIZE", f"{what}, and looks like {kind.name}" if kind else what, cure)
    if kind is not None:
        raise InvalidRequestError("PICTURE_IN_IMAGES", f"images looks like {kind.name}", cure)
