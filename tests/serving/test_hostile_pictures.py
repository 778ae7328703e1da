"""Pictures that are refused, and what refusing them costs: bombs, other formats, damage."""

import base64
import random
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from serving.errors import InvalidRequestError
from serving.pictures.decode import gray_from_picture
from tests.serving.pictures import (
    COLOUR,
    GRAY,
    WHITE,
    blank_png,
    cpu_seconds,
    decoded,
    encoded,
    garment,
    png_chunk,
    refusal,
)


def with_chunks(png: bytes, chunks: bytes) -> bytes:
    """`png` with more chunks behind its header."""
    return png[:33] + chunks + png[33:]


def with_size(png: bytes, width: int, height: int) -> bytes:
    """`png` whose header claims another size."""
    return png[:8] + png_chunk(b"IHDR", struct.pack(">II", width, height) + png[24:29]) + png[33:]


def with_segment(jpeg: bytes, segment: bytes) -> bytes:
    """`jpeg` with one more segment at its beginning."""
    return jpeg[:2] + segment + jpeg[2:]


@pytest.fixture(scope="module")
def legal_s() -> float:
    """The CPU seconds that a picture of the largest size takes: the yardstick for what pretends to be one."""
    largest = encoded(Image.new("L", (4096, 4096), WHITE))
    return cpu_seconds(lambda: decoded(largest))


OTHER_KINDS = {
    "HEIC": (b"\0\0\0\x24ftypheic\0\0\0\0mif1heic", "HEIC, an iPhone photo", "convert it to JPEG"),
    "HEIC by its kin": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC", "convert it to JPEG"),
    "AVIF": (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "AVIF", "convert it to JPEG"),
    "film": (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", "a film", "send a picture of it"),
    "GIF": (encoded(Image.new("L", (28, 28)), "GIF"), "GIF", "convert it to PNG"),
    "BMP": (encoded(Image.new("L", (28, 28)), "BMP"), "BMP", "convert it to PNG"),
    "TIFF": (encoded(Image.new("L", (28, 28)), "TIFF"), "TIFF", "convert it to PNG"),
    "TIFF of a Macintosh": (b"MM\0*\0\0\0\x08", "TIFF", "convert it to PNG"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG", "draw it as PNG"),
    "SVG as XML": (b'<?xml version="1.0"?>\n<!-- made by hand -->\n<svg width="9"/>', "SVG", "draw it as PNG"),
    "PDF": (encoded(Image.new("L", (28, 28)), "PDF"), "PDF", "save the picture in it"),
    "HTML": (b"\n<!DOCTYPE html>\n<html><svg/></html>", "a web page", "the download failed: save the picture itself"),
    "HTML in capitals": (b"\xef\xbb\xbf<HTML><BODY>", "a web page", "the download failed: save the picture itself"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page", "the download failed"),
    "base64": (base64.b64encode(encoded(Image.new("L", (28, 28)))), "base64 text", "send the bytes"),
    "data URL": (b"data:image/png;base64,iVBORw0KGgo=", "base64 text", "send the bytes"),
}


@pytest.mark.fault("S7")
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_are_named_with_their_cure(kind: str) -> None:
    data, name, cure = OTHER_KINDS[kind]
    assert refusal(data, index=2).startswith(f"BAD_PICTURE: pictures[2] looks like {name}")
    assert f"({cure}" in refusal(data)


@pytest.mark.parametrize("head", [b"<!--", b"<?xml", b"  ", b"\0\0\0\x18ftyp", b"\xff\xd8\xff\xe0", b"RIFF", b"BM"])
def test_naming_a_megabyte_takes_no_time(head: bytes, legal_s: float) -> None:
    data = head + b"<!-- --><" * 100_000
    assert cpu_seconds(lambda: refusal(data)) < legal_s / 10


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", bytes(100)])
def test_refusal_names_the_picture_and_the_cure(data: bytes) -> None:
    message = refusal(data, index=3)
    assert message.startswith("BAD_PICTURE: pictures[3] ")
    assert "send a whole PNG, JPEG or WebP file" in message


@pytest.mark.fault("S8")
@pytest.mark.parametrize(
    ("made", "found", "limit"),
    [
        (lambda: encoded(Image.new("1", (9000, 9000))), "PNG of 9000 x 9000 pixels: 81,000,000", "16,777,216"),
        (
            lambda: encoded(Image.new("1", (2897, 2896)), "WEBP", lossless=True),
            "WebP of 2897 x 2896 pixels",
            "8,388,608",
        ),
        (lambda: encoded(Image.new("RGB", (2897, 2896)), "WEBP"), "WebP of 2897 x 2896 pixels", "8,388,608"),
        (lambda: encoded(Image.new("RGBA", (2897, 2896)), "WEBP"), "WebP of 2897 x 2896 pixels", "8,388,608"),
        (lambda: blank_png(4097, 1024, 16, COLOUR), "PNG of 4097 x 1024 pixels of 16 bits", "4,194,304"),
        (lambda: blank_png(4097, 2048, 16, GRAY), "PNG of 4097 x 2048 pixels of 16 bits", "8,388,608"),
        (lambda: encoded(Image.new("L", (8193, 8192)), "JPEG"), "JPEG of 8193 x 8192 pixels", "67,108,864"),
        (
            lambda: encoded(Image.new("L", (4097, 4096)), "JPEG", progressive=True),
            "4097 x 4096 pixels in 6 scans",
            "16,777,216",
        ),
    ],
    ids=["PNG", "lossless WebP", "WebP", "WebP with alpha", "deep colours", "deep grays", "JPEG", "progressive JPEG"],
)
def test_too_many_pixels_are_refused_from_the_header(
    made: Callable[[], bytes], found: str, limit: str, legal_s: float
) -> None:
    message = refusal(data := made())
    assert found in message
    assert f"the limit is {limit}" in message
    assert "scale it down" in message
    assert cpu_seconds(lambda: refusal(data)) < legal_s / 10


def test_largest_picture_allowed_is_decoded() -> None:
    assert decoded(encoded(Image.new("1", (2048, 2048), 1))).min() == WHITE


@pytest.mark.fault("S8")
def test_absurd_header_is_refused_before_the_pixels(legal_s: float) -> None:
    absurd = with_size(encoded(Image.new("L", (28, 28))), 2**31 - 1, 2**31 - 1)
    assert "2147483647 x 2147483647" in refusal(absurd)
    assert cpu_seconds(lambda: refusal(absurd)) < legal_s / 10


def test_second_header_does_not_smuggle_in_another_size() -> None:
    small = encoded(Image.new("L", (28, 28), WHITE))
    for side in (60_000, 50):
        assert "damaged" in refusal(with_chunks(small, with_size(small, side, side)[8:33]))


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (with_size(encoded(Image.new("L", (28, 28))), 0, 28), "a PNG that is damaged"),
        (with_segment(encoded(Image.new("L", (28, 28)), "JPEG"), b"\xff\xc4\0\0"), "a segment has no length"),
        (with_segment(encoded(Image.new("L", (28, 28)), "JPEG"), b"\xff\xc0\0\x02"), "a JPEG that is damaged"),
        (b"\xff\xd8\xff\xc0\0\x02\xff\xda\0\x02", "breaks off before its pixels end"),
        (b"\xff\xd8\xff\xfe\0\2" + b"\xff" * 1000, "a JPEG without pixels"),
    ],
    ids=["no width", "no length", "two frames", "no scan", "no segment"],
)
def test_header_that_makes_no_sense_is_refused(data: bytes, found: str) -> None:
    assert found in refusal(data)


def packed_zeros(num_megabytes: int) -> bytes:
    """Zeros as zlib packs them: a thousandth."""
    packer = zlib.compressobj()
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(num_megabytes)) + packer.flush()


