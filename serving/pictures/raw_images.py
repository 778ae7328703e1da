"""From bytes to raw images as they are, and a word to those who send a picture in their place."""

import numpy as np

from atelier.contract import IMAGE_BYTES, IMAGE_SHAPE, Images
from serving.errors import InvalidRequestError
from serving.pictures.kinds import kind_of


def images_from_bytes(data: bytes) -> Images:
    """Raw images end to end -> (N, 1, 28, 28) uint8, a read-only view of `data`. Raises InvalidRequestError."""
    if not data:
        what = "the request holds neither images nor pictures"
        raise InvalidRequestError("NO_IMAGES", what, f"send {IMAGE_BYTES} bytes per image, or encoded pictures")
    kind = None if data.startswith(b"\0\0\0\0") else kind_of(data)  # garments begin so, pictures never
    if kind is None and len(data) % IMAGE_BYTES == 0:
        return np.frombuffer(data, np.uint8).reshape(-1, *IMAGE_SHAPE)
    cure = "send one byte per pixel, row by row, images end to end"
    if kind is not None:
        cure = f"{kind.cure} and send it as pictures" if kind.cure else "send it as pictures"
    if kind is not None and len(data) % IMAGE_BYTES == 0:
        raise InvalidRequestError("PICTURE_IN_IMAGES", f"images looks like {kind.name}", cure)
    what = f"images is {len(data)} bytes long, which is no multiple of {IMAGE_BYTES} = 28 x 28"
    raise InvalidRequestError("BAD_IMAGE_SIZE", f"{what}, and looks like {kind.name}" if kind else what, cure)
