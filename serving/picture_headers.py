"""What a picture says of itself, read before anything decodes it: format, size, orientation.

A decoder does what a stranger's file asks for: ten kilobytes of PNG unfold into 81 million pixels, a kilobyte of its
comments into a megabyte, and a JPEG may ask for a thousand passes over the same pixels. So the header is read here
first, in one bounded walk over the file's parts, and only those parts that hold pixels go on to the decoder: no
comments, colour profiles, previews or further frames.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

# No picture has more parts than this before its pixels: encoders write tens of them, and walking 4,096 takes 2 ms.
MAX_PARTS = 4096


class BrokenHeaderError(Exception):
    """The message is what was found, worded to follow "pictures[3] "."""


@dataclass(frozen=True, kw_only=True)
class PictureHeader:
    """A picture of `width` x `height` pixels, still encoded."""

    format: str  # "PNG", "JPEG", "WEBP": Pillow's names
    width: int
    height: int
    orientation: int  # EXIF's, 1 to 8; 1 is upright
    # How often a JPEG's decoder passes over the whole picture, which it then holds in memory; 0: once, row by row.
    num_scans: int
    data: bytes  # the parts that hold pixels, as a file of that format


def read_header(data: bytes) -> PictureHeader:
    """The header of a PNG, JPEG or WebP file. Raises BrokenHeaderError, and nothing else."""
    try:
        if data.startswith(PNG_SIGNATURE):
            return _read_png(data)
        if data.startswith(b"\xff\xd8\xff"):
            return _read_jpeg(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _read_webp(data)
    except (struct.error, IndexError):
        raise BrokenHeaderError("breaks off before its pixels end") from None
    found = f"begins with the bytes {data[:8].hex(' ')}, as no PNG, JPEG or WebP does" if data else "is empty"
    raise BrokenHeaderError(found)


# --- PNG: a signature, then chunks of (length, kind, body, checksum) -------------------------------------------------

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"


def _read_png(data: bytes) -> PictureHeader:
    position = len(PNG_SIGNATURE)
    if data[position : position + 8] != b"\0\0\0\x0dIHDR":
        raise BrokenHeaderError("is a PNG that does not begin with its header")
    width, height = struct.unpack_from(">II", data, position + 8)
    orientation = 1
    kept = [PNG_SIGNATURE]
    for _ in range(MAX_PARTS):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if kind != b"IDAT" and kept[-1][4:8] == b"IDAT":
            break  # the pixels are one run of chunks; behind it come an animation's further frames
        if kind in (b"PLTE", b"tRNS", b"IDAT") or len(kept) == 1:
            _check_png_chunk(data, position, end)
            kept.append(data[position:end])
        elif kind == b"eXIf":
            orientation = _orientation_from(data[position + 8 : end - 4])
        position = end
    else:
        raise BrokenHeaderError(f"is a PNG of more than {MAX_PARTS:,} chunks")
    pixels = b"".join([*kept, PNG_END])
    return PictureHeader(format="PNG", width=width, height=height, orientation=orientation, num_scans=0, data=pixels)


def _check_png_chunk(data: bytes, position: int, end: int) -> None:
    """A chunk ends in a checksum of its kind and body; one that the file breaks off in has none."""
    (expected,) = struct.unpack_from(">I", data, end - 4)
    if zlib.crc32(memoryview(data)[position + 4 : end - 4]) != expected:
        raise BrokenHeaderError("is a damaged PNG: a checksum differs")


# --- JPEG: segments of (0xFF, marker, length, body), then scans, then 0xFFD9 -----------------------------------------

FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
PROGRESSIVE_FRAMES = {0xC2, 0xC6, 0xCA, 0xCE}
# DHT, DAC, DQT and DRI are the decoder's tables; JFIF and Adobe say what the components mean.
TABLES = {0xC4, 0xCC, 0xDB, 0xDD, 0xE0, 0xEE}
EXIF = 0xE1
SCAN = 0xDA
# What begins a segment; padding, junk and markers that stand alone are skipped, as by any decoder.
SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xda-\xfe]")


def _read_jpeg(data: bytes) -> PictureHeader:
    orientation = 1
    kept = [b"\xff\xd8"]
    frames = []
    for marker, segment in _jpeg_segments(data):
        if marker in FRAMES:
            frames.append(segment)
        if marker in FRAMES | TABLES:
            kept.append(segment)
        elif marker == EXIF and segment[4:10] == b"Exif\0\0":
            orientation = _orientation_from(segment[10:])
    if len(frames) != 1:
        raise BrokenHeaderError(f"is a JPEG of {len(frames)} frames")
    scans = segment  # the last one
    height, width, num_components = struct.unpack_from(">HHB", frames[0], 5)
    row_by_row = frames[0][1] not in PROGRESSIVE_FRAMES and scans[4] == num_components
    return PictureHeader(
        format="JPEG",
        width=width,
        height=height,
        orientation=orientation,
        num_scans=0 if row_by_row else scans.count(bytes([0xFF, SCAN])),
        data=b"".join([*kept, scans]),
    )


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, segment) of each up to the pixels, which are one: all scans, to the end of the picture."""
    position = 2
    for _ in range(MAX_PARTS):
        match = SEGMENT.search(data, position)
        if match is None:
            raise BrokenHeaderError("is a JPEG without pixels")
        position = match.start()
        marker, length = struct.unpack_from(">xBH", data, position)
        if length < 2:
            raise BrokenHeaderError("is a damaged JPEG: a segment has no length")
        if marker == SCAN:
            end = data.find(b"\xff\xd9", position)  # behind it, phones put previews and films
            yield marker, data[position : end + 2] if end >= 0 else data[position:]
            return
        yield marker, data[position : position + 2 + length]
        position += 2 + length
    raise BrokenHeaderError(f"is a JPEG of more than {MAX_PARTS:,} segments")


# --- WebP: RIFF, chunks of (kind, length, body), the first of which holds the size of the canvas ---------------------


def _read_webp(data: bytes) -> PictureHeader:
    kind = data[12:16]
    if kind == b"VP8X":
        low, high = struct.unpack_from("<II", data[24:30] + b"\0\0\0\0", 0)
        width, height = 1 + (low & 0xFFFFFF), 1 + (low >> 24 | high << 8)
    elif kind == b"VP8 ":
        width, height = (edge & 0x3FFF for edge in struct.unpack_from("<HH", data, 26))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        raise BrokenHeaderError("is a WebP without pixels")
    orientation = _webp_orientation(data)
    return PictureHeader(format="WEBP", width=width, height=height, orientation=orientation, num_scans=0, data=data)


def _webp_orientation(data: bytes) -> int:
    position = 12
    for _ in range(MAX_PARTS):
        if position + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind == b"EXIF":
            return _orientation_from(data[position + 8 : position + 8 + length].removeprefix(b"Exif\0\0"))
        position += 8 + length + length % 2
    return 1


# --- EXIF: a TIFF directory of (tag, type, count, value), twelve bytes each ------------------------------------------

ORIENTATION = 0x0112


def _orientation_from(exif: bytes) -> int:
    """1 to 8; upright where EXIF says nothing, or makes no sense: cameras write much that does not."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", exif, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", exif, directory)
        for entry in range(min(num_entries, MAX_PARTS)):
            tag, value = struct.unpack_from(f"{order}H6xH", exif, directory + 2 + 12 * entry)
            if tag == ORIENTATION:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
