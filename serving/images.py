"""From bytes to images: raw ones as they are, encoded pictures turned into what Fashion-MNIST stores.

A picture becomes 28 x 28, grayscale, light on a background of 0, whatever it was. Pictures come from strangers:
whatever their bytes are, what is raised is InvalidRequestError, in our own words.
"""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from atelier.contract import IMAGE_BYTES, IMAGE_SHAPE, Images
from serving.errors import InvalidRequestError
from serving.picture_headers import BrokenHeaderError, PictureHeader, read_header

EDGE = IMAGE_SHAPE[-1]

# What one picture may make the decoder do. A JPEG read row by row is scaled down 8 times on the way, so a large
# photograph costs little; one in several scans is held in memory whole, and every scan passes over all of it.
MAX_PICTURE_PIXELS = 16 << 20
MAX_JPEG_PIXELS = 64 << 20
MAX_SCANNED_JPEG_PIXELS = 16 << 20
MAX_PIXELS_TIMES_SCANS = 12 * MAX_SCANNED_JPEG_PIXELS

# Not Image.open, which loads and tries many formats more.
DECODERS: dict[str, type[ImageFile]] = {"PNG": PngImageFile, "JPEG": JpegImageFile, "WEBP": WebPImageFile}

# The cures.
AS_AN_IMAGE_FILE = "send a whole PNG, JPEG or WebP file"
SMALLER = "scale it down; 28 x 28 is enough"


def images_from_bytes(data: bytes) -> Images:
    """Raw images end to end -> (N, 1, 28, 28) uint8, a read-only view of `data`. Raises InvalidRequestError."""
    if not data:
        what = "the request holds neither images nor pictures"
        raise InvalidRequestError("NO_IMAGES", what, f"send {IMAGE_BYTES} bytes per image, or encoded pictures")
    if len(data) % IMAGE_BYTES:
        what = f"images is {len(data)} bytes long, which is no multiple of {IMAGE_BYTES} = 28 x 28"
        raise InvalidRequestError("BAD_IMAGE_SIZE", what, "send one byte per pixel, row by row, images end to end")
    return np.frombuffer(data, np.uint8).reshape(-1, *IMAGE_SHAPE)


def image_from_picture(data: bytes, *, index: int, invert: bool) -> NDArray[np.uint8]:
    """A PNG, JPEG or WebP of any size and colour -> (1, 28, 28) uint8.

    `invert` is for what is dark on a light background. `index` is the picture's place in the request, for the message
    of the InvalidRequestError that is raised where it cannot be decoded or is too large to be.
    """
    try:
        header = read_header(data)
    except BrokenHeaderError as error:
        raise _bad_picture(index, str(error), AS_AN_IMAGE_FILE) from None
    size = f"a {header.format} of {header.width} x {header.height} pixels"
    num_pixels, limit = header.width * header.height, _max_pixels(header)
    if num_pixels > limit:
        scans = f" in {header.num_scans} scans" if header.num_scans else ""
        raise _bad_picture(index, f"is {size}{scans}: {num_pixels:,} in all, the limit is {limit:,}", SMALLER)
    try:
        picture = _decode(header)
        return _centred(_upright(_shrunk(_light_on_black(picture, invert)), header.orientation))
    except MemoryError:
        raise _bad_picture(index, f"is {size}, for which there is no memory", SMALLER) from None
    except Exception:  # fed with hostile bytes, a decoder may raise anything; its words are not for clients
        raise _bad_picture(index, f"is {size} that is damaged or breaks off", AS_AN_IMAGE_FILE) from None


def _bad_picture(index: int, what: str, cure: str) -> InvalidRequestError:
    return InvalidRequestError("BAD_PICTURE", f"pictures[{index}] {what}", cure)


def _max_pixels(header: PictureHeader) -> int:
    if header.format != "JPEG":
        return MAX_PICTURE_PIXELS
    if header.num_scans == 0:
        return MAX_JPEG_PIXELS
    return min(MAX_SCANNED_JPEG_PIXELS, MAX_PIXELS_TIMES_SCANS // header.num_scans)


def _decode(header: PictureHeader) -> Image.Image:
    picture = DECODERS[header.format](BytesIO(header.data))
    if picture.size != (header.width, header.height):
        raise ValueError("the decoder reads another size from the header than the one that was checked")
    # Leaves JPEG's decoder four pixels per pixel of the result, and its colours undecoded; nothing to the others.
    longest = max(picture.size)
    picture.draft("L", (max(1, picture.width * 4 * EDGE // longest), max(1, picture.height * 4 * EDGE // longest)))
    picture.load()
    return picture


def _light_on_black(picture: Image.Image, invert: bool) -> Image.Image:
    """Grayscale, laid over the background (white if inverted), which then ends at 0."""
    gray, alpha = _gray_and_alpha(picture)
    if invert:
        gray = ImageChops.invert(gray)
    return gray if alpha is None else ImageChops.multiply(gray, alpha)


def _gray_and_alpha(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    if picture.mode == "I;16":
        values = np.asarray(picture)  # (H, W) uint16
        gray = Image.fromarray((values >> 8).astype(np.uint8))  # the high byte, as for 16-bit colours
        clear = picture.info.get("transparency")
        return gray, None if clear is None else Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        colours = picture.convert("RGBA")
        return colours.convert("L"), colours.getchannel("A")
    return picture.convert("L"), None


def _shrunk(gray: Image.Image) -> Image.Image:
    """The longest edge becomes 28; small pictures grow."""
    longest = max(gray.size)
    size = (max(1, round(gray.width * EDGE / longest)), max(1, round(gray.height * EDGE / longest)))
    # Averaging whole blocks first, down to three times the size, looks the same and takes a tenth of the time.
    return gray.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


# How a picture stored with this EXIF orientation is turned upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(gray: Image.Image, orientation: int) -> Image.Image:
    return gray.transpose(TURNS[orientation]) if orientation in TURNS else gray


def _centred(gray: Image.Image) -> NDArray[np.uint8]:
    """(h, w) -> (1, 28, 28), what is missing filled with 0."""
    image = np.zeros(IMAGE_SHAPE, np.uint8)
    top, left = (EDGE - gray.height) // 2, (EDGE - gray.width) // 2
    image[0, top : top + gray.height, left : left + gray.width] = np.asarray(gray)
    return image
