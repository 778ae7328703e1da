"""What pictures turn into."""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.serving.pictures import (
    COLOUR,
    COLOUR_ALPHA,
    GRAY,
    GRAY_ALPHA,
    PALETTE,
    WHITE,
    cpu_seconds,
    decoded,
    encoded,
    garment,
    png,
    png_chunk,
)


@pytest.mark.parametrize("options", [{}, {"format": "WEBP", "lossless": True}])
def test_28_x_28_grayscale_passes_unchanged(options: dict[str, Any]) -> None:
    pixels = garment()
    assert np.array_equal(decoded(encoded(Image.fromarray(pixels), **options)), pixels)


# --- Pictures of 16 bits a sample -------------------------------------------------------------------------------------


def of_16_bits(pixels: NDArray[np.uint8], bits: int, colour: int, opaque: int = 0xFFFF, **chunks: bytes) -> bytes:
    """`pixels` as a PNG of 16 bits a sample, of which only the lower `bits` are in use, and these are full."""
    samples = (pixels.astype(np.uint16) << (bits - 8) | pixels >> (16 - bits))[..., np.newaxis]
    if colour in (COLOUR, COLOUR_ALPHA):
        samples = samples.repeat(3, axis=2)
    if colour in (GRAY_ALPHA, COLOUR_ALPHA):
        samples = np.concatenate([samples, np.full((*pixels.shape, 1), opaque, np.uint16)], axis=2)
    return png(samples, 16, colour, **chunks)


EVERY_COLOUR = [GRAY, COLOUR, GRAY_ALPHA, COLOUR_ALPHA]


@pytest.mark.parametrize("colour", EVERY_COLOUR)
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_16_bit_samples_are_scaled_by_the_bits_that_hold_the_largest(bits: int, colour: int) -> None:
    pixels = garment()
    assert pixels.max() == WHITE
    assert np.array_equal(decoded(of_16_bits(pixels, bits, colour)), pixels)
    assert np.array_equal(decoded(of_16_bits(pixels, bits, colour), invert=True), 255 - pixels)


@pytest.mark.parametrize("colour", [GRAY_ALPHA, COLOUR_ALPHA])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_alpha_is_scaled_like_the_samples_beside_it(bits: int, colour: int) -> None:
    pixels = garment()
    opaque = of_16_bits(pixels, bits, colour, opaque=(1 << bits) - 1)
    half = of_16_bits(pixels, bits, colour, opaque=1 << (bits - 1))
    assert np.array_equal(decoded(opaque), pixels)
    assert abs(decoded(half).astype(int) - pixels / 2).max() <= 1


@pytest.mark.parametrize("colour", EVERY_COLOUR)
def test_16_bit_picture_that_says_so_may_be_dark(colour: int) -> None:
    pixels = garment() // 16
    dark = of_16_bits(pixels, 16, colour, sBIT=bytes([16] * 4))
    assert np.array_equal(decoded(dark), pixels)


@pytest.mark.parametrize("colour", EVERY_COLOUR)
def test_bits_that_the_picture_says_it_has_count(colour: int) -> None:
    pixels = garment() // 2
    of_12_bits = of_16_bits(pixels, 12, colour, sBIT=bytes([12] * 4))  # the largest would fit into 11
    assert np.array_equal(decoded(of_12_bits), pixels)
    scaled_as_png_has_it = of_16_bits(pixels, 16, colour, sBIT=bytes([12] * 4))
    assert np.array_equal(decoded(scaled_as_png_has_it), pixels)


@pytest.mark.parametrize("says", [b"", b"\0", b"\xff" * 3])
def test_bits_that_make_no_sense_do_not_fail_the_picture(says: bytes) -> None:
    assert np.array_equal(decoded(of_16_bits(garment(), 16, COLOUR, sBIT=says)), garment())


def test_black_picture_of_16_bits_stays_black() -> None:
    assert decoded(of_16_bits(garment() * 0, 16, COLOUR)).max() == 0


# --- Colours ---------------------------------------------------------------------------------------------------------


