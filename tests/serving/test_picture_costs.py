"""What decoding a picture costs is known from its header, and a request may cost no more than the largest picture."""

import struct
import tracemalloc
from collections.abc import Callable
from functools import cache

import pytest
from PIL import Image

from loadtest.attack.bombs import blank_webp
from serving.errors import InvalidRequestError
from serving.pictures.costs import MAX_COST, cost_of, cost_of_request, header_of, weight_of
from serving.pictures.kinds import format_of
from tests.serving.pictures import (
    COLOUR,
    COLOUR_ALPHA,
    GRAY,
    GRAY_ALPHA,
    PALETTE,
    blank_png,
    cpu_seconds,
    decoded,
    encoded,
)

# --- Weights ---------------------------------------------------------------------------------------------------------

SIDE = 1024


@cache
def in_scans(num_scans: int) -> bytes:
    """A blank JPEG whose last scan comes again and again."""
    picture = encoded(Image.new("RGB", (SIDE, SIDE)), "JPEG", progressive=True)
    first, last = picture[:-2], picture[picture.rindex(b"\xff\xda") : -2]
    return first + last * (num_scans - first.count(b"\xff\xda")) + b"\xff\xd9"


# What is dearest of each weight: no bytes to speak of, and all that decoding does.
DEAREST: dict[str, tuple[int, Callable[[], bytes]]] = {
    "JPEG": (1, lambda: encoded(Image.new("CMYK", (SIDE, SIDE)), "JPEG")),
    "JPEG in 12 scans": (4, lambda: in_scans(12)),
    "JPEG in 36 scans": (12, lambda: in_scans(36)),
    "PNG of one bit": (4, lambda: blank_png(SIDE, SIDE, 1, GRAY)),
    "PNG with a palette": (4, lambda: blank_png(SIDE, SIDE, 8, PALETTE, PLTE=bytes(768), tRNS=b"\x80" * 256)),
    "PNG with a transparent colour": (4, lambda: blank_png(SIDE, SIDE, 8, COLOUR, tRNS=bytes(6))),
    "PNG with alpha": (4, lambda: blank_png(SIDE, SIDE, 8, COLOUR_ALPHA)),
    "PNG of 16-bit grays": (8, lambda: blank_png(SIDE, SIDE, 16, GRAY, tRNS=bytes(2))),
    "PNG of 16-bit grays with alpha": (16, lambda: blank_png(SIDE, SIDE, 16, GRAY_ALPHA)),
    "PNG of 16-bit colours": (16, lambda: blank_png(SIDE, SIDE, 16, COLOUR_ALPHA)),
    "WebP": (8, lambda: encoded(Image.new("RGBA", (SIDE, SIDE)), "WEBP")),
    "lossless WebP": (8, lambda: blank_webp(SIDE)),
}


@pytest.fixture(scope="module")
def usual_s() -> float:
    """CPU seconds for each unit of cost of a PNG with alpha, by which the others were weighed."""
    picture = blank_png(SIDE, SIDE, 8, COLOUR_ALPHA)
    return cpu_seconds(lambda: decoded(picture)) / cost_of(header_of("PNG", picture))


@pytest.mark.parametrize("kind", DEAREST)
def test_pixel_weighs_what_decoding_it_takes(kind: str, usual_s: float) -> None:
    weight, make = DEAREST[kind]
    picture = make()
    header = header_of(format_of(picture), picture)
    assert weight_of(header) == weight
    assert header.num_pixels == SIDE * SIDE
    assert cpu_seconds(lambda: decoded(picture)) < 2.5 * usual_s * cost_of(header)


# --- Requests --------------------------------------------------------------------------------------------------------

MEGAPIXEL = blank_png(1024, 1024, 1, GRAY)


@cache
def photograph() -> bytes:
    return encoded(Image.new("RGB", (4032, 3024)), "JPEG")


def refusal_of(pictures: list[bytes]) -> str:
    """The message with which a request is refused."""
    with pytest.raises(InvalidRequestError) as caught:
        cost_of_request(pictures)
    return str(caught.value)


