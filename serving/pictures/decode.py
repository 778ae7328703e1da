"""Decodes a picture to what Fashion-MNIST stores: 28 x 28, grayscale, light on a background of 0.

Pictures come from strangers: whatever their bytes are, what is raised is InvalidRequestError, in our own words.
"""

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
from serving.errors import InvalidRequestError
from serving.pictures.grays import gray_and_alpha
from serving.pictures.kinds import kind_of
from serving.pictures.orientation import LYING, ORIENTATION, orientation_from
from serving.pictures.parts import BrokenPictureError, TooLargeError, parts_of

EDGE = IMAGE_SHAPE[-1]

# What one picture may make the decoder do. A JPEG read row by row is scaled down 8 times on the way, so a large
# photograph costs little; one in several scans is held in memory whole, and every scan passes over all of it.
MAX_PICTURE_PIXELS = 16 << 20
MAX_JPEG_PIXELS = 64 << 20
MAX_SCANNED_JPEG_PIXELS = 16 << 20
MAX_PIXELS_TIMES_SCANS = 12 * MAX_SCANNED_JPEG_PIXELS

# Not Image.open, which warns on the server's stderr of pictures that are refused here anyway.
DECODERS: dict[str, type[ImageFile]] = {"PNG": PngImageFile, "JPEG": JpegImageFile, "WebP": WebPImageFile}

SMALLER = "scale it down; 28 x 28 is enough"


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
    kind = kind_of(data)
    format = kind.name if kind else ""
    cure = "send a whole PNG, JPEG or WebP file"
    try:
        if format in DECODERS:
            return _decoded(data, format, reduce, edge)
        what = f"begins with the bytes {data[:8].hex(' ')}, as no PNG, JPEG or WebP does" if data else "is empty"
        if kind:
            what, cure = f"looks like {kind.name}", kind.cure
    except TooLargeError as error:
        what, cure = str(error), SMALLER
    except BrokenPictureError as error:
        what = str(error)
    except Image.DecompressionBombError:  # Pillow's own limit, many times ours
        what, cure = f"is a {format} of far more pixels than the limit, {MAX_PICTURE_PIXELS:,}", SMALLER
    except MemoryError:
        what, cure = f"is a {format} for which there is no memory", SMALLER
    except Exception:  # fed with hostile bytes, a decoder may raise anything; its words are not for clients
        what = f"is a {format} that is damaged or breaks off"
    raise InvalidRequestError("BAD_PICTURE", f"pictures[{index}] {what}", cure)


def fitted(gray: Image.Image) -> NDArray[np.uint8]:
    """Scales the longest edge to 28, small pictures too, and centres the rest in (1, 28, 28), filled with 0."""
    scaled = _scaled(gray)
    image = np.zeros(IMAGE_SHAPE, np.uint8)
    top, left = (EDGE - scaled.height) // 2, (EDGE - scaled.width) // 2
    image[0, top : top + scaled.height, left : left + scaled.width] = np.asarray(scaled)
    return image


def _decoded(data: bytes, format: str, reduce: Reduce, edge: int) -> tuple[Image.Image, tuple[int, int]]:
    parts = parts_of(format, data)
    picture = DECODERS[format](BytesIO(parts.pixels))  # reads the header, decodes nothing yet
    _check_size(picture, format, parts.num_scans)
    width, height = picture.size
    # Leaves JPEG's decoder few pixels, and its colours undecoded; nothing to the others.
    longest = max(width, height)
    picture.draft("L", (max(1, width * edge // longest), max(1, height * edge // longest)))
    gray = reduce(*gray_and_alpha(picture, parts))
    notes = parts.notes or picture.info  # libwebp finds WebP's
    orientation = orientation_from(notes.get("exif", b""), notes.get("xmp", b""))
    return _upright(gray, orientation), (width, height) if orientation in LYING else (height, width)


def _check_size(picture: ImageFile, format: str, num_scans: int) -> None:
    limit = MAX_PICTURE_PIXELS
    if num_scans:
        limit = min(MAX_SCANNED_JPEG_PIXELS, MAX_PIXELS_TIMES_SCANS // num_scans)
    elif format == "JPEG":
        limit = MAX_JPEG_PIXELS
    num_pixels = picture.width * picture.height
    if num_pixels > limit:
        scans = f" in {num_scans} scans" if num_scans else ""
        size = f"a {format} of {picture.width} x {picture.height} pixels{scans}"
        raise TooLargeError(f"is {size}: {num_pixels:,} in all, the limit is {limit:,}")


def _scaled(gray: Image.Image) -> Image.Image:
    """Resizes the longest edge to 28; small pictures grow."""
    longest = max(gray.size)
    size = (max(1, round(gray.width * EDGE / longest)), max(1, round(gray.height * EDGE / longest)))
    # Averaging whole blocks first, down to three times the size, looks the same and takes a tenth of the time.
    return gray.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _upright(gray: Image.Image, orientation: int) -> Image.Image:
    gray.info.clear()  # it may still say what was read already
    gray.getexif()[ORIENTATION] = orientation
    return ImageOps.exif_transpose(gray)
