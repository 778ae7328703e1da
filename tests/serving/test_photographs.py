"""Photographs become what the data set has: tested on simulated ones of real test images, and on odd pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from serving.pictures.photographs import prepared
from serving.pictures.reading import Box, Prepared
from tests.serving.photographs import photographs, sample
from tests.serving.pictures import encoded
from training.dataset import FashionMNIST

LIGHT_AND_DARK = pytest.mark.parametrize("is_light", [True, False], ids=["light table", "dark table"])


def prepared_pixels(
    pixels: NDArray[np.uint8], format: str = "PNG", **options: Any
) -> tuple[NDArray[np.uint8], Prepared]:
    """(28, 28) uint8, and what was done."""
    image, done = prepared(encoded(Image.fromarray(pixels), format, **options))
    assert image.shape == (1, 28, 28)
    assert image.dtype == np.uint8
    return image[0], done


def overlap(one: Box, other: Box) -> float:
    """The area that both share, as a part of the area of both together."""
    height = max(0, min(one[2], other[2]) - max(one[0], other[0]))
    width = max(0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return height * width / (sum(areas) - height * width)


def table(value: int, garment: int, box: Box = (60, 100, 180, 260)) -> NDArray[np.uint8]:
    """(240, 320) of one gray, with a garment of another."""
    pixels = np.full((240, 320), value, np.uint8)
    pixels[box[0] : box[2], box[1] : box[3]] = garment
    return pixels


@pytest.mark.slow
@LIGHT_AND_DARK
def test_garment_is_found_inverted_if_dark_and_cut_to_its_box(data: FashionMNIST, is_light: bool) -> None:
    images, _ = sample(data, 100)
    overlaps, likenesses = [], []
    for image, photograph in zip(images, photographs(images, is_light=is_light), strict=True):
        result, done = prepared_pixels(photograph.pixels)
        assert done.inverted == is_light
        overlaps.append(overlap(done.box, photograph.box))
        likenesses.append(np.corrcoef(result.ravel(), image.ravel())[0, 1])
    assert np.mean(overlaps) > 0.95
    assert min(overlaps) > 0.75
    assert np.median(likenesses) > 0.9


@pytest.mark.slow
@LIGHT_AND_DARK
def test_photographs_are_known_as_well_as_asked_by_the_tutorials_network(
    data: FashionMNIST, tutorial_checkpoint: Path, is_light: bool
) -> None:
    import torch  # as what follows, which few of these tests need

    from training.checkpoint import load_model

    images, labels = sample(data)
    pixels = [prepared_pixels(each.pixels)[0] for each in photographs(images, is_light=is_light)]
    model, _ = load_model(tutorial_checkpoint)
    with torch.inference_mode():
        found = model(torch.tensor(np.array(pixels)[:, None])).argmax(1).numpy()
    assert np.mean(found == labels) >= 0.80


def test_image_of_the_data_set_stays_as_it_is_and_an_inverted_one_becomes_it_again(data: FashionMNIST) -> None:
    whole = (0, 0, 28, 28)
    for image in data.test_images[:500, 0]:
        for pixels, is_inverted in ((image, False), (255 - image, True)):
            result, done = prepared_pixels(pixels, compress_level=1)
            assert (result == image).all()
            assert done == Prepared(is_inverted, whole)


@pytest.mark.parametrize("gray", [(250, 90), (90, 30), (20, 200), (150, 240)], ids=str)
def test_side_of_the_background_on_which_more_stands_out_is_the_garments(gray: tuple[int, int]) -> None:
    box = (60, 100, 180, 260)
    result, done = prepared_pixels(table(*gray, box))
    assert done == Prepared(gray[1] < gray[0], box)
    assert (result[4:24] > 200).all()
    assert (result[[0, 1, 2, -3, -2, -1]] == 0).all()


@pytest.mark.parametrize("other", [(4, 4, 90, 60), (100, 280, 140, 310), (200, 100, 230, 200)], ids=str)
def test_of_two_things_the_larger_is_kept(other: Box) -> None:
    box = (60, 100, 180, 260)
    pixels = table(250, 60, box)
    pixels[other[0] : other[2], other[1] : other[3]] = 20
    assert prepared_pixels(pixels)[1] == Prepared(True, box)


def test_exposure_makes_no_difference(data: FashionMNIST) -> None:
    images, _ = sample(data, 20)
    likenesses = []
    for photograph in photographs(images, is_light=True):
        well, _ = prepared_pixels(photograph.pixels)
        dimly, done = prepared_pixels((photograph.pixels * 0.45).astype(np.uint8))
        assert done.inverted
        likenesses.append(np.corrcoef(well.ravel(), dimly.ravel())[0, 1])
        assert dimly.max() > 200
    assert min(likenesses) > 0.85
    assert np.mean(likenesses) > 0.95


@pytest.mark.parametrize("gray", [0, 100, 128, 255])
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (2, 3), (28, 28), (300, 1), (480, 640)], ids=str)
def test_picture_of_one_gray_is_taken_whole(gray: int, shape: tuple[int, int]) -> None:
    result, done = prepared_pixels(np.full(shape, gray, np.uint8))
    assert done == Prepared(gray > 127, (0, 0, *shape))
    assert result.max() == (255 - gray if gray > 127 else gray)


@pytest.mark.parametrize("box", [(0, 0, 120, 160), (0, 100, 240, 220), (60, 0, 180, 320), (120, 80, 240, 240)], ids=str)
def test_garment_may_touch_the_border(box: Box) -> None:
    _, done = prepared_pixels(table(250, 60, box))
    assert done == Prepared(True, box)


@pytest.mark.parametrize("garment", [30, 220])
def test_transparent_background_is_the_one_from_which_the_garment_stands_out(garment: int) -> None:
    opaque = table(0, 255)
    picture = Image.merge("LA", (Image.fromarray(table(garment, garment)), Image.fromarray(opaque)))
    image, done = prepared(encoded(picture))
    assert done == Prepared(garment < 128, (60, 100, 180, 260))
    assert (image[0, 4:24] > 200).all()
    nothing = Image.merge("LA", (Image.fromarray(opaque), Image.fromarray(table(0, 0))))
    assert not prepared(encoded(nothing))[0].any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_box_is_in_pixels_of_the_upright_picture(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = Image.fromarray(table(250, 60, (20, 40, 120, 200)))
    top, left, bottom, right = prepared(encoded(lying, exif=exif.tobytes()))[1].box
    upright = np.asarray(lying if orientation == 1 else lying.transpose(TURNS[orientation]))
    assert (upright[top:bottom, left:right] == 60).all()
    assert (upright == 60).sum() == (bottom - top) * (right - left)


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@pytest.mark.parametrize(("format", "size"), [("JPEG", (4000, 3000)), ("PNG", (1500, 2000)), ("WEBP", (1000, 700))])
def test_large_photograph_is_reduced_and_its_box_is_in_its_own_pixels(format: str, size: tuple[int, int]) -> None:
    small = Image.fromarray(table(250, 60))
    _, done = prepared(encoded(small.resize(size, Image.Resampling.NEAREST), format))
    across, down = size[0] / 320, size[1] / 240
    wanted = (int(60 * down), int(100 * across), int(180 * down), int(260 * across))
    assert overlap(done.box, wanted) > 0.95
