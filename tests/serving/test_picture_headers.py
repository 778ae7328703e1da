"""Pictures that are refused, and what refusing them costs: bombs, other formats, damage."""

import random
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from serving import images
from serving.errors import InvalidRequestError
from tests.serving.pictures import WHITE, decoded, encoded, garment, refusal


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunks(png: bytes, chunks: bytes) -> bytes:
    """`png` with more chunks behind its header."""
    return png[:33] + chunks + png[33:]


def with_size(png: bytes, width: int, height: int) -> bytes:
    """`png` whose header claims another size."""
    return png[:8] + png_chunk(b"IHDR", struct.pack(">II", width, height) + png[24:29]) + png[33:]


def with_segment(jpeg: bytes, segment: bytes) -> bytes:
    """`jpeg` with one more segment at its beginning."""
    return jpeg[:2] + segment + jpeg[2:]


def milliseconds_to_refuse(data: bytes) -> float:
    """The fastest of five tries, so that a busy machine does not count."""
    seconds = []
    for _ in range(5):
        started_s = time.perf_counter()
        refusal(data)
        seconds.append(time.perf_counter() - started_s)
    return min(seconds) * 1e3


@pytest.mark.parametrize("format", ["GIF", "TIFF", "BMP", "PPM"])
def test_other_formats_are_refused_by_their_first_bytes(format: str) -> None:
    data = encoded(Image.new("L", (28, 28)), format)
    assert data[:8].hex(" ") in refusal(data)


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", bytes(100)])
def test_refusal_names_the_picture_and_the_cure(data: bytes) -> None:
    message = refusal(data, index=3)
    assert message.startswith("BAD_PICTURE: pictures[3] ")
    assert "send a whole PNG, JPEG or WebP file" in message


@pytest.mark.parametrize(
    ("data", "found", "limit"),
    [
        (encoded(Image.new("1", (9000, 9000))), "PNG of 9000 x 9000 pixels: 81,000,000", "16,777,216"),
        (encoded(Image.new("1", (4097, 4096)), "WEBP", lossless=True), "WEBP of 4097 x 4096 pixels", "16,777,216"),
        (encoded(Image.new("L", (8193, 8192)), "JPEG"), "JPEG of 8193 x 8192 pixels", "67,108,864"),
        (
            encoded(Image.new("L", (4097, 4096)), "JPEG", progressive=True),
            "4097 x 4096 pixels in 6 scans",
            "16,777,216",
        ),
    ],
    ids=["PNG", "WEBP", "JPEG", "progressive JPEG"],
)
def test_too_many_pixels_are_refused_from_the_header(data: bytes, found: str, limit: str) -> None:
    message = refusal(data)
    assert found in message
    assert f"the limit is {limit}" in message
    assert "scale it down" in message
    assert milliseconds_to_refuse(data) < 5


def test_largest_picture_allowed_is_decoded() -> None:
    assert decoded(encoded(Image.new("1", (2048, 2048), 1))).min() == WHITE


def test_absurd_header_is_refused_before_the_pixels() -> None:
    absurd = with_size(encoded(Image.new("L", (28, 28))), 2**31 - 1, 2**31 - 1)
    assert "2147483647 x 2147483647" in refusal(absurd)
    assert milliseconds_to_refuse(absurd) < 5


def test_second_header_does_not_smuggle_in_another_size() -> None:
    small = encoded(Image.new("L", (28, 28), WHITE))
    assert decoded(with_chunks(small, with_size(small, 60_000, 60_000)[8:33])).min() == WHITE


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (with_size(encoded(Image.new("L", (28, 28))), 0, 28), "a PNG of 0 x 28 pixels"),
        (with_segment(encoded(Image.new("L", (28, 28)), "JPEG"), b"\xff\xc4\0\0"), "a segment has no length"),
        (with_segment(encoded(Image.new("L", (28, 28)), "JPEG"), b"\xff\xc0\0\x02"), "a JPEG of 2 frames"),
        (b"\xff\xd8\xff\xc0\0\x02\xff\xda\0\x02", "breaks off before its pixels end"),
        (b"\xff\xd8" + b"\xff" * 1000, "a JPEG without pixels"),
    ],
    ids=["no width", "no length", "two frames", "no scan", "no segment"],
)
def test_header_that_makes_no_sense_is_refused(data: bytes, found: str) -> None:
    assert found in refusal(data)


def test_comments_of_a_png_are_never_unpacked() -> None:
    megabyte = png_chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(1 << 20)))
    bomb = with_chunks(encoded(Image.new("L", (28, 28), WHITE)), megabyte * 1000)
    started_s = time.perf_counter()
    assert decoded(bomb).min() == WHITE
    assert time.perf_counter() - started_s < 0.25  # unpacking them takes a second


def test_jpeg_in_thousands_of_scans_is_refused() -> None:
    progressive = encoded(Image.new("RGB", (1000, 1000), "red"), "JPEG", progressive=True)
    last_scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    bomb = progressive[:-2] + last_scan * 5000 + b"\xff\xd9"
    assert "in 5010 scans" in refusal(bomb)
    assert milliseconds_to_refuse(bomb) < 5


@pytest.mark.parametrize(
    "bomb",
    [
        with_chunks(encoded(Image.new("L", (28, 28))), png_chunk(b"tIME", b"") * 50_000),
        b"\xff\xd8" + b"\xff\xfe\0\2" * 200_000,
    ],
    ids=["PNG chunks", "JPEG segments"],
)
def test_header_of_thousands_of_parts_is_not_walked_to_its_end(bomb: bytes) -> None:
    assert "more than 4,096" in refusal(bomb)
    assert milliseconds_to_refuse(bomb) < 5


def test_no_memory_for_a_picture_refuses_that_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(_file: object) -> None:
        raise MemoryError

    monkeypatch.setitem(images.DECODERS, "PNG", exhausted)
    assert "there is no memory" in refusal(encoded(Image.new("L", (28, 28))))


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


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_no_truncation_raises_anything_else_or_is_answered(seed: bytes) -> None:
    decoded(seed)
    for length in range(0, len(seed) - 100, 7):  # what is cut off later may be no more than a trailer
        message = refusal(seed[:length])
        assert "PIL" not in message


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


def test_damaged_pixels_of_a_png_are_noticed() -> None:
    data = bytearray(encoded(Image.fromarray(garment())))
    data[data.index(b"IDAT") + 100] ^= 1
    assert "a checksum differs" in refusal(bytes(data))