def test_photographs_of_phones_fit_into_a_request() -> None:
    assert cost_of_request([photograph()] * 5) == 5 * 4032 * 3024
    film_still = encoded(Image.new("RGB", (8064, 6048)), "JPEG")
    assert cost_of_request([film_still]) == 8064 * 6048  # 48 megapixels
    progressive = encoded(Image.new("RGB", (4032, 3024)), "JPEG", progressive=True)
    assert cost_of_request([progressive]) == 4 * 4032 * 3024


def test_all_pictures_of_a_request_together_may_cost_as_much_as_the_largest() -> None:
    assert cost_of_request([MEGAPIXEL] * 16) == MAX_COST
    message = refusal_of([MEGAPIXEL] * 20)
    assert message.startswith("TOO_MANY_PIXELS: the first 17 of 20 pictures have 71,303,168 pixels, weighed by their")
    assert "the limit is 67,108,864 (send fewer pictures in a request, or scale them down" in message


def test_thousand_small_pictures_fit_into_a_request() -> None:
    pictures = [encoded(Image.new("L", (320, 200)), "JPEG")] * 1024
    assert cost_of_request(pictures) == 1024 * 320 * 200


def test_picture_that_cannot_be_decoded_is_refused_before_others_are() -> None:
    assert refusal_of([MEGAPIXEL, blank_webp(2897)]).startswith("BAD_PICTURE: pictures[1] is a WebP of 2897 x 2897")
    assert refusal_of([MEGAPIXEL, b"GIF89a"]).startswith("BAD_PICTURE: pictures[1] looks like GIF")
    assert refusal_of([MEGAPIXEL, MEGAPIXEL[:20]]).startswith("BAD_PICTURE: pictures[1] breaks off")


def test_jpeg_whose_header_is_far_behind_counts_as_the_largest() -> None:
    depths = b"\xff\xe1\xff\xff" + bytes(65_533)  # as phones add them: megabytes
    far = photograph()[:2] + depths * 10 + photograph()[2:]
    assert cost_of_request([far]) == MAX_COST
    assert "TOO_MANY_PIXELS" in refusal_of([far, far])
    assert decoded(far).shape == (28, 28)


# --- What looking at a header costs ----------------------------------------------------------------------------------

# Made when they are asked for: some take long.
BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG of 81 megapixels": lambda: blank_png(9000, 9000, 1, GRAY),
    "PNG of 2 ** 62 pixels": lambda: MEGAPIXEL[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + MEGAPIXEL[24:],
    "WebP of 16 megapixels": lambda: encoded(Image.new("RGBA", (4096, 4096)), "WEBP", lossless=True),
    "WebP of 268 megapixels": lambda: blank_webp(16383),
    "many small JPEGs with many segments": lambda: encoded(Image.new("L", (9, 9)), "JPEG").replace(
        b"\xff\xd8", b"\xff\xd8" + b"\xff\xfe\0\2" * 50
    ),
    "many JPEGs without pixels": lambda: b"\xff\xd8\xff\xe0" + b"\xff" * 1020,
    "JPEG in 100,000 scans": lambda: in_scans(36)[:-2] + b"\xff\xda\0\2" * 100_000,
    "pictures as large as may be": lambda: MEGAPIXEL,
}


@pytest.mark.fault("S8")
@pytest.mark.parametrize("kind", BOMBS)
def test_megabyte_of_bombs_is_judged_in_little_time_and_memory(kind: str, usual_s: float) -> None:
    bomb = BOMBS[kind]()
    pictures = [bomb] * min(1024, max(1, (1 << 20) // len(bomb)))

    def judged() -> str:
        try:
            return str(cost_of_request(pictures))
        except InvalidRequestError as error:
            return error.word

    assert judged() in ("BAD_PICTURE", "TOO_MANY_PIXELS") or len(bomb) < 1500
    assert cpu_seconds(judged) < usual_s * MAX_COST / 2  # of what decoding may take; 0.2 of it were seen
    tracemalloc.start()
    judged()
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 1 << 20