def test_invert_turns_dark_on_light_into_light_on_dark() -> None:
    pixels = garment()
    assert np.array_equal(decoded(encoded(Image.fromarray(pixels)), invert=True), 255 - pixels)


@pytest.mark.parametrize(
    ("picture", "gray"),
    [
        (Image.new("1", (28, 28), 1), 255),
        (Image.new("L", (28, 28), 100), 100),
        (Image.new("RGB", (28, 28), (255, 0, 0)), 76),
        (Image.new("RGB", (28, 28), (100, 100, 100)).quantize(), 100),
        (Image.new("LA", (28, 28), (200, 255)), 200),
        (Image.new("LA", (28, 28), (200, 128)), 100),
        (Image.new("RGBA", (28, 28), (200, 200, 200, 0)), 0),
    ],
    ids=lambda value: getattr(value, "mode", value),
)
def test_every_png_colour_becomes_gray_over_black(picture: Image.Image, gray: int) -> None:
    found = decoded(encoded(picture))
    assert found.min() == found.max()
    assert abs(int(found[0, 0]) - gray) <= 1


@pytest.mark.parametrize(("mode", "colour", "gray"), [("L", 70, 70), ("RGB", "red", 76), ("CMYK", (0, 0, 0, 255), 0)])
@pytest.mark.parametrize("progressive", [False, True])
def test_every_jpeg_colour_becomes_gray(mode: str, colour: Any, gray: int, progressive: bool) -> None:
    found = decoded(encoded(Image.new(mode, (99, 99), colour), "JPEG", progressive=progressive))
    assert abs(int(found.max()) - gray) <= 1
    assert abs(int(found.min()) - gray) <= 1


CLEAR_COLOURS = [(GRAY, 1), (GRAY, 2), (GRAY, 4), (GRAY, 8), (GRAY, 16), (COLOUR, 8), (COLOUR, 16)]


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize(("colour", "depth"), CLEAR_COLOURS)
@pytest.mark.parametrize("clear_is", ["white", "gray"])
def test_transparent_colour_is_as_good_as_an_alpha_channel(
    clear_is: str, colour: int, depth: int, invert: bool
) -> None:
    white = (1 << depth) - 1
    clear = white if clear_is == "white" else white // 3
    chance = np.random.default_rng(7)
    samples = chance.integers(0, white + 1, (280, 280, 3 if colour == COLOUR else 1))
    samples[:, :140] = clear
    samples[70:90] ^= 1  # by a hair another colour
    declared = struct.pack(f">{samples.shape[2]}H", *[clear] * samples.shape[2])

    to_8_bits = (samples >> 8 if depth == 16 else samples * 255 // white).astype(np.uint8)
    alpha = np.where((samples == clear).all(axis=2, keepdims=True), 0, WHITE).astype(np.uint8)
    with_alpha = png(np.concatenate([to_8_bits, alpha], axis=2), 8, COLOUR_ALPHA if colour == COLOUR else GRAY_ALPHA)
    assert np.array_equal(
        decoded(png(samples, depth, colour, tRNS=declared), invert=invert), decoded(with_alpha, invert=invert)
    )


def test_transparent_gray_may_have_12_of_16_bits() -> None:
    samples = garment().astype(np.uint16)[..., np.newaxis] << 4
    samples[:14] = 4095
    found = decoded(png(samples, 16, GRAY, tRNS=struct.pack(">H", 4095)), invert=True)
    assert found[:14].max() == 0
    assert np.array_equal(found[14:], 255 - garment()[14:])


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("alphas", [b"\0", b"\xff\0", b"\x80\x40"])
def test_transparent_palette_is_as_good_as_an_alpha_channel(alphas: bytes, depth: int, invert: bool) -> None:
    chance = np.random.default_rng(8)
    palette = chance.integers(0, 256, (1 << depth, 3), np.uint8)
    indices = chance.integers(0, 1 << depth, (280, 280, 1))
    alpha = np.frombuffer(alphas.ljust(1 << depth, b"\xff"), np.uint8)[indices]
    with_alpha = png(np.concatenate([palette[indices[..., 0]], alpha], axis=2), 8, COLOUR_ALPHA)
    data = png(indices, depth, PALETTE, PLTE=palette.tobytes(), tRNS=alphas)
    assert np.array_equal(decoded(data, invert=invert), decoded(with_alpha, invert=invert))


def test_inverted_transparency_lies_on_white() -> None:
    half_black = encoded(Image.new("LA", (28, 28), (0, 128)))
    assert abs(int(decoded(half_black, invert=True).max()) - 128) <= 1
    assert decoded(half_black).max() == 0


@pytest.mark.parametrize(("width", "height"), [(280, 140), (14, 7), (2000, 1000)])
def test_longest_edge_becomes_28_and_the_rest_is_centred_background(width: int, height: int) -> None:
    found = decoded(encoded(Image.new("L", (width, height), WHITE)))
    assert (found[7:21] == WHITE).all()
    assert found[:7].max() == found[21:].max() == 0


def test_background_is_0_beside_an_inverted_picture_too() -> None:
    found = decoded(encoded(Image.new("L", (10, 20), 0)), invert=True)
    assert (found[:, 7:21] == WHITE).all()
    assert found[:, :7].max() == found[:, 21:].max() == 0


def test_one_pixel_wide_picture_keeps_a_column() -> None:
    found = decoded(encoded(Image.new("L", (1, 5000), WHITE)))
    assert (found.max(axis=0) > 0).sum() == 1


def test_large_pictures_are_averaged_not_sampled() -> None:
    checkerboard = np.indices((560, 560)).sum(axis=0) % 2 * WHITE
    found = decoded(encoded(Image.fromarray(checkerboard.astype(np.uint8))))
    assert abs(found.astype(int) - 127).max() <= 2


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture_upright(format: str, orientation: int) -> None:
    quadrants = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((14, 14), np.uint8))
    stored_as = [lambda q: q, np.fliplr, lambda q: np.rot90(q, 2), np.flipud]  # what 1 to 4 say was done
    stored_as += [np.transpose, np.rot90, lambda q: np.rot90(q, 2).T, lambda q: np.rot90(q, -1)]  # 5 to 8
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(stored_as[orientation - 1](quadrants)))
    options = {"quality": 100} if format == "JPEG" else {"lossless": True}
    found = decoded(encoded(stored.convert("RGB"), format, exif=exif, **options))
    assert abs(found.astype(int) - quadrants).max() <= 3


