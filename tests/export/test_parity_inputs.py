import functools

import numpy as np
import pytest

from atelier.contract import margins
from export.parity_inputs import ParityInputs, parity_inputs
from tests.export.small_model import noise_images, truth

TEST_IMAGES = noise_images(6)


@functools.cache
def made_inputs() -> ParityInputs:
    return parity_inputs(TEST_IMAGES, np.zeros(6, np.uint8), truth())


def edge_images(name: str) -> np.ndarray:
    inputs = made_inputs()
    chosen = [index for index, edge in enumerate(inputs.edge_names) if edge.startswith(name)]
    return inputs.images[6:][chosen]


@pytest.mark.fault("E14")
def test_test_images_come_first_and_every_edge_image_has_a_name() -> None:
    inputs = made_inputs()
    np.testing.assert_array_equal(inputs.images[:6], TEST_IMAGES)
    assert len(inputs.images) == 6 + len(inputs.edge_names)
    assert inputs.images.dtype == np.uint8


def test_an_image_is_described_by_its_index_or_its_edge() -> None:
    assert made_inputs().describe(5) == "test image 5"
    assert made_inputs().describe(7) == "edge image 1 (all 255, number 0)"


@pytest.mark.fault("E14")
def test_edges_are_black_white_every_single_pixel_and_noise() -> None:
    assert (edge_images("all 0") == 0).all()
    assert (edge_images("all 255") == 255).all()
    assert len(edge_images("noise")) > 0
    pixels = edge_images("single pixel")
    assert ((pixels == 255).sum(axis=(1, 2, 3)) == 1).all()
    assert (pixels.sum(axis=0) == 255).all()  # each place once


@pytest.mark.fault("E14")
def test_near_ties_lie_on_both_sides_of_the_decision() -> None:
    # Seeded weights give all noise one class, so an all-or-nothing truth of two classes stands in for a trained one.
    def brighter_than_half(images: np.ndarray) -> np.ndarray:
        light = images.mean(axis=(1, 2, 3)) / 255 - 0.5
        return np.stack([light, -light], axis=1)

    dark_and_light = np.stack([np.full((1, 28, 28), value, np.uint8) for value in (10, 250)])
    inputs = parity_inputs(dark_and_light, np.zeros(2, np.uint8), brighter_than_half)
    near_ties = inputs.images[-2:]
    assert (margins(brighter_than_half(near_ties)) < 0.01).all()
    assert set(brighter_than_half(near_ties).argmax(1)) == {0, 1}