PNG_BOMBS: dict[str, Callable[[], bytes]] = {
    "comments": lambda: png_chunk(b"zTXt", b"comment\0\0" + packed_zeros(1)) * 2000,
    "profiles of colours": lambda: png_chunk(b"iCCP", b"profile\0\0" + packed_zeros(1)) * 2000,
    "profiles of EXIF": lambda: png_chunk(b"zTXt", b"Raw profile type exif\0\0" + packed_zeros(1)) * 2000,
    "one long profile of EXIF": lambda: png_chunk(b"zTXt", b"Raw profile type exif\0\0" + packed_zeros(200)),
    "XMP": lambda: png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + packed_zeros(1)) * 2000,
    "EXIF": lambda: png_chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 1, 7, 99, 8) * 65_535) * 10,
}


@pytest.mark.fault("S8")
@pytest.mark.parametrize("made", PNG_BOMBS.values(), ids=PNG_BOMBS)
def test_what_a_png_says_beside_its_pixels_costs_little(made: Callable[[], bytes], legal_s: float) -> None:
    small, bomb = encoded(Image.new("L", (28, 28), WHITE)), made()
    before, behind = with_chunks(small, bomb), small[:-12] + bomb + small[-12:]
    assert decoded(before).min() == decoded(behind).min() == WHITE
    assert cpu_seconds(lambda: decoded(before)) < legal_s / 2
    assert cpu_seconds(lambda: decoded(behind)) < legal_s / 2