RIGHT_SIDE_UP = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((14, 14), np.uint8))
LYING = np.ascontiguousarray(np.rot90(RIGHT_SIDE_UP))  # what orientation 6 says was done
EXIF_6 = b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0) + bytes(4)
XMP_6 = b'<x:xmpmeta><rdf:Description tiff:Make="Phone" tiff:Orientation="6"/></x:xmpmeta>'
XMP_6_AS_ELEMENT = b"<rdf:Description><tiff:Orientation>6</tiff:Orientation></rdf:Description>"
PROFILE_6 = f"\nexif\n{len(EXIF_6) + 6:8}\n{(b'Exif' + bytes(2) + EXIF_6).hex()}\n".encode()


def with_text(key: str, text: bytes, *, zip: bool = False, is_international: bool = False) -> bytes:
    """The lying picture, and a text."""
    info = PngInfo()
    if is_international:
        info.add_itxt(key, text, zip=zip)
    else:
        info.add_text(key, text, zip=zip)
    return encoded(Image.fromarray(LYING), pnginfo=info)


def lying_png(chunk: bytes = b"", behind: bytes = b"") -> bytes:
    """The lying picture with a chunk before or behind its pixels."""
    data = encoded(Image.fromarray(LYING))
    return data[:33] + chunk + data[33:-12] + behind + data[-12:]


def lying(format: str, **options: Any) -> bytes:
    """The lying picture in another format."""
    return encoded(Image.fromarray(LYING).convert("RGB"), format, quality=100, **options)


