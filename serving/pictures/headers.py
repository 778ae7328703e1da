"""Reads a picture's size from its header, and what else says how much decoding it will take."""

import struct
from dataclasses import dataclass

from serving.pictures.parts import FRAMES, MAX_PARTS, PROGRESSIVE_FRAMES, SCAN, end_of_scans, jpeg_segments
from serving.pictures.refusals import PictureError

PNG_HEADER = struct.Struct(">12x4sIIBB")  # IHDR stands first: width, height, bits a sample, type of colour
PNG_GRAY = 0
BLOCK_BYTES = 1 << 16  # of scans, counted at once: Python's other threads wait for as long


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
