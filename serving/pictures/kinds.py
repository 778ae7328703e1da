"""Says what bytes are: raw images, or, by how they begin, pictures to be decoded or what people send in their place."""

import re
from dataclasses import dataclass

import numpy as np

from atelier.contract import IMAGE_BYTES, IMAGE_SHAPE, Images
from serving.errors import InvalidRequestError, PictureError

BEGINNING_BYTES = 1024  # enough to know every kind by


@dataclass(frozen=True)
class Kind:
    """Says what bytes look like, and what their sender can do about it."""

    name: str
    begins: re.Pattern[bytes]
    cure: str  # empty for what is decoded here


def _kind(name: str, begins: bytes, cure: str = "convert it to PNG") -> Kind:
    return Kind(name, re.compile(begins, re.DOTALL), cure)


# Raw images are held against these too, so each is four bytes or more that no garment begins with.
KINDS = (
    _kind("PNG", rb"\x89PNG\r\n\x1a\n", ""),
    _kind("JPEG", rb"\xff\xd8\xff[\xc0-\xfe]", ""),
    _kind("WebP", rb"RIFF.{4}WEBP", ""),
    _kind("AVIF", rb".{4}ftyp.{0,24}avi[fs]", "convert it to JPEG"),
    _kind("HEIC, an iPhone photo", rb".{4}ftyp(?:he[ivx]|mif1|msf1)", "convert it to JPEG"),
    _kind("a film", rb".{4}ftyp", "send a picture of it as JPEG"),
    _kind("GIF", rb"GIF8[79]a"),
    _kind("BMP", rb"BM.{4}\0{4}.{4}[\x0c-\x7c]\0{3}"),
    _kind("TIFF", rb"II\*\0|MM\0\*"),
    _kind("SVG", rb"\s{0,99}(?:<svg|<(?:\?xml|!--|!DOCTYPE svg).{0,900}<svg)", "draw it as PNG"),
    _kind("PDF", rb"%PDF-", "save the picture in it as PNG"),
    _kind(
        "a web page",
        rb"(?i:(?:\xef\xbb\xbf)?\s{0,99}<(?:!doctype|html|head|body|script|\?xml|!--))",
        "the download failed: save the picture itself",
    ),
    _kind("base64 text", rb"iVBORw0K|/9j/|UklGR|data:image/", "send the bytes that it stands for"),
)
ANY_KIND = re.compile(b"|".join(b"(?:" + kind.begins.pattern + b")" for kind in KINDS), re.DOTALL)


def kind_of(data: bytes) -> Kind | None:
    """Returns the kind of picture, or of something else, that bytes begin like; None if it is not known here."""
    if not ANY_KIND.match(data):
        return None
    return next(kind for kind in KINDS if kind.begins.match(data))


def format_of(data: bytes) -> str:
    """Returns "PNG", "JPEG" or "WebP", of which it begins as one. Raises PictureError for all else."""
    kind = kind_of(data)
    if kind is None:
        what = f"begins with the bytes {data[:8].hex(' ')}, as no PNG, JPEG or WebP does" if data else "is empty"
        raise PictureError(what)
    if kind.cure:
        raise PictureError(f"looks like {kind.name}", kind.cure)
    return kind.name


def images_from_bytes(data: bytes) -> Images:
    """Views raw images end to end as (N, 1, 28, 28) uint8, read-only. Raises InvalidRequestError."""
    if not data:
        what = "the request holds neither images nor pictures"
        raise InvalidRequestError("NO_IMAGES", what, f"send {IMAGE_BYTES} bytes per image, or encoded pictures")
    if len(data) % IMAGE_BYTES or not data.startswith(b"\0\0\0\0"):  # garments begin so, pictures never
        check_raw_images(data[:BEGINNING_BYTES], len(data))
    return np.frombuffer(data, np.uint8).reshape(-1, *IMAGE_SHAPE)


def check_raw_images(beginning: bytes, num_bytes: int) -> None:
    """Raises InvalidRequestError unless bytes that begin so may be raw images."""
    kind = kind_of(beginning)
    cure = "send one byte per pixel, row by row, images end to end"
    if kind is not None:
        cure = f"{kind.cure} and send it as pictures" if kind.cure else "send it as pictures"
    if num_bytes % IMAGE_BYTES:
        what = f"images is {num_bytes} bytes long, which is no multiple of {IMAGE_BYTES} = 28 x 28"
        raise InvalidRequestError("BAD_IMAGE_SIZE", f"{what}, and looks like {kind.name}" if kind else what, cure)
    if kind is not None:
        raise InvalidRequestError("PICTURE_IN_IMAGES", f"images looks like {kind.name}", cure)