TURNED: dict[str, Callable[[], bytes]] = {
    "eXIf": lambda: lying_png(png_chunk(b"eXIf", EXIF_6)),
    "eXIf behind the pixels": lambda: lying_png(behind=png_chunk(b"eXIf", EXIF_6)),
    "raw profile as text": lambda: with_text("Raw profile type exif", PROFILE_6),
    "raw profile as packed text": lambda: with_text("Raw profile type exif", PROFILE_6, zip=True),
    "XMP in PNG": lambda: with_text("XML:com.adobe.xmp", XMP_6, is_international=True),
    "packed XMP in PNG": lambda: with_text("XML:com.adobe.xmp", XMP_6, is_international=True, zip=True),
    "XMP behind the pixels": lambda: lying_png(
        behind=png_chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + XMP_6_AS_ELEMENT)
    ),
    "XMP in JPEG": lambda: lying("JPEG", xmp=XMP_6),
    "XMP as an element in JPEG": lambda: lying("JPEG", xmp=XMP_6_AS_ELEMENT),
    "XMP in WebP": lambda: lying("WEBP", lossless=True, xmp=XMP_6),
    "EXIF in WebP": lambda: lying("WEBP", lossless=True, exif=EXIF_6),
    "EXIF and XMP that disagree": lambda: lying("JPEG", exif=b"Exif\0\0" + EXIF_6, xmp=XMP_6.replace(b"6", b"3")),
    "broken EXIF and XMP": lambda: lying("JPEG", exif=b"Exif\0\0MM\0*\0\0", xmp=XMP_6),
}


@pytest.mark.parametrize("place", TURNED)
def test_orientation_is_found_wherever_it_is_written(place: str) -> None:
    assert abs(decoded(TURNED[place]()).astype(int) - RIGHT_SIDE_UP).max() <= 3


NONSENSE = {
    "no TIFF": b"nonsense",
    "no directory": b"II*\0\xff\xff\xff\xff",
    "breaks off": EXIF_6[:16],
    "orientation 0": EXIF_6.replace(b"\0\6", b"\0\0"),
    "orientation 9": EXIF_6.replace(b"\0\6", b"\0\x09"),
    "thousands of entries": b"II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 1, 7, 50_000, 8) * 5000,
}


@pytest.mark.parametrize("exif", NONSENSE.values(), ids=NONSENSE)
def test_orientation_that_makes_no_sense_is_ignored(exif: bytes) -> None:
    profile = f"\nexif\n{len(exif):8}\n{exif.hex()}\n".encode()
    for data in (
        lying_png(png_chunk(b"eXIf", exif)),
        lying_png(behind=png_chunk(b"eXIf", exif)),
        with_text("Raw profile type exif", profile, zip=True),
        lying("JPEG", exif=b"Exif\0\0" + exif),
        lying("WEBP", lossless=True, exif=exif),
    ):
        assert abs(decoded(data).astype(int) - LYING).max() <= 3


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"Raw profile type exif\0\0nonsense"),
        png_chunk(b"zTXt", b"Raw profile type exif\0\1"),
        png_chunk(b"zTXt", b"Raw profile type exif"),
        png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(5_000_000))),
        png_chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 4\nno hexadecimals\n"),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0"),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0nonsense"),
    ],
    ids=lambda chunk: str(chunk[4:40]),
)
def test_broken_text_beside_the_pixels_does_not_fail_the_picture(chunk: bytes) -> None:
    assert np.array_equal(decoded(lying_png(chunk)), LYING)
    assert np.array_equal(decoded(lying_png(behind=chunk)), LYING)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_first_frame_of_an_animation_counts(format: str) -> None:
    frames = [Image.new("RGB", (28, 28), colour) for colour in ("white", "black", "gray")]
    found = decoded(encoded(frames[0], format, save_all=True, append_images=frames[1:], lossless=True))
    assert found.min() == WHITE


def test_photograph_of_a_phone_is_scaled_down_while_it_is_decoded() -> None:
    photograph = encoded(Image.new("RGB", (4032, 3024), "white"), "JPEG")
    assert (decoded(photograph)[4:24] == WHITE).all()  # 28 x 21, centred
    ours_s = cpu_seconds(lambda: decoded(photograph))
    assert ours_s < cpu_seconds(lambda: Image.open(BytesIO(photograph)).load()) / 3  # a half, were it decoded whole
