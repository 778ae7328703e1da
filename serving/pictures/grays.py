"""Converts a picture's colours to gray and alpha, 8 bits each, whatever the samples were stored in.

Pillow decodes nearly everything right. What it leaves to us: a transparent gray is stored in the file's depth, and of
colours in 16 bits only the upper byte of each sample is decoded.
"""

from io import BytesIO

import numpy as np
from PIL import Image, ImageChops
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile

from serving.pictures.parts import Parts

# How Pillow decodes 16-bit colours (the upper bytes), and how it decodes the lower ones instead.
LOWER_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L", "LA;16B": "RGBA"}


def gray_and_alpha(picture: ImageFile, parts: Parts) -> tuple[Image.Image, Image.Image | None]:
    """Decodes the picture into two images of mode "L"; the alpha is None if there is none."""
    packing = picture.tile[0].args if picture.format == "PNG" else None
    picture.load()
    clear = picture.info.get("transparency")  # a gray or a colour, or a place in the palette, or the palette's alphas
    says = max(parts.notes.get("sbit", b""), default=0)
    if picture.mode == "I;16":
        return _from_16_bit_grays(picture, clear, says)
    colours: Image.Image = picture
    if packing in LOWER_BYTES:
        colours = _from_16_bit_colours(picture, parts.pixels, str(packing), says)
    elif clear is not None:
        if packing in ("L;2", "L;4"):
            picture.info["transparency"] = clear * (85 if packing == "L;2" else 17) % 256
        colours = picture.convert("LA" if picture.mode in ("1", "L") else "RGBA")
    return colours.convert("L"), colours.getchannel("A") if "A" in colours.getbands() else None


# --- 16 bits a sample ------------------------------------------------------------------------------------------------


def _bits_in_use(highest: int, says: int) -> int:
    """Returns how many of 16 bits hold samples whose largest upper byte is `highest`; `says` is sBIT, or 0.

    PNG wants samples of fewer bits scaled up to 16, but what cameras and scanners deliver is often stored as it is.
    """
    choices = (min(16, max(8, says)),) if says else (8, 10, 12, 14)
    return next((bits for bits in choices if highest < 1 << (bits - 8)), 16)


def _from_16_bit_grays(picture: Image.Image, clear: int | None, says: int) -> tuple[Image.Image, Image.Image | None]:
    values = np.asarray(picture)  # (H, W) uint16
    bits = _bits_in_use(int(values.max()) >> 8, says)
    gray = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    return gray, None if clear is None else Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))


def _from_16_bit_colours(upper: Image.Image, pixels: bytes, packing: str, says: int) -> Image.Image:
    """Converts 16-bit colours; `upper` holds the upper bytes, and the lower ones are decoded only if they matter."""
    clear = upper.info.get("transparency")
    highest: list[int] = np.asarray(upper.getextrema())[:, 1].tolist()  # of each band
    bits = _bits_in_use(max(highest[:3]), says)
    if bits == 16 and clear is None:
        return upper
    lower = _lower_bytes(pixels, packing)
    bits_of_bands = [bits] * 3 + [bits if band < 1 << (bits - 8) else 16 for band in highest[3:]]
    colours = ImageChops.add(
        upper.point([value << (16 - bits) & 255 for bits in bits_of_bands for value in range(256)]),
        lower.point([value >> (bits - 8) for bits in bits_of_bands for value in range(256)]),
    )
    if clear is not None:  # what differs in either byte is opaque
        colours.putalpha(
            ImageChops.lighter(
                _alpha_beside(upper, [sample >> 8 for sample in clear]),
                _alpha_beside(lower, [sample & 255 for sample in clear]),
            )
        )
    return colours


def _lower_bytes(pixels: bytes, packing: str) -> Image.Image:
    """Decodes the picture once more, for the lower byte of each sample."""
    picture = PngImageFile(BytesIO(pixels))
    picture.tile = [tile._replace(args=LOWER_BYTES[packing]) for tile in picture.tile]
    picture.load()
    if packing != "LA;16B":
        return picture
    _, gray, _, alpha = picture.split()  # of gray the upper byte and the lower, of alpha the upper and the lower
    return Image.merge("RGBA", (gray, gray, gray, alpha))


def _alpha_beside(colours: Image.Image, clear: list[int]) -> Image.Image:
    colours.info["transparency"] = tuple(clear)
    return colours.convert("RGBA").getchannel("A")
