"""Turns what a caller has into a ClassifyRequest: arrays, tensors and lists into images, files into pictures.

What can be taken without a guess is taken; the rest is refused with a ValueError that says what to pass instead.
"""

import io
import math
import operator
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from atelier.contract import IMAGE_BYTES, IMAGE_SHAPE, Images
from atelier.wire import classifier_pb2 as pb

Picture = Any  # bytes-like, path (str or PathLike), binary file, or PIL image
NO_LIMIT_S = 1e8  # three years: gRPC cannot carry much more, so beyond this a call has no deadline


def request_from_images(images: ArrayLike, top_k: int) -> pb.ClassifyRequest:
    """Builds a request from (N, 1, 28, 28), (N, 28, 28) or (28, 28) uint8. Raises ValueError for anything else."""
    return pb.ClassifyRequest(images=images_from(images).tobytes(), top_k=_checked_top_k(top_k))


def request_from_pictures(
    pictures: Picture | Iterable[Picture], top_k: int, invert: bool, prepare: bool
) -> pb.ClassifyRequest:
    """Builds a request from encoded pictures; a lone one needs no list.

    Raises ValueError for none or for what is no picture, OSError for files that cannot be read.
    """
    if invert and prepare:
        raise ValueError("prepare and invert are both set, and prepare decides itself what to invert: pass one of them")
    if _is_lone_picture(pictures):
        pictures = [pictures]
    elif not isinstance(pictures, Iterable):
        raise ValueError(f"pictures is a {_kind_of(pictures)}: pass a list of paths, of bytes or of PIL images")
    contents = [_picture_bytes(picture) for picture in pictures]
    if not contents:
        raise ValueError("there is no picture to classify")
    return pb.ClassifyRequest(
        pictures=contents, top_k=_checked_top_k(top_k), invert=bool(invert), prepare=bool(prepare)
    )


def is_single(request: pb.ClassifyRequest) -> bool:
    """Returns whether a request has one image."""
    return len(request.images) == IMAGE_BYTES


def checked_timeout_s(timeout_s: float | None) -> float | None:
    """Returns the seconds that gRPC is to allow; None, which means no limit, for None and infinity."""
    if timeout_s is None or timeout_s >= NO_LIMIT_S:
        return None
    if math.isnan(timeout_s) or timeout_s <= 0:
        raise ValueError(f"timeout_s is {timeout_s}: pass a number of seconds above 0, or None for no limit")
    return timeout_s


def _checked_top_k(top_k: int) -> int:
    try:
        number = operator.index(top_k)
    except TypeError:
        raise ValueError(f"top_k is {top_k!r}: pass a whole number, 1 to 10") from None
    if not 0 <= number < 2**32:
        raise ValueError(f"top_k is {top_k}: pass 1 to 10")
    return number


# --- Images ----------------------------------------------------------------------------------------------------------


def images_from(images: ArrayLike) -> Images:
    """Returns uint8 images from an array, a tensor on the CPU, a PIL image or lists of these or of integers."""
    if isinstance(images, str | bytes | bytearray | memoryview | os.PathLike):
        raise ValueError(f"images is a {_kind_of(images)}: classify_pictures takes files and their contents")
    array = _array_from(images)
    if array.dtype != np.uint8:
        raise ValueError(f"images must be uint8, 0 (background) to 255; {_about_dtype(array)}")
    if array.shape[-2:] != IMAGE_SHAPE[-2:] or array.ndim > 4 or (array.ndim == 4 and array.shape[1] != 1):
        what = f"images must be (N, 1, 28, 28), (N, 28, 28) or (28, 28); these are {array.shape}"
        raise ValueError(f"{what}. Pictures of other sizes: classify_pictures scales them")
    if not array.size:
        raise ValueError("there is no image to classify")
    return array


def _array_from(images: Any) -> NDArray[Any]:
    _refuse_colours(images)
    is_list = isinstance(images, list | tuple)
    try:
        if is_list and images and not isinstance(images[0], list | tuple | int):  # arrays, tensors, PIL images
            for image in images:
                _refuse_colours(image)
            return np.stack([np.asarray(image) for image in images])
        array = np.asarray(images)
    except (TypeError, ValueError, RuntimeError) as error:  # of unequal lengths, on a GPU, with a gradient
        what = f"images, a {_kind_of(images)}, cannot be read as one array: {error}"
        raise ValueError(f"{what}. Pass uint8 (N, 1, 28, 28); of a tensor, .detach().cpu()") from None
    # Python's integers have no width: those of a list lose nothing as uint8.
    if is_list and array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    return array


def _refuse_colours(image: Any) -> None:
    """Refuses a PIL image whose array may hold palette indices or colours, which would be taken for grays."""
    if _is_pil_image(image) and image.mode != "L":
        raise ValueError(f"the PIL image has mode {image.mode}: pass it to classify_pictures, or image.convert('L')")


def _about_dtype(array: NDArray[Any]) -> str:
    if array.dtype.kind == "O":
        return "this is no array of numbers"
    if array.dtype.kind == "f" and np.isnan(array).any():
        return "these hold NaN"
    cure = "(images * 255).round().astype(np.uint8) if they go from 0 to 1" if array.dtype.kind == "f" else ""
    cure = cure or ("images.astype(np.uint8) * 255" if array.dtype.kind == "b" else "images.astype(np.uint8)")
    return f"these are {array.dtype}: pass {cure}"


# --- Pictures --------------------------------------------------------------------------------------------------------


def _is_lone_picture(pictures: Any) -> bool:
    is_file = hasattr(pictures, "read")
    return (
        isinstance(pictures, str | bytes | bytearray | memoryview | os.PathLike) or is_file or _is_pil_image(pictures)
    )


def _picture_bytes(picture: Picture) -> bytes:
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, bytearray | memoryview):
        return bytes(picture)
    if isinstance(picture, str) and picture.startswith(("http://", "https://")):
        raise ValueError(f"{picture} is an address: download it, and pass the bytes")
    if isinstance(picture, str | os.PathLike):
        return Path(picture).read_bytes()
    if _is_pil_image(picture):
        return _png_from(picture)
    content = picture.read() if hasattr(picture, "read") else None
    if not isinstance(content, bytes):
        what = f"a {_kind_of(picture)} is no encoded picture"
        raise ValueError(f"{what}: pass a path, bytes, a file opened with 'rb' or a PIL image; arrays go to classify")
    return content


def _is_pil_image(value: Any) -> bool:
    pil = sys.modules.get("PIL.Image")  # whoever has one has imported this; the client need not
    return pil is not None and isinstance(value, pil.Image)


def _png_from(image: Any) -> bytes:
    """Encodes a PIL image without loss, turned as its EXIF orientation says, which a PNG of it would not keep."""
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode not in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"):
        if upright.mode in ("F", "I"):
            raise ValueError(f"the PIL image has mode {upright.mode}, whose range is not known: image.convert('L')")
        upright = upright.convert("RGB")
    buffer = io.BytesIO()
    upright.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _kind_of(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.split('.')[0]} {kind.__name__}"
