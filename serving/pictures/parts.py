"""Takes apart what a stranger sends, before anything decodes it.

A kilobyte of a picture's comments unfolds into a megabyte, and a decoder walks, unpacks and keeps whatever there is. So
the parts of a file are walked here first, in bounded steps, and only those that hold pixels go on to Pillow.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from serving.errors import PictureError

# No picture has more parts than this up to its pixels: encoders write tens of them, and walking 4,096 takes 2 ms.
MAX_PARTS = 4096
MAX_FRAMES = 1024  # of an animation, of which the first one counts
MAX_UNPACKED_BYTES = 1 << 18  # of a text; EXIF and XMP take a few thousand


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A picture that is still encoded, and what stands beside its pixels."""

    pixels: bytes  # a file of the same format, with nothing in it but what decoding needs
    notes: dict[str, bytes] = field(default_factory=dict)  # "exif", "xmp" and a PNG's "sbit", as far as there are any


def parts_of(format: str, data: bytes) -> Parts:
    """Returns the parts of a file that begins as one of `format` ("PNG", "JPEG", "WebP"). Raises PictureError."""
    try:
        if format == "PNG":
            return _parts_of_png(data)
        if format == "JPEG":
            return _parts_of_jpeg(data)
    except (struct.error, IndexError):
        raise PictureError("breaks off before its pixels end") from None
    return _parts_of_webp(data)


# --- PNG: a signature, then chunks of (length, kind, body, checksum) -------------------------------------------------

PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT"}
PNG_NOTES = {b"eXIf", b"sBIT", b"tEXt", b"zTXt", b"iTXt"}
PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"


def _parts_of_png(data: bytes) -> Parts:
    kept, notes, kind, position = [data[:8]], dict[str, bytes](), b"", 8
    for _ in range(MAX_PARTS):
        if position + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if kind in PNG_PIXELS:
            kept.append(data[position:end])
        elif kind == b"acTL":
            _check_num_frames("PNG", *struct.unpack_from(">I", data, position + 8))
        elif kind in PNG_NOTES:
            _read_png_note(notes, kind, data[position + 8 : end - 4])
        position = end
    else:
        if kind == b"IDAT" or kept[-1][4:8] != b"IDAT":  # behind the pixels there may be more: an animation's frames
            raise PictureError(f"is a PNG of more than {MAX_PARTS:,} chunks")
    return Parts(pixels=b"".join([*kept, PNG_END]), notes=notes)


def _read_png_note(notes: dict[str, bytes], kind: bytes, body: bytes) -> None:
    """Adds EXIF, XMP or sBIT to the notes, the first of each."""
    keyword, _, text = body.partition(b"\0")
    if kind in (b"sBIT", b"eXIf"):
        notes.setdefault(kind.decode().lower(), body)
    elif keyword == b"XML:com.adobe.xmp" and "xmp" not in notes:
        notes["xmp"] = _unpacked(kind, text)
    elif keyword == b"Raw profile type exif" and "exif" not in notes:
        notes["exif"] = _unhexed(_unpacked(kind, text))


def _unpacked(kind: bytes, text: bytes) -> bytes:
    """Inflates a text from behind its keyword; empty if it is broken."""
    is_packed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    if kind == b"zTXt":
        text = text[1:]  # behind the method
    elif kind == b"iTXt":
        text = text[2:].split(b"\0", 2)[-1]  # behind flag and method, a language and a translated keyword
    if not is_packed:
        return text
    try:
        return zlib.decompressobj().decompress(text, MAX_UNPACKED_BYTES)
    except zlib.error:
        return b""


def _unhexed(profile: bytes) -> bytes:
    """Decodes ImageMagick's raw profile: a blank line, a name, a length, and lines of hexadecimals."""
    try:
        return bytes.fromhex(b"".join(profile.split(b"\n")[3:]).decode("latin-1"))
    except ValueError:
        return b""


# --- JPEG: segments of (0xFF, marker, length, body), then scans, then 0xFFD9 -----------------------------------------

FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
PROGRESSIVE_FRAMES = {0xC2, 0xC6, 0xCA, 0xCE}
# DHT, DAC, DQT and DRI are the decoder's tables; JFIF and Adobe say what the components mean.
TABLES = {0xC4, 0xCC, 0xDB, 0xDD, 0xE0, 0xEE}
NOTES = 0xE1
SCAN = 0xDA
# What begins a segment; padding, junk and markers that stand alone are skipped, as by any decoder.
SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xda-\xfe]")


def _parts_of_jpeg(data: bytes) -> Parts:
    kept, notes = [b"\xff\xd8"], dict[str, bytes]()
    for marker, start, end in jpeg_segments(data, MAX_PARTS):
        if marker in FRAMES | TABLES | {SCAN}:
            kept.append(data[start:end])
        elif marker == NOTES and data.startswith(b"Exif\0\0", start + 4):
            notes.setdefault("exif", data[start + 4 : end])
        elif marker == NOTES and data.startswith(b"http://ns.adobe.com/xap/1.0/\0", start + 4):
            notes.setdefault("xmp", data[start + 33 : end])
    return Parts(pixels=b"".join(kept), notes=notes)


def jpeg_segments(data: bytes, most: int) -> Iterator[tuple[int, int, int]]:
    """Yields (marker, start, end) of each up to the pixels, which are one: all scans, to the end of the picture.

    Raises PictureError if there are more than `most`, or no pixels.
    """
    position = 2
    for _ in range(most):
        match = SEGMENT.search(data, position)
        if match is None:
            raise PictureError("is a JPEG without pixels")
        position = match.start()
        marker, length = struct.unpack_from(">xBH", data, position)
        if length < 2:
            raise PictureError("is a damaged JPEG: a segment has no length")
        if marker == SCAN:
            yield marker, position, end_of_scans(data, position)
            return
        yield marker, position, position + 2 + length
        position += 2 + length
    raise PictureError(f"is a JPEG of more than {most:,} segments")


def end_of_scans(data: bytes, start: int) -> int:
    """Returns where a JPEG ends; behind that, phones put previews and films."""
    end = data.find(b"\xff\xd9", start)
    return end + 2 if end >= 0 else len(data)


# --- WebP: "RIFF", a length, "WEBP", then chunks of (kind, length, body) ---------------------------------------------


def _parts_of_webp(data: bytes) -> Parts:
    """Leaves all to its decoder, libwebp, which walks the chunks too, but unpacks only the first frame."""
    position, num_frames = 12, 0
    for _ in range(MAX_PARTS):
        if position + 8 > len(data):
            return Parts(pixels=data)
        kind, length = struct.unpack_from("<4sI", data, position)
        num_frames += kind == b"ANMF"
        _check_num_frames("WebP", num_frames)
        position += 8 + length + length % 2
    raise PictureError(f"is a WebP of more than {MAX_PARTS:,} chunks")


def _check_num_frames(format: str, num_frames: int) -> None:
    if num_frames > MAX_FRAMES:
        many = f"{num_frames:,} frames, the limit is {MAX_FRAMES:,}"  # which a PNG says; others are not counted on
        many = many if format == "PNG" else f"more than {MAX_FRAMES:,} frames"
        raise PictureError(f"is a {format} of {many}", "send its first frame alone")
