"""Decodes a picture to what Fashion-MNIST stores: 28 x 28, grayscale, light on a background of 0.

Pictures come from strangers: whatever their bytes are, what is raised is InvalidRequestError, in our own words.
"""

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
from serving.pictures.orientation import ORIENTATION, orientation_from
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


def image_from_picture(data: bytes, *, index: int, invert: bool) -> NDArray[np.uint8]:
    """Decodes a PNG, JPEG or WebP of any size and colour to (1, 28, 28) uint8.

    `invert` is for what is dark on a light background. `index` is the picture's place in the request, for the message
    of the InvalidRequestError that is raised if it cannot be decoded or is too large to be.
    """
    kind = kind_of(data)
    format = kind.name if kind else ""
    cure = "send a whole PNG, JPEG or WebP file"
    try:
        if format in DECODERS:
            return _decoded(data, format, invert)
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


def _decoded(data: bytes, format: str, invert: bool) -> NDArray[np.uint8]:
    parts = parts_of(format, data)
    picture = DECODERS[format](BytesIO(parts.pixels))  # reads the header, decodes nothing yet
    _check_size(picture, format, parts.num_scans)
    # Leaves JPEG's decoder four pixels per pixel of the result, and its colours undecoded; nothing to the others.
    longest = max(picture.size)
    picture.draft("L", (max(1, picture.width * 4 * EDGE // longest), max(1, picture.height * 4 * EDGE // longest)))
    gray, alpha = gray_and_alpha(picture, parts)
    if invert:
        gray = ImageChops.invert(gray)
    light_on_black = gray if alpha is None else ImageChops.multiply(gray, alpha)  # white is the background, if inverted
    notes = parts.notes or picture.info  # libwebp finds WebP's
    orientation = orientation_from(notes.get("exif", b""), notes.get("xmp", b""))
    return _centred(_upright(_shrunk(light_on_black), orientation))


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


def _shrunk(gray: Image.Image) -> Image.Image:
    """Resizes the longest edge to 28; small pictures grow."""
    longest = max(gray.size)
    size = (max(1, round(gray.width * EDGE / longest)), max(1, round(gray.height * EDGE / longest)))
    # Averaging whole blocks first, down to three times the size, looks the same and takes a tenth of the time.
    return gray.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _upright(gray: Image.Image, orientation: int) -> Image.Image:
    gray.info.clear()  # it may still say what was read already
    gray.getexif()[ORIENTATION] = orientation
    return ImageOps.exif_transpose(gray)


def _centred(gray: Image.Image) -> NDArray[np.uint8]:
    """Centres (h, w) in (1, 28, 28), what is missing filled with 0."""
    image = np.zeros(IMAGE_SHAPE, np.uint8)
    top, left = (EDGE - gray.height) // 2, (EDGE - gray.width) // 2
    image[0, top : top + gray.height, left : left + gray.width] = np.asarray(gray)
    return image
