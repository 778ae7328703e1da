"""Softmax and its order, against NumPy in float64."""

import numpy as np
import pytest

from serving.errors import BackendError
from serving.frontends.grpcio.ranking import MANY_IMAGES, best, checked_logits, rank


def softmax(logits: list[float]) -> list[float]:
    exponentials = np.exp(np.array(logits) - max(logits))
    return (exponentials / exponentials.sum()).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("scale", [1e-3, 1, 50, 3e4])
def test_probabilities_are_the_softmax_and_descend(scale: float) -> None:
    for logits in np.random.default_rng(0).normal(0, scale, (100, 10)).tolist():
        ranked = rank(logits, 10)
        probabilities = softmax(logits)
        assert [label for label, _ in ranked] == np.argsort(-np.array(logits)).tolist()
        assert [probability for _, probability in ranked] == pytest.approx(sorted(probabilities, reverse=True))
        assert sum(probability for _, probability in ranked) == pytest.approx(1)


@pytest.mark.parametrize("scale", [1e-3, 1, 50, 3e4])
@pytest.mark.parametrize("num_images", [1, MANY_IMAGES - 1, MANY_IMAGES, 300])
def test_best_is_the_first_of_the_ranked(num_images: int, scale: float) -> None:
    logits = np.random.default_rng(0).normal(0, scale, (num_images, 10)).astype(np.float32)
    logits[0, 7] = logits[0, 3] = logits[0].max()  # the first of equal ones
    labels, probabilities = best(logits)
    ranked = [rank(row, 1)[0] for row in logits.tolist()]
    assert labels == [label for label, _ in ranked]
    assert probabilities == pytest.approx([probability for _, probability in ranked], rel=1e-14)
    assert labels[0] <= 3


def test_equal_logits_rank_in_the_order_of_their_labels() -> None:
    assert [label for label, _ in rank([0.0, 2.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0], 4)] == [1, 3, 9, 2]


def test_top_k_returns_so_many() -> None:
    assert [len(rank([0.0] * 10, top_k)) for top_k in (1, 3, 10)] == [1, 3, 10]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 2])
@pytest.mark.parametrize("column", [0, 9])
def test_single_value_that_is_not_finite_is_refused(value: float, row: int, column: int) -> None:
    logits = np.zeros((3, 10), np.float32)
    assert checked_logits(logits, 3) is logits
    logits[row, column] = value
    with pytest.raises(BackendError, match="not finite"):
        checked_logits(logits, 3)


def test_infinities_that_cancel_are_refused() -> None:
    with pytest.raises(BackendError, match="not finite"):
        checked_logits(np.array([[np.inf] * 10, [-np.inf] * 10], np.float32), 2)


@pytest.mark.parametrize("shape", [(0,), (10,), (20,), (1, 10), (2, 9), (3, 10), (2, 10, 1)])
def test_other_shape_than_one_row_per_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BackendError, match="BAD_OUTPUT"):
        checked_logits(np.zeros(shape, np.float32), 2)