@pytest.mark.parametrize(
    "bomb",
    [bytes(1_000_000), b"\xff" * 1_000_000, b"\xff\xe1\xff\xffExif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(65_519)],
    ids=["junk", "padding", "EXIF"],
)
def test_what_a_jpeg_says_before_its_pixels_costs_little(bomb: bytes, legal_s: float) -> None:
    padded = with_segment(encoded(Image.new("L", (28, 28), WHITE), "JPEG"), b"\xff\xfe\0\2" + bomb)
    assert decoded(padded).min() == WHITE
    assert cpu_seconds(lambda: decoded(padded)) < legal_s  # which is 40 % shorter in a process with a large heap


def animation(format: str, num_frames: int) -> bytes:
    """An animation whose last frame comes again and again."""
    frames = [Image.new("RGB", (28, 28), colour) for colour in ("white", "red", "blue")]
    animated = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    if format == "PNG":
        last = animated[animated.rindex(b"fcTL") - 4 : -12]
        told = png_chunk(b"acTL", struct.pack(">II", num_frames, 0))
        return animated[:33] + told + animated[53:-12] + last * (num_frames - 3) + animated[-12:]
    body = animated[8:] + animated[animated.rindex(b"ANMF") :] * (num_frames - 3)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.fault("S8")
@pytest.mark.parametrize(
    ("format", "found"), [("PNG", "PNG of 100,000 frames"), ("WEBP", "WebP of more than 1,024 fr")]
)
def test_animation_of_thousands_of_frames_is_refused(format: str, found: str, legal_s: float) -> None:
    assert decoded(animation(format, 1024)).shape == (28, 28)
    bomb = animation(format, 100_000)
    assert found in refusal(bomb)
    assert "(send its first frame alone)" in refusal(bomb)
    assert cpu_seconds(lambda: refusal(bomb)) < legal_s / 5


def test_webp_of_thousands_of_chunks_is_refused(legal_s: float) -> None:
    bomb = encoded(Image.new("L", (28, 28)), "WEBP") + b"JUNK\0\0\0\0" * 100_000
    assert "WebP of more than 4,096 chunks" in refusal(bomb)
    assert cpu_seconds(lambda: refusal(bomb)) < legal_s / 5


def test_jpeg_in_thousands_of_scans_is_refused(legal_s: float) -> None:
    progressive = encoded(Image.new("RGB", (1000, 1000), "red"), "JPEG", progressive=True)
    last_scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    bomb = progressive[:-2] + last_scan * 5000 + b"\xff\xd9"
    assert "in 5010 scans" in refusal(bomb)
    assert cpu_seconds(lambda: refusal(bomb)) < legal_s / 10


@pytest.mark.parametrize(
    "bomb",
    [
        with_chunks(encoded(Image.new("L", (28, 28))), png_chunk(b"tIME", b"") * 50_000),
        b"\xff\xd8" + b"\xff\xfe\0\2" * 200_000,
    ],
    ids=["PNG chunks", "JPEG segments"],
)
def test_header_of_thousands_of_parts_is_not_walked_to_its_end(bomb: bytes, legal_s: float) -> None:
    assert "more than 4,096" in refusal(bomb)
    assert cpu_seconds(lambda: refusal(bomb)) < legal_s / 10


def test_no_memory_for_a_picture_refuses_that_picture() -> None:
    def exhausted(*_: object) -> Image.Image:
        raise MemoryError

    with pytest.raises(InvalidRequestError, match="there is no memory"):
        gray_from_picture(encoded(Image.new("L", (28, 28))), exhausted, index=0, edge=28)


SEEDS = {
    "PNG": encoded(Image.fromarray(garment(40, 60))),
    "palette PNG": encoded(Image.fromarray(garment(40, 60)).convert("P"), transparency=3),
    "16-bit PNG": encoded(Image.fromarray(garment(40, 60).astype(np.uint16) * 257)),
    "animated PNG": encoded(Image.new("L", (9, 9), 1), save_all=True, append_images=[Image.new("L", (9, 9), 2)]),
    "JPEG": encoded(Image.fromarray(garment(40, 60)).convert("RGB"), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff"),
    "progressive JPEG": encoded(Image.fromarray(garment(40, 60)), "JPEG", progressive=True),
    "CMYK JPEG": encoded(Image.fromarray(garment(40, 60)).convert("CMYK"), "JPEG"),
    "WebP": encoded(Image.fromarray(garment(40, 60)).convert("RGBA"), "WEBP"),
    "lossless WebP": encoded(Image.fromarray(garment(40, 60)).convert("RGB"), "WEBP", lossless=True),
}


@pytest.mark.fault("S7")
@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_no_truncation_raises_anything_else_or_is_answered(seed: bytes) -> None:
    decoded(seed)
    for length in range(0, len(seed) - 100, 7):  # what is cut off later may be no more than a trailer
        message = refusal(seed[:length])
        assert "PIL" not in message


@pytest.mark.fault("S7")
@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_no_damage_raises_anything_else(seed: bytes) -> None:
    chance = random.Random(len(seed))
    refused = 0
    for _ in range(300):
        damaged = bytearray(seed)
        for _ in range(chance.choice((1, 2, 8))):
            damaged[chance.randrange(chance.choice((64, len(seed))))] = chance.choice((0, 255, chance.randrange(256)))
        try:
            decoded(bytes(damaged), invert=chance.random() < 0.5)
        except InvalidRequestError:
            refused += 1
    assert refused > 30


@pytest.mark.fault("S7")
def test_damaged_pixels_of_a_png_are_noticed() -> None:
    data = bytearray(encoded(Image.fromarray(garment())))
    data[data.index(b"IDAT") + 100] ^= 1
    assert "a PNG that is damaged" in refusal(bytes(data))
