"""What a drawing becomes before the network gets it: by the page's own code, in Chromium."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.serving.playground.page.drawings import Line
from tests.serving.playground.page.top1 import BRUSH, accuracy, prepared

pytestmark = pytest.mark.slow

SQUARE: Line = [(30, 20), (80, 20), (80, 90), (30, 90), (30, 20)]


def box(image: np.ndarray[Any, np.dtype[np.uint8]]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def test_an_outline_is_filled_and_its_box_is_as_large_as_the_image_and_in_the_middle(modules: Any) -> None:
    [image], [gap] = prepared(modules, [[SQUARE]])
    assert gap is None
    assert box(image) == (0, 28, 4, 24)  # 53 x 73 pixels of the pad
    assert (image[14, 14], image[14, 4], image[0, 14]) == (200, 120, 120)


def test_a_line_within_is_a_seam(modules: Any) -> None:
    [image], _ = prepared(modules, [[SQUARE, [(55, 20), (55, 90)]]])
    left, seam, right = image[14, [9, 13, 18]]
    assert (left, 120 <= seam < 150, right) == (200, True, 200)


def test_a_painted_shape_is_only_made_as_bright_as_cloth(modules: Any) -> None:
    [image], [gap] = prepared(modules, [[SQUARE]], is_painted=True)
    assert gap is None
    assert set(image[1:27, 5:23].ravel()) == {200}


def test_without_filling_the_pad_is_shrunk_as_it_is(modules: Any) -> None:
    [image], [gap] = prepared(modules, [[SQUARE]], is_filled=False)
    assert gap is None
    assert box(image) == (4, 24, 6, 21)
    assert (image[14, 14], image[5, 14]) == (0, 160)  # 2.5 of 4 lines are ink


def test_an_empty_pad_is_an_empty_image(modules: Any) -> None:
    images, gaps = prepared(modules, [[]])
    assert (images.max(), gaps) == (0, [None])


@pytest.mark.parametrize(("missing", "is_closed"), [(10, True), (16, False), (25, False)])
def test_a_small_gap_is_closed_and_a_larger_one_is_pointed_at(modules: Any, missing: int, is_closed: bool) -> None:
    outline = [(80.0, 55 + missing / 2), *SQUARE[2:], *SQUARE[1:2], (80.0, 55 - missing / 2)]
    [image], [gap] = prepared(modules, [[outline]])
    assert (image[14, 14] == 200) == is_closed
    if is_closed:
        assert gap is None
    else:
        assert (abs(gap["x"] - 80) < 3, abs(gap["y"] - 55) < 2) == (True, True)
        assert abs(gap["width"] - (missing - BRUSH)) < 3


def test_where_nothing_is_enclosed_at_all_no_place_is_named(modules: Any) -> None:
    _, gaps = prepared(modules, [[[(20, 50), (90, 50)]]])
    assert gaps == [{"x": None, "y": None, "width": None}]


def test_drawings_are_taken_for_what_they_are(modules: Any, tutorial_checkpoint: Path) -> None:
    """By the model that `make train` makes; docs/playground.md says how another is asked."""
    assert accuracy(modules, tutorial_checkpoint, is_filled=True) >= 0.66
    assert accuracy(modules, tutorial_checkpoint, is_filled=False) <= 0.35
