"""What raw images and pictures turn into."""

import time
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serving.errors import InvalidRequestError
from serving.images import images_from_bytes
from tests.serving.pictures import WHITE, decoded, encoded, garment

# --- Raw images ------------------------------------------------------------------------------------------------------


def test_raw_images_are_a_view_in_order() -> None:
    data = bytes(784) + bytes([7]) * 784
    found = images_from_bytes(data)
    assert found.shape == (2, 1, 28, 28)
    assert found[0].max() == 0
    assert found[1].min() == 7
    assert np.shares_memory(found, np.frombuffer(data, np.uint8))


@pytest.mark.parametrize("num_bytes", [1, 783, 785, 27 * 28, 2 * 784 - 1])
def test_wrong_number_of_bytes_names_what_was_found_and_what_is_needed(num_bytes: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"BAD_IMAGE_SIZE: images is {num_bytes} bytes long.*784"):
        images_from_bytes(bytes(num_bytes))


def test_no_bytes_are_no_images() -> None:
    with pytest.raises(InvalidRequestError, match=r"NO_IMAGES: .*784"):
        images_from_bytes(b"")


# --- What pictures turn into -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"format": "WEBP", "lossless": True}])
def test_28_x_28_grayscale_passes_unchanged(options: dict[str, Any]) -> None:
    pixels = garment()
    assert np.array_equal(decoded(encoded(Image.fromarray(pixels), **options)), pixels)


def test_16_bit_pictures_are_scaled_not_clipped() -> None:
    pixels = garment()
    picture = Image.fromarray(pixels.astype(np.uint16) * 256 + 77)
    assert picture.mode == "I;16"
    assert np.array_equal(decoded(encoded(picture)), pixels)


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


@pytest.mark.parametrize(("mode", "clear"), [("L", 100), ("RGB", (100, 100, 100)), ("P", 0), ("I;16", 100 * 257)])
def test_colour_that_is_declared_transparent_shows_the_background(mode: str, clear: Any) -> None:
    picture = Image.new(mode, (28, 28), 0 if mode == "P" else clear)
    data = encoded(picture, transparency=clear)
    assert decoded(data).max() == 0
    assert decoded(data, invert=True).max() == 0


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


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_first_frame_of_an_animation_counts(format: str) -> None:
    frames = [Image.new("RGB", (28, 28), colour) for colour in ("white", "black", "gray")]
    found = decoded(encoded(frames[0], format, save_all=True, append_images=frames[1:], lossless=True))
    assert found.min() == WHITE


def test_photograph_of_a_phone_is_scaled_down_while_it_is_decoded() -> None:
    photograph = encoded(Image.new("RGB", (4032, 3024), "white"), "JPEG")
    started_s = time.process_time()  # of which a busy machine takes none
    found = decoded(photograph)
    ours_s = time.process_time() - started_s
    assert (found[4:24] == WHITE).all()  # 28 x 21, centred
    Image.open(BytesIO(photograph)).load()
    assert ours_s < (time.process_time() - started_s) / 3  # a half, were it decoded whole
