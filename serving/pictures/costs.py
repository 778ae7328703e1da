"""Reads a picture's header, and says from it what decoding will cost and how much a picture and a request may take.

A file of some bytes can stand for millions of pixels. What a pixel costs depends on how it is stored, so pixels are
weighed: the unit is a pixel of a JPEG that is read row by row, which its decoder scales down 8 times on the way.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from serving.errors import InvalidRequestError, PictureError
from serving.pictures.kinds import format_of
from serving.pictures.parts import FRAMES, MAX_PARTS, PROGRESSIVE_FRAMES, SCAN, end_of_scans, jpeg_segments

PNG_HEADER = struct.Struct(">12x4sIIBB")  # IHDR stands first: width, height, bits a sample, type of colour
PNG_GRAY = 0
BLOCK_BYTES = 1 << 16  # of scans, counted at once: Python's other threads wait for as long

MAX_COST = 64 << 20  # of a picture, and of all pictures of a request: at most 0.25 s of one core, and 170 MB
MAX_WAITING_COST = 8 * MAX_COST  # of all requests that wait to be decoded
SMALLER = "scale it down; 28 x 28 is enough"  # the cure of a picture that costs more

# What a pixel weighs; and what it takes, CPU in ns and memory in bytes, of the cheapest and the dearest content that
# fits into a small file (Pillow 13.0, a core of an AMD EPYC). Photographs take up to 2.5 times as long, but are large.
# tests/serving/test_picture_costs.py measures it.
#                          CPU           memory
ROW_BY_ROW = 1  # JPEG     0.2 to 0.7    0.2
IN_SCANS = 4  # JPEG       2.7 to 9      3 to 8
USUAL = 4  # PNG           1.6 to 14     2 to 10
DEEP_GRAYS = 8  # PNG      6.7 to 8.5    7 to 14
WEBP = 8  #                10 to 14      16 to 19
DEEP_COLOURS = 16  # PNG   34 to 53      20, for the lower bytes are decoded in a second pass

MAX_SCANS_OF_WHOLE_SIZE = 12  # encoders write about 10; a JPEG in more may have as many pixels less

# A request's pictures are looked at before any of them is decoded; so much of each is enough for nearly all.
BEGINNING_BYTES = 1 << 18
USUAL_PARTS = 64


@dataclass(frozen=True, kw_only=True)
class Header:
    """Describes a picture before its pixels."""

    format: str  # "PNG", "JPEG" or "WebP"
    width: int
    height: int
    num_scans: int = 0  # how often a JPEG's decoder passes over all of it, held in memory; 0: once, row by row
    is_deep: bool = False  # 16 bits a sample (PNG)
    is_gray: bool = False  # and one sample a pixel (PNG)

    @property
    def num_pixels(self) -> int:
        """All of them."""
        return self.width * self.height


def header_of(format: str, data: bytes, *, most_parts: int = MAX_PARTS) -> Header:
    """Reads the header of a file that begins as one of `format`. Raises PictureError.

    Of a JPEG, `most_parts` segments are looked at. `data` may be the beginning of the file: of a JPEG, the scans in it
    are counted.
    """
    try:
        return {"PNG": _header_of_png, "JPEG": _header_of_jpeg, "WebP": _header_of_webp}[format](data, most_parts)
    except (struct.error, IndexError):
        raise PictureError("breaks off before its pixels end") from None


def _header_of_png(data: bytes, _most_parts: int) -> Header:
    kind, width, height, depth, colour = PNG_HEADER.unpack_from(data)
    if kind != b"IHDR":
        raise PictureError("is a PNG that is damaged: it does not begin with its size")
    return Header(format="PNG", width=width, height=height, is_deep=depth == 16, is_gray=colour == PNG_GRAY)


def _header_of_jpeg(data: bytes, most_parts: int) -> Header:
    frame = b""
    for marker, start, end in jpeg_segments(data, most_parts):  # the last is the first scan's
        if marker in FRAMES:
            frame = data[start:end]  # of two, Pillow takes the last, and libjpeg none
    height, width = struct.unpack_from(">HH", frame, 5)
    is_row_by_row = frame[1] not in PROGRESSIVE_FRAMES and data[start + 4] == frame[9]  # all components in one scan
    num_scans = 0 if is_row_by_row else _num_scans(data, start)
    return Header(format="JPEG", width=width, height=height, num_scans=num_scans)


def _num_scans(data: bytes, start: int) -> int:
    mark, end = bytes([0xFF, SCAN]), end_of_scans(data, start)
    blocks = range(start, end, BLOCK_BYTES)
    return sum(data.count(mark, place, min(place + BLOCK_BYTES + 1, end)) for place in blocks)  # none is cut in two


def _header_of_webp(data: bytes, _most_parts: int) -> Header:
    kind = data[12:16]
    if kind == b"VP8X":  # has more than pixels: the size is the canvas'
        sides = [int.from_bytes(data[place : place + 3], "little") + 1 for place in (24, 27)]
        complete = len(data) >= 30
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        sides, complete = [(bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1], True
    else:
        sides, complete = [side & 0x3FFF for side in struct.unpack_from("<HH", data, 26)], kind == b"VP8 "
    if not complete:
        raise PictureError("is a WebP that is damaged or breaks off")
    return Header(format="WebP", width=sides[0], height=sides[1])


def weight_of(header: Header) -> int:
    """Returns what each pixel weighs."""
    if header.format == "JPEG":
        return max(IN_SCANS, -(-header.num_scans * IN_SCANS // MAX_SCANS_OF_WHOLE_SIZE)) if header.num_scans else 1
    if header.format == "WebP":
        return WEBP
    if header.is_deep:
        return DEEP_GRAYS if header.is_gray else DEEP_COLOURS
    return USUAL


def cost_of(header: Header) -> int:
    """Returns what decoding the picture costs. Raises PictureError if it may not cost so much."""
    weight = weight_of(header)
    limit = MAX_COST // weight
    if header.num_pixels > limit:
        depth = " of 16 bits" if header.is_deep else ""
        scans = f" in {header.num_scans} scans" if header.num_scans else ""
        what = f"is a {header.format} of {header.width} x {header.height} pixels{depth}{scans}"
        raise PictureError(f"{what}: {header.num_pixels:,} in all, the limit is {limit:,}", SMALLER)
    return header.num_pixels * weight


def cost_so_far(beginning: bytes, index: int, num_pictures: int, before: int) -> int:
    """Returns what decoding a request's pictures up to this one costs, from its first BEGINNING_BYTES.

    `before` is the cost of those before it. Raises InvalidRequestError for too many, and for a picture of which it is
    known already that it cannot be decoded.
    """
    try:
        cost = before + _cost_from(beginning)
    except PictureError as error:
        raise error.at(index) from None
    if cost > MAX_COST:
        what = f"the first {index + 1} of {num_pictures} pictures have {cost:,} pixels, weighed by their formats"
        cure = "send fewer pictures in a request, or scale them down; 28 x 28 is enough"
        raise InvalidRequestError("TOO_MANY_PIXELS", f"{what}; the limit is {MAX_COST:,}", cure)
    return cost


def cost_of_request(pictures: Sequence[bytes]) -> int:
    """Returns what decoding all pictures of a request costs. Raises InvalidRequestError as `cost_so_far`."""
    cost = 0
    for index, picture in enumerate(pictures):
        cost = cost_so_far(picture[:BEGINNING_BYTES], index, len(pictures), cost)
    return cost


def _cost_from(beginning: bytes) -> int:
    format = format_of(beginning)
    try:
        header = header_of(format, beginning, most_parts=USUAL_PARTS)
    except PictureError:
        if format == "JPEG":  # whose size stands behind what cameras add to it: the whole of it will tell
            return MAX_COST
        raise
    return cost_of(header)
