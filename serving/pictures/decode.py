"""Decodes a picture to what Fashion-MNIST stores: 28 x 28, grayscale, light on a background of 0.

Pictures come from strangers: whatever their bytes are, what is raised is InvalidRequestError, in our own words.
"""

import re
import struct
from collections.abc import Callable
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from atelier.contract import IMAGE_SHAPE
from serving.errors import PictureError
from serving.pictures.costs import SMALLER, cost_of, header_of
from serving.pictures.grays import gray_and_alpha
from serving.pictures.kinds import format_of
from serving.pictures.parts import parts_of

EDGE = IMAGE_SHAPE[-1]

# Not Image.open, which warns on the server's stderr of pictures that are refused here anyway.
DECODERS: dict[str, type[ImageFile]] = {"PNG": PngImageFile, "JPEG": JpegImageFile, "WebP": WebPImageFile}

# How a picture lies is in EXIF, or else in XMP.
ORIENTATION = 0x0112
LYING = (5, 6, 7, 8)  # those in which width and height change places
XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")
MAX_ENTRIES = 1024  # of EXIF's; cameras write tens

# A picture's grays and its alpha, both of mode "L" -> grays alone, and not many of them.
Reduce = Callable[[Image.Image, Image.Image | None], Image.Image]


def light_on_black(data: bytes, *, index: int, invert: bool) -> Image.Image:
    """Decodes a PNG, JPEG or WebP of any size and colour to grays whose longest edge is 28.

    `invert` is for what is dark on a light background. `index` is the picture's place in the request, for the message
    of the InvalidRequestError that is raised if it cannot be decoded or is too large to be.
    """

    def reduce(gray: Image.Image, alpha: Image.Image | None) -> Image.Image:
        if invert:
            gray = ImageChops.invert(gray)
        return _scaled(gray if alpha is None else ImageChops.multiply(gray, alpha))  # inverted, white is the background

    return gray_from_picture(data, reduce, index=index, edge=4 * EDGE)[0]


def gray_from_picture(data: bytes, reduce: Reduce, *, index: int, edge: int) -> tuple[Image.Image, tuple[int, int]]:
    """Decodes a picture to what `reduce` makes of it, turned upright; with the (height, width) of the whole, upright.

    A JPEG may be decoded at a smaller size, but for `edge` pixels of its longest edge. Raises InvalidRequestError as
    `light_on_black` does.
    """
    format = "picture"
    try:
        format = format_of(data)
        return _decoded(data, format, reduce, edge)
    except PictureError as error:
        refusal = error
    except MemoryError:
        refusal = PictureError(f"is a {format} for which there is no memory", SMALLER)
    except Exception:  # fed with hostile bytes, a decoder may raise anything; its words are not for clients
        refusal = PictureError(f"is a {format} that is damaged or breaks off")
    raise refusal.at(index)


def fitted(gray: Image.Image) -> NDArray[np.uint8]:
    """Scales the longest edge to 28, small pictures too, and centres the rest in (1, 28, 28), filled with 0."""
    scaled = _scaled(gray)
    image = np.zeros(IMAGE_SHAPE, np.uint8)
    top, left = (EDGE - scaled.height) // 2, (EDGE - scaled.width) // 2
    image[0, top : top + scaled.height, left : left + scaled.width] = np.asarray(scaled)
    return image


def _decoded(data: bytes, format: str, reduce: Reduce, edge: int) -> tuple[Image.Image, tuple[int, int]]:
    header = header_of(format, data)
    cost_of(header)
    parts = parts_of(format, data)
    picture = DECODERS[format](BytesIO(parts.pixels))  # reads the header, decodes nothing yet
    width, height = picture.size
    if (width, height) != (header.width, header.height):  # a second header
        raise PictureError(f"is a {format} that is damaged: it has two sizes")
    # Leaves JPEG's decoder few pixels, and its colours undecoded; nothing to the others.
    longest = max(width, height)
    picture.draft("L", (max(1, width * edge // longest), max(1, height * edge // longest)))
    gray = reduce(*gray_and_alpha(picture, parts))
    notes = parts.notes or picture.info  # libwebp finds WebP's
    orientation = _orientation_from(notes.get("exif", b""), notes.get("xmp", b""))
    return _upright(gray, orientation), (width, height) if orientation in LYING else (height, width)


def _scaled(gray: Image.Image) -> Image.Image:
    """Resizes the longest edge to 28; small pictures grow."""
    longest = max(gray.size)
    size = (max(1, round(gray.width * EDGE / longest)), max(1, round(gray.height * EDGE / longest)))
    # Averaging whole blocks first, down to three times the size, looks the same and takes a tenth of the time.
    return gray.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _orientation_from(exif: bytes, xmp: bytes) -> int:
    """Finds 1 to 8 in EXIF or else in XMP; upright (1) if neither makes sense: cameras write much that does not."""
    match = XMP_ORIENTATION.search(xmp)
    return _orientation_from_exif(exif.removeprefix(b"Exif\0\0")) or (int(match[1]) if match else 1)


def _orientation_from_exif(exif: bytes) -> int:
    """Searches a TIFF directory's entries of (tag, type, count, value), twelve bytes each; 0 if there is none.

    Pillow would read all of them, warning of each oddity, and strangers write tens of thousands; this reads one.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 0
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", exif, directory)
        for entry in range(min(num_entries, MAX_ENTRIES)):
            tag, value = struct.unpack_from(f"{order}H6xH", exif, directory + 2 + 12 * entry)
            if tag == ORIENTATION:
                return value if 1 <= value <= 8 else 0
    except struct.error:
        pass
    return 0


def _upright(gray: Image.Image, orientation: int) -> Image.Image:
    gray.info.clear()  # it may still say what was read already
    gray.getexif()[ORIENTATION] = orientation
    return ImageOps.exif_transpose(gray)
